"""`stoker engine`: alone under its name, never beside what an earlier one left, and it says why its worker died."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from models import engines
from models.db import Database
from stoker.processes import Ledger
from tests.journeys.running import STOKER, end_whatever_is_left, left_of
from tests.tasks.inprocess import until

pytestmark = pytest.mark.timeout(300)

Begin = Callable[[str], "subprocess.Popen[str]"]


@pytest.fixture
def begin(tmp_path: Path, redis_url: str) -> Iterator[Begin]:
    """Return what starts `stoker engine second` on a database; what still runs after the test is ended."""
    command = [*STOKER, "engine", "second", "--engine", "fake", "--data", str(tmp_path), "--redis-url", redis_url]
    made: list[subprocess.Popen[str]] = []

    def start(database_url: str) -> subprocess.Popen[str]:
        made.append(
            subprocess.Popen(
                [*command, "--database-url", database_url],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        )
        return made[-1]

    yield start
    for process in made:
        process.kill()
        process.communicate()
    end_whatever_is_left(tmp_path)


def until_said(process: subprocess.Popen[str], text: str) -> str:
    """Return what a process says up to the line that has this text."""
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if text in line:
            return said
    raise AssertionError(said)


def is_live(database: Database, pid: int) -> bool:
    """Tell whether the engine is open for work, with this process as its worker."""
    with database.reading() as tx:
        live = "second" in {row.id for row in engines.live(tx, 15.0)}
        mine = engines.predecessor(tx, "second")
    return live and mine is not None and mine.pid == pid


def test_what_a_killed_one_left_is_ended_by_the_next(
    begin: Begin, tmp_path: Path, sqlite_url: str, sqlite_database: Database
) -> None:
    """On a folder of its own it opens; `kill -9` leaves its worker, which the next one ends; Ctrl-C leaves nothing."""
    ledger = Ledger(tmp_path / "engines/second/processes.json")
    first = begin(sqlite_url)
    until_said(first, "loading")
    (worker,) = ledger.read()
    until(lambda: is_live(sqlite_database, worker.pid), 120)
    first.kill()
    first.wait()
    assert worker.alive
    second = begin(sqlite_url)
    assert "engine second: ended what an earlier run left" in until_said(second, "loading")
    assert not worker.alive
    (worker,) = ledger.read()
    until(lambda: is_live(sqlite_database, worker.pid), 120)
    second.send_signal(signal.SIGINT)
    assert second.wait(120) == 0
    assert left_of(tmp_path) == []


def test_two_under_one_name_are_refused(begin: Begin, tmp_path: Path, sqlite_url: str) -> None:
    """Whoever comes second is told in one line, and the first one's worker is left alone."""
    first = begin(sqlite_url)
    until_said(first, "loading")
    (worker,) = Ledger(tmp_path / "engines/second/processes.json").read()
    second = begin(sqlite_url)
    said, _ = second.communicate(timeout=120)
    assert second.returncode == 1
    assert said == f"stoker: another `stoker engine second` uses {tmp_path}: stop it, or choose another name\n"
    assert worker.alive


def test_it_says_why_its_worker_died(begin: Begin, tmp_path: Path) -> None:
    """A database without tables: the reason stands beside the status, each time that it is tried again."""
    process = begin(f"sqlite:///{tmp_path}/empty.db")
    line = until_said(process, "died").splitlines()[-1]
    assert line.startswith("engine second: died (status 70): ")
    assert "no such table" in line
    assert "starting again in" in line
