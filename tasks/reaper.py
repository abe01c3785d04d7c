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
from tasks.proc import boot, look, running

log = structlog.get_logger(__name__)


def process_start(pid: int) -> str:
    """Return boot and start time (clock ticks) of a process: with the pid, its identity."""
    process = look(pid)
    return f"{boot()}:{process.start if process else 0}"


def incarnation(engine: str, kind: str) -> Incarnation:
    """Return this process as an incarnation of an engine, at the head of a process group of its own."""
    if os.getpgrp() != os.getpid():
        os.setpgid(0, 0)
    pid = os.getpid()
    return Incarnation(engine, new_id("run"), kind, socket.gethostname(), pid, os.getpgrp(), process_start(pid))


def may_live(old: Incarnation) -> bool:
    """Tell whether the process of an incarnation still runs; of another machine's nothing is known, so it may."""
    return old.host != socket.gethostname() or process_start(old.pid) == old.process_start


def survivors(old: Incarnation) -> list[int]:
    """Return the living processes of an incarnation that ran on this machine since it booted, never our own."""
    booted, _, start = old.process_start.rpartition(":")
    if old.host != socket.gethostname() or booted != boot() or old.process_group == os.getpgrp():
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
