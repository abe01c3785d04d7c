"""Keeps a handful of processes running: each in a session of its own, started again when it dies, ended as a whole.

Every process is written down before it runs its first instruction, so that none outlives a supervisor that is killed:
the next one ends what is left (`Ledger.reap`).
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import IO, Self

from stoker.processes import Ledger, Recorded, kill_session, sessions
from stoker.services import Service
from tasks.proc import look

FIRST_BACKOFF = 0.2
MOST_BACKOFF = 10.0
SETTLED_AFTER = 5.0
_LOOK_EVERY = 2.0
_LOG_LIMIT = 50_000_000
_PEEK = os.WEXITED | os.WNOHANG | os.WNOWAIT

# The program starts only once its pid is written down: the line that it waits for comes after that. Without a
# supervisor no line comes, and nothing starts.
_GATE = 'read -r _ && exec "$@" </dev/null'


@dataclass(frozen=True, slots=True)
class Exit:
    """A process that ended. `said` is the end of what it wrote since its start; it starts again in `delay` seconds."""

    name: str
    status: int
    lived: float
    said: str = field(repr=False)
    delay: float

    @property
    def how(self) -> str:
        """Say how it ended."""
        return f"signal {signal.Signals(-self.status).name}" if self.status < 0 else f"status {self.status}"


class Signals:
    """Turns the signals of this process into something to wait for: a child ended, somebody asks for the end."""

    def __init__(self) -> None:
        """Prepare; entering it installs the handlers."""
        self.asked = 0
        self.interrupting = False
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)

    def __enter__(self) -> Self:
        """Install the handlers; a hang-up that is ignored (nohup) stays ignored."""
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._before = {signal.SIGCHLD: signal.signal(signal.SIGCHLD, lambda *_: None)}
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        """Put back what was there before."""
        signal.set_wakeup_fd(-1)
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self._read)
        os.close(self._write)

    def wait(self, seconds: float) -> None:
        """Sleep until a signal comes, `seconds` at most."""
        if select.select([self._read], [], [], max(0.0, seconds))[0]:
            with suppress(BlockingIOError):
                while os.read(self._read, 1024):
                    pass

    def _ask(self, _number: int, _frame: FrameType | None) -> None:
        self.asked += 1
        if self.interrupting:
            raise KeyboardInterrupt


@dataclass(slots=True)
class _Child:
    service: Service
    log: Path
    process: subprocess.Popen[bytes] | None = None
    recorded: Recorded | None = None
    started: float = 0.0
    log_from: int = 0
    failures: int = 0
    due: float = 0.0


class Supervisor:
    """The processes of one data folder."""

    def __init__(
        self,
        ledger: Ledger,
        logs: Path,
        signals: Signals,
        say: Callable[[str], None],
        engine_opened: Callable[[int], bool] = lambda _pid: False,
    ) -> None:
        """Keep account in `ledger`; each process writes to `logs`/<name>.log; `say` gets what a person must know.

        `engine_opened` tells of an engine's pid whether that process got as far as taking work.
        """
        self._ledger = ledger
        self._engine_opened = engine_opened
        self._logs = logs
        self._signals = signals
        self._say = say
        self._children: dict[str, _Child] = {}
        self._looked = 0.0
        self._unwritten = False

    def start(self, service: Service) -> None:
        """Start a process, and from now on whenever it has died."""
        child = _Child(service, self._logs / f"{service.name}.log")
        self._children[service.name] = child
        self._launch(child)

    def names(self) -> list[str]:
        """Return the names of the processes, in the order in which they were started."""
        return list(self._children)

    def pid(self, name: str) -> int | None:
        """Return the pid of a process, None while it is down."""
        process = self._children[name].process
        return process.pid if process is not None else None

    def said(self, name: str, most: int = 65_536) -> str:
        """Return the end of what a process wrote since its last start, up to `most` bytes."""
        child = self._children[name]
        with child.log.open("rb") as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(child.log_from, size - most))
            return log.read().decode(errors="replace")

    def tend(self, seconds: float) -> list[Exit]:
        """Wait up to `seconds` for something to happen; return what ended, and start again what is due."""
        due = [child.due for child in self._children.values() if child.process is None]
        self._signals.wait(min([seconds, *(at - time.monotonic() for at in due)]))
        exits = self._collect(self._children.values())
        for child in self._children.values():
            if child.process is None and time.monotonic() >= child.due:
                self._launch(child)
        if time.monotonic() - self._looked >= _LOOK_EVERY:
            self._look_around()
        return exits

    def stop(self, names: Iterable[str], grace: float) -> list[str]:
        """Ask processes to end, wait up to `grace` seconds, kill the others; return those.

        A signal that comes meanwhile cuts the wait short.
        """
        stopping = [self._children[name] for name in names if name in self._children]
        for child in stopping:
            if child.process is not None:
                # Not the whole session: the leader knows in which order its own processes end.
                os.kill(child.process.pid, signal.SIGTERM)
        until = time.monotonic() + grace
        while any(child.process for child in stopping) and time.monotonic() < until and not self._signals.asked:
            self._signals.wait(min(0.5, until - time.monotonic()))
            self._collect(stopping)
        killed = [child for child in stopping if child.process is not None]
        for child in killed:
            self._end(child)
        for child in stopping:
            del self._children[child.service.name]
        self._record()
        return [child.service.name for child in killed]

    def _launch(self, child: _Child) -> None:
        if child.log.exists() and child.log.stat().st_size > _LOG_LIMIT:
            child.log.replace(child.log.with_suffix(".log.1"))
        with child.log.open("ab") as log:
            child.log_from = log.seek(0, os.SEEK_END)
            child.process = process = _spawn(child.service, log)
        child.started = time.monotonic()
        if (found := look(process.pid)) is not None:
            child.recorded = Recorded(child.service.name, found.pid, found.start)
        self._record()
        if process.stdin is not None:
            with suppress(BrokenPipeError), process.stdin as gate:
                gate.write(b"go\n")

    def _collect(self, children: Iterable[_Child]) -> list[Exit]:
        """Take note of what ended, and end what is left of its session."""
        exits = []
        for child in children:
            process = child.process
            # The leader stays a zombie until its session is gone: its pid is given to nobody else.
            if process is None or os.waitid(os.P_PID, process.pid, _PEEK) is None:
                continue
            status = self._end(child)
            lived = time.monotonic() - child.started
            # Delays are for what cannot start. An engine that died of what it ran is needed again at once.
            opened = child.service.name == "engine" and self._engine_opened(process.pid)
            child.failures = 0 if lived > SETTLED_AFTER or opened else child.failures + 1
            delay = min(MOST_BACKOFF, FIRST_BACKOFF * 2 ** max(0, child.failures - 1))
            child.due = time.monotonic() + delay
            exits.append(Exit(child.service.name, status, lived, self.said(child.service.name), delay))
        if exits:
            self._record()
        return exits

    def _end(self, child: _Child) -> int:
        """Kill the session of a process that is dead or has to be; return its status."""
        assert child.process is not None  # noqa: S101  # the callers looked
        if not kill_session(child.process.pid):
            self._say(f"{child.service.name}: a process of it does not end; the machine may need a restart")
        status = child.process.wait()
        child.process = child.recorded = None
        return status

    def _look_around(self) -> None:
        """Write down who else is in the sessions: once their leader is gone, they are known by that."""
        self._looked = time.monotonic()
        alive = [child.recorded for child in self._children.values() if child.recorded is not None]
        found = sessions([leader.pid for leader in alive])
        for leader in alive:
            members = tuple(sorted((it.pid, it.start) for it in found[leader.pid] if it.pid != leader.pid))
            if members != leader.members:
                self._children[leader.name].recorded = replace(leader, members=members)
        if self._unwritten or alive != [
            child.recorded for child in self._children.values() if child.recorded is not None
        ]:
            self._record()

    def _record(self) -> None:
        """Write the processes down; a disk that is full is told once, tried again later, and stops nothing."""
        try:
            self._ledger.write([child.recorded for child in self._children.values() if child.recorded is not None])
        except OSError as error:
            if not self._unwritten:
                self._say(f"the list of processes cannot be written: {error.strerror}; going on")
            self._unwritten = True
        else:
            self._unwritten = False


def _spawn(service: Service, log: IO[bytes]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        ["/bin/sh", "-c", _GATE, service.name, *service.command],
        stdin=subprocess.PIPE,
        stdout=log,
        stderr=subprocess.STDOUT,
        cwd=service.folder,
        env=dict(service.environment),
        pass_fds=service.inherit,
        start_new_session=True,
    )
