"""Failpoints: nothing unless asked for, then exactly what was asked for."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from models import failpoints
from models.failpoints import FailpointError, Failpoints, Rule, parse

VISIT = "from models.failpoints import failpoint; failpoint('here'); print('went on')"


def visited(rules: str, log: Path) -> subprocess.CompletedProcess[str]:
    """Visit a place in a process of its own."""
    environment = {"STOKER_FAILPOINTS": rules, "STOKER_FAILPOINTS_LOG": str(log)}
    command = [sys.executable, "-c", VISIT]
    return subprocess.run(command, env=environment, cwd=Path.cwd(), capture_output=True, text=True, check=False)


def test_nothing_happens_unless_it_is_asked_for() -> None:
    """Without the variable no place is looked up."""
    assert failpoints._armed is None
    failpoints.failpoint("here")


def test_a_process_dies_as_often_as_asked(tmp_path: Path) -> None:
    """`x2` is two deaths in all, over the processes that come after one another; the log has each."""
    log = tmp_path / "log"
    statuses = [visited("here=killx2", log).returncode for _ in range(4)]
    assert statuses == [-9, -9, 0, 0]
    assert [line.split()[0] for line in log.read_text().splitlines()] == ["here", "here"]


def test_all_are_called_off(tmp_path: Path) -> None:
    """A file beside the log lets every place be passed, by processes that run already too."""
    log = tmp_path / "log"
    assert visited("here=kill", log).returncode == -9
    Path(f"{log}.off").touch()
    assert visited("here=kill", log).stdout == "went on\n"


def test_other_places_are_passed(tmp_path: Path) -> None:
    """A rule is for its own place."""
    assert visited("elsewhere=kill", tmp_path / "log").stdout == "went on\n"


def test_it_waits_and_fails(tmp_path: Path) -> None:
    """A pause takes its time, a failure is an OSError."""
    points = Failpoints({"slow": Rule("pause", 0.2), "broken": Rule("fail")}, tmp_path / "log")
    started = time.monotonic()
    points.visit("slow")
    assert time.monotonic() - started >= 0.2
    with pytest.raises(OSError, match="broken"):
        points.visit("broken")


def test_a_chance_is_a_chance(tmp_path: Path) -> None:
    """One in four, about."""
    points = Failpoints({"here": Rule("pause", 0.0, 0.25)}, tmp_path / "log")
    for _ in range(400):
        points.visit("here")
    assert 50 < len((tmp_path / "log").read_text().splitlines()) < 160


FORKS = """
import os
from models.failpoints import failpoint
for _ in range(40):
    if not (child := os.fork()):
        failpoint('here')
        os._exit(0)
    os.waitpid(child, 0)
"""


def test_a_chance_is_another_one_in_each_child(tmp_path: Path) -> None:
    """A web server that has loaded its rules forks its workers: they do not all die, or all live, at the same visit."""
    environment = {"STOKER_FAILPOINTS": "here=kill@0.5", "STOKER_FAILPOINTS_LOG": str(tmp_path / "log")}
    subprocess.run([sys.executable, "-c", FORKS], env=environment, cwd=Path.cwd(), check=True)
    assert 0 < len((tmp_path / "log").read_text().splitlines()) < 40


def test_what_cannot_be_read_is_refused() -> None:
    """A typing error does not end in a test that breaks nothing."""
    assert parse("a.b=pause:1.5@0.5x3, c=kill") == {"a.b": Rule("pause", 1.5, 0.5, 3), "c": Rule("kill")}
    for text in ("a", "a=explode", "a=kill@often", "A B=kill"):
        with pytest.raises(FailpointError, match="STOKER_FAILPOINTS"):
            parse(text)
    with pytest.raises(FailpointError, match="LOG"):
        Failpoints({"a": Rule("kill", most=2)})
