"""How much memory each process takes while something runs, read from /proc."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.service import Service, tree

EVERY = 0.25
MIB = 1024


def resident(root: int) -> int:
    """Return the bytes of memory that a process and its descendants have for themselves."""
    total = 0
    for pid in tree(root):
        with suppress(FileNotFoundError, ProcessLookupError, KeyError):
            total += _status(pid)["RssAnon"] * 1024
    return total


@dataclass
class Process:
    """One process's memory in KiB: what is its own at first and at most, and the peak that the kernel keeps."""

    name: str
    first: int
    most: int
    peak: int

    @property
    def growth(self) -> int:
        """Return by how much its own memory grew."""
        return self.most - self.first


@dataclass
class Memory:
    """What was seen of every process since the beginning, by pid."""

    processes: dict[int, Process] = field(default_factory=dict)

    def look(self, up: Service) -> None:
        """Look once at every process of a service, the children and the servers included."""
        for name, root in up.roots().items():
            for pid in tree(root):
                with suppress(FileNotFoundError, ProcessLookupError, KeyError):
                    self._note(name, pid, _status(pid))

    def _note(self, name: str, pid: int, found: dict[str, int]) -> None:
        own = found["RssAnon"]
        seen = self.processes.setdefault(pid, Process(name, own, own, 0))
        seen.most, seen.peak = max(seen.most, own), max(seen.peak, found["VmHWM"])

    def table(self) -> tuple[list[str], list[list[object]]]:
        """Return head and rows: for each name, the process that grew most."""
        largest: dict[str, Process] = {}
        for one in self.processes.values():
            if one.name not in largest or one.growth > largest[one.name].growth:
                largest[one.name] = one
        peaks = {name: max(one.peak for one in self.processes.values() if one.name == name) for name in largest}
        rows = [
            [name, one.first / MIB, one.most / MIB, one.growth / MIB, peaks[name] / MIB]
            for name, one in sorted(largest.items(), key=lambda item: -item[1].growth)
        ]
        return ["process", "own memory before, MiB", "at most", "growth", "peak with what is shared (VmHWM)"], rows


@contextmanager
def watched(up: Service) -> Iterator[Memory]:
    """Look at the memory of every process of a service during the `with`, four times a second."""
    memory = Memory()
    memory.look(up)
    ended = threading.Event()

    def work() -> None:
        while not ended.wait(EVERY):
            memory.look(up)

    thread = threading.Thread(target=work, name="memory")
    thread.start()
    try:
        yield memory
    finally:
        ended.set()
        thread.join()
        memory.look(up)


def _status(pid: int) -> dict[str, int]:
    lines = Path("/proc", str(pid), "status").read_text().splitlines()
    pairs = (line.partition(":") for line in lines if line.endswith(" kB"))
    return {name: int(value.split()[0]) for name, _, value in pairs}
