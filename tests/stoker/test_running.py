"""What `stoker up` makes of a process that ends before the service is ready."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from stoker.processes import Ledger
from stoker.running import EngineCannotStart, Running, UpError
from stoker.services import Service
from stoker.settings import load
from stoker.supervisor import Signals, Supervisor


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    """Return a service without processes; what it says is thrown away."""
    with Signals() as signals:
        logs = tmp_path / "logs"
        logs.mkdir()
        supervisor = Supervisor(Ledger(tmp_path / "processes.json"), logs, signals, lambda _: None)
        yield Running(load(data=tmp_path, engine="fake"), supervisor, signals, lambda _: None)
        supervisor.stop(supervisor.names(), 0)


def start(running: Running, name: str, script: str) -> None:
    """Start a process that is a few lines of shell."""
    running.supervisor.start(Service(name, ("sh", "-c", script), running.settings.data, dict(os.environ)))


def tended(running: Running, deaths: int) -> UpError | None:
    """Look after the processes until so many died; return with what it gave up before that, None if it did not."""
    until = time.monotonic() + 60
    try:
        while running.exits.total() < deaths and time.monotonic() < until:
            running._tend(0.05)
    except UpError as error:
        return error
    return None


def test_a_reason_ends_the_start_at_once(running: Running) -> None:
    """A process that says why it cannot start is not asked again; the reason and its log are told in one line."""
    start(running, "web", "echo noise; echo 'stoker web: there is no API key'; exit 1")
    log = running.settings.data / "logs/web.log"
    assert str(tended(running, 2)) == f"web does not start (status 1): there is no API key; see {log}"
    assert running.exits["web"] == 1


def test_a_process_that_dies_thrice_ends_the_start(running: Running) -> None:
    """Without a reason it gets three tries; then its last line is told."""
    start(running, "beat", "echo first; echo last; exit 3")
    assert "beat does not start (status 3): last;" in str(tended(running, 9))
    assert running.exits["beat"] == 3


def test_an_engine_that_cannot_start_ends_it(running: Running) -> None:
    """Status 78 means that starting again will not help: its own line, and that status."""
    start(running, "engine", "echo 'stoker engine: out of memory'; exit 78")
    error = tended(running, 2)
    assert isinstance(error, EngineCannotStart)
    assert (str(error), error.status) == ("the engine cannot start: out of memory", 78)


def test_an_engine_that_failed_is_started_again(running: Running) -> None:
    """Status 70 with a reason: the engine broke, which may be over."""
    start(running, "engine", "echo 'stoker engine: it broke'; exit 70")
    assert tended(running, 2) is None
    assert running.exits["engine"] == 2


def test_once_it_is_ready_nothing_ends_it(running: Running) -> None:
    """A service that takes jobs goes on taking them, whatever dies."""
    running.ready = True
    start(running, "engine", "echo 'stoker engine: out of memory'; exit 78")
    start(running, "web", "exit 1")
    assert tended(running, 6) is None
