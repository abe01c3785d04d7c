"""`stoker restart`: the processes of a service that runs, one after the other, each well again before the next one.

A process is asked to end, as at the end of the service: a web server answers what it has begun, an engine drains. Its
supervisor (`stoker up`, `stoker engine`) starts it again, with the code that is there now.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import redis
from celery import Celery

from models import diagnosis, engines
from models.db import Database
from models.errors import DatabaseUnavailable
from stoker.checks_broker import FAILURES, queues
from stoker.checks_web import takes_jobs
from stoker.processes import Ledger, Recorded, is_locked
from stoker.service_settings import written_down
from stoker.settings import Settings
from stoker.supervisor import MOST_BACKOFF

ORDER = ("beat", "collector", "worker", "bulk", "web", "engine")
"""Without Redis, which keeps its version: it is restarted only when it is named."""

MARGIN = 60.0
"""Seconds that a process may take to end, beyond what it may use to drain, and again to be well."""
_LOOK_EVERY = 0.1
_RINGS = {"worker": ("tasks.webhook.deliver", "default"), "bulk": ("tasks.retention.retain", "bulk")}
"""A harmless task for each process that is well when it takes one, and its queue."""

Say = Callable[[str], object]


class RestartError(Exception):
    """A process cannot be restarted, or is not well again; the text says what to do."""


@dataclass(frozen=True, slots=True)
class _Target:
    """A process to restart: how it is called here, which kind it is, and where its supervisor writes it down."""

    name: str
    kind: str
    folder: Path
    ledger: Ledger

    def process(self) -> Recorded | None:
        """Return the process as it runs now."""
        return next((found for found in self.ledger.read() if found.name == self.kind and found.alive), None)


def restart(data: Path, names: Iterable[str], say: Say) -> None:
    """Restart processes of the service of a data folder; without names all but Redis. Raises RestartError."""
    settings = written_down(data)
    if settings is None or not is_locked(data / "run/lock"):
        raise RestartError(f"no `stoker up` runs in {data}: nobody would start its processes again")
    known = _targets(data)
    asked = list(names) or [name for name in known if name != "redis"]
    if unknown := [name for name in asked if name not in known]:
        raise RestartError(f"there is no process {unknown[0]}: choose from {', '.join(known)}")
    for name in asked:
        began = time.monotonic()
        _restart(known[name], settings)
        say(f"{name}: restarted ({time.monotonic() - began:.1f} s)")


def _targets(data: Path) -> dict[str, _Target]:
    """Return what there is to restart, in the order in which it is done: `stoker up`'s own, then the other engines."""
    ours = Ledger(data / "run/processes.json")
    found = {name: _Target(name, name, data / "logs", ours) for name in (*ORDER, "redis")}
    for folder in sorted(data.glob("engines/*/")):
        if is_locked(folder / "lock"):
            found[folder.name] = _Target(folder.name, "engine", folder, Ledger(folder / "processes.json"))
    return found


def _restart(target: _Target, settings: Settings) -> None:
    old = target.process()
    if old is None:
        raise RestartError(f"{target.name} is down, and being started again: see {target.folder}/{target.kind}.log")
    with closing(Database(settings.database, pool_size=1)) as database:
        swept = _database_clock(database)
        os.kill(old.pid, signal.SIGTERM)
        patience = settings.drain_timeout + MARGIN
        do = f"it ignores that it is asked to end: kill -9 {old.pid}"
        _wait(lambda: (new := target.process()) is not None and new.pid != old.pid, patience, target, do)
        patience = settings.start_timeout if target.kind == "engine" else MARGIN
        do = f"see {target.folder}/{target.kind}.log, and `stoker doctor`"
        _ring(target.kind, settings)
        _wait(lambda: _is_well(target, settings, database, swept), patience + MOST_BACKOFF, target, do)


def _wait(true: Callable[[], bool], seconds: float, target: _Target, do: str) -> None:
    until = time.monotonic() + seconds
    while not true():
        if time.monotonic() > until:
            raise RestartError(f"{target.name} is not back after {seconds:.0f} s: {do}")
        time.sleep(_LOOK_EVERY)


def _is_well(target: _Target, settings: Settings, database: Database, since: float) -> bool:
    """Tell whether the new process does its work."""
    process = target.process()
    if process is None:
        return False
    try:
        if target.kind == "web":
            return takes_jobs(settings)
        if target.kind == "engine":
            return _is_open(target, settings, database, process.pid)
        if target.kind in {"collector", "beat"}:
            with database.reading() as tx:
                age = diagnosis.last_sweep(tx)
                return age is not None and diagnosis.clock(tx) - age > since
        return _is_heard(target.kind, settings)
    except (DatabaseUnavailable, redis.RedisError, *FAILURES):
        return False


def _is_open(target: _Target, settings: Settings, database: Database, pid: int) -> bool:
    name = settings.engine_name if target.name == "engine" else target.name
    with database.reading() as tx:
        mine = engines.predecessor(tx, name)
        live = any(row.id == name for row in engines.live(tx, settings.engine_gone_after))
    return live and mine is not None and mine.pid == pid


def _is_heard(kind: str, settings: Settings) -> bool:
    """Tell whether Redis answers and, for a worker, whether what was rung for it was taken from the broker."""
    with redis.Redis.from_url(settings.redis_client_url, socket_timeout=1, socket_connect_timeout=1) as client:
        if kind not in _RINGS:
            return bool(client.ping())
        queue = _RINGS[kind][1]
        if not settings.broker_url:
            return bool(client.llen(queue) == 0)
    found = queues(settings, [queue])[queue]
    return found.workers > 0 and found.messages == 0


def _ring(kind: str, settings: Settings) -> None:
    """Ask for a harmless task, so that it can be seen whether the new process takes it."""
    if kind in _RINGS:
        task, queue = _RINGS[kind]
        with Celery("stoker-restart", broker=settings.broker, set_as_current=False) as celery:
            celery.conf.broker_transport_options = settings.broker_options
            celery.send_task(task, queue=queue, ignore_result=True, retry=False, expires=MARGIN)


def _database_clock(database: Database) -> float:
    try:
        with database.reading() as tx:
            return diagnosis.clock(tx)
    except DatabaseUnavailable as error:
        raise RestartError(f"the database does not answer, so it is no time to restart anything: {error}") from None
