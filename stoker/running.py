"""A service that runs: from the first process to `ready`, what happens when one dies, and the end."""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stoker import engine_rows
from stoker.broker import Broker
from stoker.services import Service, services
from stoker.settings import Settings
from stoker.supervisor import Exit, Signals, Supervisor

if TYPE_CHECKING:
    from models.db import Database

CANNOT_START = 78
"""The status of an engine that cannot start with these settings."""

_TRIES = 3
_LOOK_EVERY = 0.1
_REPORT_EVERY = 10.0
_REDIS_PATIENCE = 30.0
_DRAIN_MARGIN = 10.0
_GRACE = 15.0
_ANSI = re.compile(r"\x1b\[[0-9;]*m")


class UpError(Exception):
    """The service cannot run; the text says why, in one line. `status` is the exit status."""

    status = 1


class EngineCannotStart(UpError):
    """The engine cannot start with these settings."""

    status = CANNOT_START


@dataclass(slots=True)
class Running:
    """The processes of one machine and what a person is told of them."""

    settings: Settings
    supervisor: Supervisor
    signals: Signals
    say: Callable[[str], None]
    exits: Counter[str] = field(default_factory=Counter)
    told: dict[str, str] = field(default_factory=dict)
    ready: bool = False

    def run(self, broker: Broker | None, listener: socket.socket) -> int:
        """Start everything, keep it running until somebody asks for the end, stop it; return the exit status."""
        try:
            if broker is not None:
                self._start_redis(broker)
            for service in services(self.settings, os.environ, listener.fileno()):
                self.supervisor.start(service)
            self.say(f"started: {', '.join(self.supervisor.names())}; their logs: {self.settings.data / 'logs'}")
            self._become_ready()
            if self.ready:
                self.say(f"ready {self._url()}")
            while not self.signals.asked:
                self._tend(2.0)
            return 0 if self.ready else 130
        finally:
            self._stop(listener)

    def _start_redis(self, broker: Broker) -> None:
        started = time.monotonic()
        folder = self.settings.data / "redis"
        self.supervisor.start(Service("redis", tuple(broker.command), folder, dict(os.environ)))
        while not broker.answers():
            for gone in self.supervisor.tend(0.02):
                self.exits["redis"] += 1
                if self.exits["redis"] == _TRIES - 1 and (folder / "appendonlydir").exists():
                    self.say(
                        f"redis: cannot read its data, which only holds wake-up calls: moved to {broker.set_aside()}"
                    )
                elif self.exits["redis"] >= _TRIES:
                    raise UpError(self._failed(gone))
            if time.monotonic() - started > _REDIS_PATIENCE:
                raise UpError(f"redis does not answer; see {self.settings.data / 'logs/redis.log'}")
        self.say(f"redis: ready ({time.monotonic() - started:.1f} s)")

    def _become_ready(self) -> None:
        """Wait until the web server answers and the engine is open for work."""
        from models.db import Database

        started = reported = time.monotonic()
        waiting: dict[str, Callable[[], bool]] = {
            "web": self._web_answers,
            "engine": lambda: self._engine_live(database),
        }
        self.say(f"engine: loading {self.settings.served_name or 'its models'} ({self.settings.engine})")
        with closing(Database(self.settings.database, pool_size=1)) as database:
            while waiting and not self.signals.asked:
                self._tend(_LOOK_EVERY)
                for name in [name for name, check in waiting.items() if check()]:
                    del waiting[name]
                    self.say(f"{name}: ready ({time.monotonic() - started:.1f} s)")
                if waiting and time.monotonic() - reported > _REPORT_EVERY:
                    reported = time.monotonic()
                    for name in waiting:
                        self.say(f"{name}: still starting, {reported - started:.0f} s{self._news(name)}")
        self.ready = not waiting

    def _tend(self, seconds: float) -> None:
        for gone in self.supervisor.tend(seconds):
            self.exits[gone.name] += 1
            if not self.ready:
                if gone.name == "engine" and gone.status == CANNOT_START:
                    raise EngineCannotStart(self._failed(gone))
                # What names its reason and is no engine (which may merely have failed) ends for the same reason again.
                if self.exits[gone.name] >= _TRIES or (gone.name != "engine" and _reason(gone.said)):
                    raise UpError(self._failed(gone))
            why = _reason(gone.said)
            end = "ended" if gone.status == 0 else f"died ({gone.how})"
            self.say(f"{gone.name}: {end}{why and f': {why}'}; starting again in {gone.delay:.1f} s")

    def _failed(self, gone: Exit) -> str:
        why = _reason(gone.said)
        if gone.status == CANNOT_START and why:
            return f"the engine cannot start: {why}"
        last = why or _last_line(gone.said) or "it wrote nothing"
        return f"{gone.name} does not start ({gone.how}): {last}; see {self.settings.data / 'logs' / gone.name}.log"

    def _news(self, name: str) -> str:
        """Return what a process said last, once."""
        last = _last_event(self.supervisor.said(name))
        new = last != self.told.get(name)
        self.told[name] = last
        return f": {last}" if last and new else ""

    def _web_answers(self) -> bool:
        host, port = self._address()
        connection = http.client.HTTPConnection(host, port, timeout=1)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == http.client.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _engine_live(self, database: Database) -> bool:
        """Tell whether this very process of the engine is open for work: a killed one leaves its row behind."""
        from models import engines
        from models.errors import DatabaseUnavailable

        name = self.settings.engine_name
        try:
            with database.reading() as tx:
                live = any(row.id == name for row in engines.live(tx, self.settings.engine_gone_after))
                mine = engines.predecessor(tx, name) if live else None
        except DatabaseUnavailable as error:
            self.say(f"database: {error}")
            return False
        return mine is not None and mine.pid == self.supervisor.pid("engine")

    def _address(self) -> tuple[str, int]:
        anywhere = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # noqa: S104  # asked of, not listened on
        return anywhere.get(self.settings.host, self.settings.host), self.settings.port

    def _url(self) -> str:
        host, port = self._address()
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def _stop(self, listener: socket.socket) -> None:
        """End everything: the engine first, since its answers need the others' company least of all."""
        drain = self.settings.drain_timeout
        self.signals.asked = 0
        self.say(f"stopping: running jobs have {drain:g} s to finish (again: at once)")
        killed = self.supervisor.stop(["engine"], drain + _DRAIN_MARGIN)
        if killed:
            engine_rows.give_back(self.settings)  # before a sweeper finds its jobs under an engine that died
        listener.close()
        killed += self.supervisor.stop(["web", "collector", "worker", "bulk", "beat"], _GRACE)
        killed += self.supervisor.stop(["redis"], _GRACE)
        self.say(f"stopped{' (killed: ' + ', '.join(killed) + ')' if killed else ''}")


def _reason(said: str) -> str:
    """Return what a process said on purpose before it ended: the line `stoker engine: ...`."""
    found = re.findall(r"^stoker(?: [a-z]+)?: (.*)$", said, re.MULTILINE)
    return str(found[-1]).strip() if found else ""


def _last_line(said: str, most: int = 160) -> str:
    """Return the last line of a log, without colours."""
    lines = [line.strip() for line in _ANSI.sub("", said).splitlines() if line.strip()]
    return lines[-1][:most] if lines else ""


def _last_event(said: str) -> str:
    """Return what the last JSON line of a log tells."""
    events = [line for line in said.splitlines() if line.startswith("{")]
    try:
        return str(json.loads(events[-1])["event"]) if events else ""
    except (ValueError, KeyError):
        return ""
