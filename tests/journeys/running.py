"""A `stoker up` as a person runs it, for the journeys."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue

from stoker.client import Client, Job
from tasks.proc import running

READY_WITHIN = 90.0
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
        """Return what `stoker ps --json` lists."""
        ran = subprocess.run(
            [*STOKER, "ps", "--json", "--data", str(self.data)], capture_output=True, text=True, check=True
        )
        return {item["name"]: item["pid"] for item in json.loads(ran.stdout)}

    def end(self, how: signal.Signals = signal.SIGINT) -> int:
        """Send a signal and return the status with which it ended."""
        self.process.send_signal(how)
        status = self.process.wait(60)
        self._listener.join(10)
        return status


def stands_still(pid: int) -> bool:
    """Tell whether every thread of a process is stopped; a signal only asks for that."""
    stats = [entry.read_text(errors="replace") for entry in Path("/proc", str(pid), "task").glob("*/stat")]
    return all(stat.rpartition(")")[2].split()[0] == "T" for stat in stats)


def left_of(data: Path) -> list[int]:
    """Return every living process of a data folder, its `stoker up` first: told by /proc, not by our own books."""
    return sorted(process.pid for process in running() if _is_of(process.pid, data))


def _is_of(pid: int, data: Path) -> bool:
    entry = Path("/proc", str(pid))
    with suppress(OSError):
        return str(data).encode() in (entry / "cmdline").read_bytes().split(b"\0") or (
            (entry / "cwd").readlink().is_relative_to(data)
        )
    return False


def finished(client: Client, **params: object) -> Job:
    """Hand in a job and return it when it has ended."""
    job = client.wait(client.submit(**params).id, timeout=60)
    assert job.state == "succeeded", job
    return job
