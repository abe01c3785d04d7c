"""What a killed engine process left behind: found by its process group, and ended.

`kill -9` of the worker leaves vLLM's EngineCore alive, holding the GPU's memory. The group outlives its leader, and
its number is not given away while a member lives; a process that is older than the recorded start is not of it.
"""

from __future__ import annotations

import os
import signal
import socket
import time

import structlog

from models.db import new_id
from models.engines import Incarnation
from tasks.proc import PROC, boot, look, running

log = structlog.get_logger(__name__)


def process_start(pid: int) -> str:
    """Return boot, container (its pids are its own) and start time (clock ticks) of a process: its identity."""
    process = look(pid)
    return f"{boot()}.{_container()}:{process.start if process else 0}"


def _container() -> str:
    return (PROC / "self/ns/pid").readlink().name.strip("pid:[]")


def incarnation(engine: str, kind: str) -> Incarnation:
    """Return this process as an incarnation of an engine, at the head of a process group of its own."""
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)
    pid = os.getpid()
    return Incarnation(engine, new_id("run"), kind, socket.gethostname(), pid, os.getpgrp(), process_start(pid))


def may_live(old: Incarnation) -> bool:
    """Tell whether the process of an incarnation still runs; of another machine's nothing is known, so it may."""
    return old.host != socket.gethostname() or process_start(old.pid) == old.process_start


def has_died(old: Incarnation) -> bool:
    """Tell whether the process of an incarnation is known to be gone: it was one of those that can be seen here."""
    seen = old.host == socket.gethostname() and old.process_start.partition(":")[0] == f"{boot()}.{_container()}"
    return seen and not may_live(old)


def rebooted(old: Incarnation) -> bool:
    """Tell whether the machine has booted since an incarnation of this host started."""
    return not old.process_start.startswith(boot())


def survivors(old: Incarnation) -> list[int]:
    """Return the living processes of an incarnation that ran on this machine since it booted, never our own."""
    start = old.process_start.rpartition(":")[2]
    if old.host != socket.gethostname() or rebooted(old) or old.process_group == os.getpgrp():
        return []
    leader = look(old.process_group)
    if leader is not None and leader.start != int(start):
        return []  # another process got the number since: its group is none of ours
    return [process.pid for process in running() if process.group == old.process_group and process.start >= int(start)]


def reap(old: Incarnation, *, patience: float = 5.0) -> list[int]:
    """Kill what is left of an incarnation and wait until it is gone; return the pids."""
    killed = survivors(old)
    for pid in killed:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    until = time.monotonic() + patience
    while survivors(old) and time.monotonic() < until:
        time.sleep(0.02)
    if killed:
        log.warning("ended what an earlier engine process left", pids=killed, engine=old.engine)
    return killed
