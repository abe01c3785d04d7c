"""The processes of a supervisor: which are its own, which outlived it, and how a whole session of them ends.

A process is the one that was recorded only when its start time and the machine's boot match as well. The number of a
session is not given away while a member of it lives, so one member that matches proves the session.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from tasks.proc import Process, boot, look, running


@dataclass(frozen=True, slots=True)
class Recorded:
    """A process that leads a session, as it was written down; `members` are (pid, start) of the rest of the session."""

    name: str
    pid: int
    start: int
    members: tuple[tuple[int, int], ...] = ()

    @property
    def alive(self) -> bool:
        """Tell whether the leader itself still runs."""
        found = look(self.pid)
        return found is not None and found.start == self.start

    @property
    def left(self) -> bool:
        """Tell whether the leader or a member that was seen in its session still runs there."""
        return self.alive or any(
            found is not None and found.start == start and found.session == self.pid
            for found, start in ((look(pid), start) for pid, start in self.members)
        )


def sessions(leaders: Sequence[int]) -> dict[int, list[Process]]:
    """Return the living processes of these sessions, by the session's number; one look at the machine."""
    members: dict[int, list[Process]] = {leader: [] for leader in leaders}
    for process in running():
        if process.session in members:
            members[process.session].append(process)
    return members


def kill_session(leader: int, *, within: float = 10.0) -> bool:
    """Kill whatever is in a session and wait until it is gone; False when something still is after `within` seconds.

    The caller vouches that the session is ours.
    """
    until = time.monotonic() + within
    while members := sessions([leader])[leader]:
        for group in {member.group for member in members}:
            with suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
        if time.monotonic() > until:
            return False
        time.sleep(0.01)
    return True


@contextmanager
def locked(path: Path) -> Iterator[bool]:
    """Hold the lock of a file, until this process ends at the latest; yield False while another process holds it."""
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ours = True
        except BlockingIOError:
            ours = False
        yield ours


def is_locked(path: Path) -> bool:
    """Tell whether somebody holds the lock of a file."""
    try:
        with path.open() as file:
            # Shared, and for a moment only: it is in the way of nobody but one who starts in this very moment.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


class Ledger:
    """The file in which a supervisor writes down its processes, for the next one and for `stoker ps`."""

    def __init__(self, path: Path) -> None:
        """Use the file `path`; its folder must exist before the first `write`."""
        self._path = path

    def write(self, processes: Sequence[Recorded]) -> None:
        """Replace the list. Whoever reads sees the old one or the new one, whole."""
        new = self._path.with_suffix(".new")
        new.write_text(json.dumps({"boot": boot(), "processes": [asdict(process) for process in processes]}))
        new.replace(self._path)

    def read(self) -> list[Recorded]:
        """Return what was written down since the machine booted."""
        try:
            found = json.loads(self._path.read_text())
            if found["boot"] != boot():
                return []
            return [
                Recorded(**(item | {"members": tuple((pid, start) for pid, start in item["members"])}))
                for item in found["processes"]
            ]
        except FileNotFoundError:
            return []
        except (ValueError, KeyError, TypeError):
            # Replaced as a whole, it is only ever broken by a power cut, which left none of its processes either.
            return []

    def reap(self) -> list[Recorded]:
        """Kill what is left of the processes written down by a supervisor that is gone; return those that were left."""
        left = [process for process in self.read() if process.left]
        for process in left:
            kill_session(process.pid)
        return left
