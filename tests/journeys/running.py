"""A `stoker up` as a person runs it, for the journeys."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue

from stoker.client import Client, Job
from stoker.processes import Ledger
from tasks.proc import running
from tests.tasks.inprocess import until

READY_WITHIN = 180.0
NAMES = ["redis", "engine", "web", "collector", "worker", "bulk", "beat"]
STOKER = [sys.executable, "-m", "stoker.cli"]


class Up:
    """A `stoker up` on a data folder, as a person runs it in a terminal of its own."""

    def __init__(self, data: Path, *options: str, **environment: str) -> None:
        self.data = data
        self.address = ""
        self.lines: list[str] = []
        self._ready: SimpleQueue[str | None] = SimpleQueue()
        self.process = subprocess.Popen(
            [*STOKER, "up", "--port", "0", "--data", str(data), *(options or ("--engine", "fake"))],
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout:
            for line in self.process.stdout:
                self.lines.append(line.rstrip())
                if line.startswith("ready "):
                    self._ready.put(line.split()[1])
        self._ready.put(None)

    def url(self) -> str:
        """Return the address once it is ready."""
        found = self._ready.get(timeout=READY_WITHIN)
        assert found, "\n".join(self.lines)
        return found

    def pids(self) -> dict[str, int]:
        """Return what `stoker ps` lists, without its start: on a busy machine that takes longer than many a job."""
        listed = Ledger(self.data / "run/processes.json").read()
        return {process.name: process.pid for process in listed if process.alive}

    def kill(self, name: str, how: signal.Signals = signal.SIGKILL) -> int:
        """Send a signal to the whole group of a process, once it runs; return its pid."""
        until(lambda: name in self.pids(), 60)
        pid = self.pids()[name]
        os.killpg(pid, how)
        return pid

    def end(self, how: signal.Signals = signal.SIGINT) -> int:
        """Send a signal and return the status with which it ended."""
        self.process.send_signal(how)
        status = self.process.wait(120)
        self._listener.join(10)
        return status


def stands_still(pid: int) -> bool:
    """Tell whether every thread of a process is stopped; a signal only asks for that."""
    try:
        stats = [entry.read_text(errors="replace") for entry in Path("/proc", str(pid), "task").glob("*/stat")]
    except OSError:  # a thread has ended between the list and the look
        return False
    return all(stat.rpartition(")")[2].split()[0] == "T" for stat in stats)


def left_of(data: Path) -> list[int]:
    """Return every living process of a data folder, its `stoker up` first: told by /proc, not by our own books."""
    return sorted(process.pid for process in running() if _is_of(process.pid, data))


def end_whatever_is_left(data: Path) -> None:
    """Kill what still runs on a data folder."""
    for pid in left_of(data):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _is_of(pid: int, data: Path) -> bool:
    entry = Path("/proc", str(pid))
    with suppress(OSError):
        return str(data).encode() in (entry / "cmdline").read_bytes().split(b"\0") or (
            (entry / "cwd").readlink().is_relative_to(data)
        )
    return False


def finished(client: Client, **params: object) -> Job:
    """Hand in a job and return it when it has ended."""
    job = client.wait(client.submit(**params).id, timeout=120)
    assert job.state == "succeeded", job
    return job
