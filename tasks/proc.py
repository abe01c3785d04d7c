"""Processes of this machine, as `/proc` tells of them.

A pid alone proves nothing, numbers are given away again: only with its start time and the machine's boot does it name
one process.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
_GROUP, _SESSION, _START = 2, 3, 19  # fields of /proc/PID/stat, counted behind the name


@dataclass(frozen=True, slots=True)
class Process:
    """A living process. `start` is in clock ticks since boot: with pid and boot, its identity."""

    pid: int
    start: int
    group: int
    session: int


def boot() -> str:
    """Return what tells this boot of the machine from any other."""
    return (PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def look(pid: int) -> Process | None:
    """Return a process, None when there is none; one that has ended and only waits for its parent is none."""
    try:
        text = (PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()
    if fields[0] in {"Z", "X"}:
        return None
    return Process(pid, int(fields[_START]), int(fields[_GROUP]), int(fields[_SESSION]))


def running() -> Iterator[Process]:
    """Yield every process of the machine."""
    for entry in PROC.iterdir():
        if entry.name.isdigit() and (found := look(int(entry.name))) is not None:
            yield found
