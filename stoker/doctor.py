"""`stoker doctor`: looks at every part of a service at once, each for a bounded time, and says what to do.

It changes nothing, asks no address but those of the service itself, and prints no secret.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from urllib.parse import unquote, urlsplit

from stoker.checks_broker import rabbitmq
from stoker.checks_database import database
from stoker.checks_host import host
from stoker.checks_queue import queue
from stoker.checks_redis import broker
from stoker.checks_web import web
from stoker.finding import Finding, ok, problem
from stoker.service_settings import written_down
from stoker.settings import Settings, load

Group = Callable[[], Iterator[Finding]]

PATIENCE = 20.0
"""Seconds that a part may take to be looked at."""
_SHORTEST = 4
_SECRETS = ("secret_key", "webhook_secret", "upstream_api_key")
_ADDRESSES = ("database_url", "database_read_url", "redis_url", "broker_url")
"""Settings that may hold a password."""
MIN_FREE = 1.0
"""Gigabytes of disk below which it is a problem."""


def examine(
    given: Mapping[str, object], *, url: str | None = None, min_free: float = MIN_FREE, patience: float = PATIENCE
) -> list[Finding]:
    """Return what is found. `given` are settings by name, before those of the service that runs.

    Raises SettingsError.
    """
    settings, runs = settings_of(given)
    groups: dict[str, Group] = {
        "host": partial(host, settings, min_free),
        "database": partial(database, settings),
        "queue": partial(queue, settings),
        "redis": partial(broker, settings),
        "broker": partial(rabbitmq, settings),
        "web": partial(web, settings, url, known=runs),
    }
    whose = f"those of the `stoker up` of {settings.data}" if runs else "those of this shell, all valid"
    found = [ok("settings", whose), *in_time(groups, patience)]
    return [_without(secrets_of(settings), finding) for finding in found]


def settings_of(given: Mapping[str, object]) -> tuple[Settings, bool]:
    """Return the settings of the service that is meant, and whether they are those of a `stoker up` in this folder.

    Raises SettingsError.
    """
    asked = load(**given)
    data = asked.data.expanduser().absolute()
    known = written_down(data)
    if known is None:
        return load(**{**given, "data": data}), False
    # Secrets are not written down: those of this shell, to be left out of what is printed.
    ours = {name: getattr(asked, name) for name in _SECRETS}
    return known.model_copy(update={**ours, **given, "data": data}), True


def in_time(groups: Mapping[str, Group], patience: float) -> list[Finding]:
    """Run groups of checks at once; of one that does not end in time, what it found so far and that it hangs."""
    found: dict[str, list[Finding]] = {name: [] for name in groups}
    threads = {
        name: threading.Thread(target=_collect, args=(name, group, found[name]), daemon=True)
        for name, group in groups.items()
    }
    for thread in threads.values():
        thread.start()
    until = time.monotonic() + patience
    for name, thread in threads.items():
        thread.join(max(0.0, until - time.monotonic()))
        if thread.is_alive():
            # The thread has its own list: what it still finds comes too late.
            hangs = problem(name, f"the next look at it did not end within {patience:g} s", _HANGS[name])
            found[name] = [*found[name], hangs]
    return [finding for findings in found.values() for finding in findings]


_HANGS = {
    "host": "does a disk or a network folder hang?",
    "database": "is the database frozen, or the network to it cut off?",
    "queue": "is the database frozen, or a table locked?",
    "redis": "is Redis frozen, or the network to it cut off?",
    "broker": "is RabbitMQ frozen, or the network to it cut off?",
    "web": "is the web server frozen? `stoker restart web`, or kill -9 it",
}


def _collect(name: str, group: Group, into: list[Finding]) -> None:
    try:
        for finding in group():
            into.append(finding)  # noqa: PERF402  # each counts as soon as it is there
    except Exception as error:  # noqa: BLE001  # one part that cannot be looked at must not hide the others
        says = f"it could not be looked at: {type(error).__name__}: {str(error).partition(chr(10))[0]}"
        into.append(problem(name, says, "report this as a defect, unless the text says what to do"))


def secrets_of(settings: Settings) -> list[str]:
    """Return what must not be printed."""
    urls = (urlsplit(getattr(settings, name)) for name in _ADDRESSES if getattr(settings, name))
    passwords = [part.password for part in urls if part.password]
    known = [*passwords, *map(unquote, passwords)]
    known += [part for name in _SECRETS for part in getattr(settings, name).split()]
    # What is shorter stands in other words too.
    return [secret for secret in known if len(secret) >= _SHORTEST]


def _without(secrets: list[str], finding: Finding) -> Finding:
    """Return a finding in which no secret stands, whatever a library wrote into its message."""
    says, do = finding.says, finding.do
    for secret in secrets:
        says, do = says.replace(secret, "***"), do.replace(secret, "***")
    return Finding(finding.check, finding.status, says, do)
