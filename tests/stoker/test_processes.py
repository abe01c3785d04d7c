"""Which processes are ours: only what matches in pid, start time and boot is ever killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from stoker.processes import Ledger, Recorded, kill_session, sessions
from tasks.proc import Process, boot, look

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]
WITH_CHILD = (
    "import subprocess, sys, time; p = subprocess.Popen(sys.argv[1:]); print(p.pid, flush=True); time.sleep(60)"
)


@pytest.fixture
def leader() -> Iterator[subprocess.Popen[bytes]]:
    """Return a process that leads a session and sleeps."""
    process = subprocess.Popen(SLEEP, start_new_session=True)
    yield process
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.fixture
def orphan() -> Iterator[tuple[int, Process]]:
    """Return a session whose leader is dead, and the one process that is left in it."""
    leader = subprocess.Popen(
        [sys.executable, "-c", WITH_CHILD, *SLEEP], start_new_session=True, stdout=subprocess.PIPE
    )
    with leader:
        assert leader.stdout is not None
        child = int(leader.stdout.readline())
        leader.kill()
    found = look(child)
    assert found is not None
    yield leader.pid, found
    with suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    """Return a ledger that is not written yet."""
    return Ledger(tmp_path / "processes.json")


def recorded(pid: int, name: str = "engine") -> Recorded:
    """Return a living process as a supervisor writes it down."""
    found = look(pid)
    assert found is not None
    return Recorded(name, pid, found.start)


def gone(pid: int) -> bool:
    """Tell whether a process is gone soon."""
    until = time.monotonic() + 30
    while look(pid) is not None and time.monotonic() < until:
        time.sleep(0.01)
    return look(pid) is None


def test_an_ended_process_is_none(leader: subprocess.Popen[bytes]) -> None:
    """A zombie, which only waits for its parent to ask, counts as gone."""
    leader.kill()
    os.waitid(os.P_PID, leader.pid, os.WEXITED | os.WNOWAIT)
    assert Path(f"/proc/{leader.pid}").exists()
    assert look(leader.pid) is None


def test_what_is_left_is_reaped(ledger: Ledger, leader: subprocess.Popen[bytes]) -> None:
    """A recorded process that still runs is killed, and named."""
    ledger.write([recorded(leader.pid)])
    assert [process.name for process in ledger.reap()] == ["engine"]
    assert leader.wait(30) == -signal.SIGKILL
    assert ledger.reap() == []


def test_a_pid_that_was_given_away_is_left_alone(ledger: Ledger, leader: subprocess.Popen[bytes]) -> None:
    """The same pid with another start time is another process."""
    mine = recorded(leader.pid)
    ledger.write([replace(mine, start=mine.start - 1)])
    assert ledger.reap() == []
    assert leader.poll() is None


def test_another_boot_proves_nothing(ledger: Ledger, leader: subprocess.Popen[bytes], tmp_path: Path) -> None:
    """What was written down before the machine booted names nobody that runs now."""
    ledger.write([recorded(leader.pid)])
    file = tmp_path / "processes.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"boot": "another"}))
    assert ledger.read() == []
    assert ledger.reap() == []
    assert leader.poll() is None


@pytest.mark.parametrize("text", ["", "{", "\0\0\0", "[]", "null", "{}", "BOOT"])
def test_a_broken_ledger_is_an_empty_one(ledger: Ledger, tmp_path: Path, text: str) -> None:
    """What a power cut leaves of the file names nobody and hinders no start."""
    wrong = json.dumps({"boot": boot(), "processes": [{"name": "engine"}]})
    (tmp_path / "processes.json").write_text(text.replace("BOOT", wrong))
    assert ledger.read() == []
    assert ledger.reap() == []


def test_a_session_without_its_leader_is_reaped(ledger: Ledger, orphan: tuple[int, Process]) -> None:
    """The processes that vLLM made outlive a killed worker: they are known by having been seen in its session."""
    session, child = orphan
    ledger.write([Recorded("engine", session, 1, ((child.pid, child.start),))])
    assert [process.pid for process in ledger.reap()] == [session]
    assert gone(child.pid)


def test_a_session_of_strangers_is_left_alone(ledger: Ledger, orphan: tuple[int, Process]) -> None:
    """A session of which no member was ever seen may have got its number since: it is not touched."""
    session, child = orphan
    ledger.write([Recorded("engine", session, 1, ((child.pid, child.start - 1),))])
    assert ledger.reap() == []
    assert look(child.pid) is not None


def test_killing_a_session_takes_all_of_it() -> None:
    """Children go with their leader, also those that made a process group of their own."""
    script = f"import subprocess, time; subprocess.Popen({SLEEP}, process_group=0); print(flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", script], start_new_session=True, stdout=subprocess.PIPE) as leader:
        assert leader.stdout is not None
        leader.stdout.readline()
        members = sessions([leader.pid])[leader.pid]
        assert len(members) == 2
        assert kill_session(leader.pid)
    assert all(gone(member.pid) for member in members)


def test_without_a_ledger_nothing_is_left(ledger: Ledger) -> None:
    """The first start on a data folder finds nothing to end."""
    assert ledger.read() == []
    assert ledger.reap() == []
