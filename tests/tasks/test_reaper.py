"""The reaper: ends what a killed engine process left, and nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tasks import reaper
from tests.tasks.inprocess import until

_PARENT = "import subprocess, sys, time; subprocess.Popen(['sleep', '60']); print('up', flush=True); time.sleep(60)"


@pytest.fixture
def family() -> Iterator[subprocess.Popen[str]]:
    """Start a process with a child, in a group of its own; end both with the test."""
    parent = subprocess.Popen(
        [sys.executable, "-c", _PARENT], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert parent.stdout is not None
    parent.stdout.readline()
    yield parent
    parent.stdout.close()
    if reaper.survivors(recorded(parent.pid)):
        os.killpg(parent.pid, signal.SIGKILL)
    parent.wait()


def recorded(pid: int) -> reaper.Incarnation:
    """Return the incarnation that a process would have recorded."""
    here = reaper.Incarnation("engine", "run_1", "fake", "", pid, pid, reaper.process_start(pid))
    return replace(here, host=reaper.socket.gethostname())


def test_the_children_of_a_killed_process_are_ended(family: subprocess.Popen[str]) -> None:
    """`kill -9` of the parent alone leaves its child: it is found by its group and ended."""
    old = recorded(family.pid)
    family.kill()
    family.wait()
    assert len(reaper.survivors(old)) == 1
    assert len(reaper.reap(old)) == 1
    assert reaper.survivors(old) == []


def test_a_living_predecessor_is_ended_with_its_children(family: subprocess.Popen[str]) -> None:
    """A process that still holds the engine's name (hung, frozen) is ended as well."""
    old = recorded(family.pid)
    os.killpg(family.pid, signal.SIGSTOP)
    assert len(reaper.reap(old)) == 2
    until(lambda: family.poll() is not None)


@pytest.mark.parametrize("other", ["host", "boot", "start"])
def test_another_process_of_the_same_number_is_left_alone(family: subprocess.Popen[str], other: str) -> None:
    """A pid alone proves nothing: host, boot and start time must match too."""
    old = recorded(family.pid)
    boot, _, start = old.process_start.rpartition(":")
    wrong = {
        "host": replace(old, host="elsewhere"),
        "boot": replace(old, process_start=f"another-boot:{start}"),
        "start": replace(old, process_start=f"{boot}:{int(start) - 100}"),
    }[other]
    assert reaper.reap(wrong) == []
    assert family.poll() is None


def test_only_what_could_be_seen_here_is_known_to_have_died(family: subprocess.Popen[str]) -> None:
    """Of another machine's, another boot's and another container's processes nothing is known."""
    old = recorded(family.pid)
    assert not reaper.has_died(old)
    os.killpg(family.pid, signal.SIGKILL)
    family.wait()
    assert reaper.has_died(old)
    here, _, start = old.process_start.rpartition(":")
    boot, _, container = here.partition(".")
    assert not reaper.has_died(replace(old, host="elsewhere"))
    assert not reaper.has_died(replace(old, process_start=f"another-boot.{container}:{start}"))
    assert not reaper.has_died(replace(old, process_start=f"{boot}.4711:{start}"))
    assert reaper.rebooted(replace(old, process_start=f"another-boot.{container}:{start}"))
    assert not reaper.rebooted(old)


def test_a_process_never_reaps_its_own_group() -> None:
    """A worker that finds its own group recorded (started again in place) does not end itself."""
    mine = replace(recorded(os.getpid()), process_group=os.getpgrp())
    assert reaper.survivors(mine) == []
