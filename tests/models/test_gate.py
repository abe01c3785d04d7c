"""The gate in front of the database: few at once, some wait, the rest is refused at once."""

from __future__ import annotations

import threading
from contextlib import ExitStack

import pytest

from models import gate
from models.db import Database
from models.errors import DatabaseBusy, DatabaseUnavailable
from models.gate import Gate
from tests.tasks.inprocess import until


def test_who_comes_too_late_is_refused() -> None:
    """With all places taken one waits in vain for the time it has; a place that is free again is taken."""
    made = Gate(2, 10, 0.05)
    with ExitStack() as held:
        held.enter_context(made.place())
        held.enter_context(made.place())
        with pytest.raises(DatabaseBusy, match=r"0\.05 s"), made.place():
            pass
    with made.place(), made.place():
        pass


def test_only_so_many_wait() -> None:
    """Beyond them nobody waits at all, so that a crowd keeps no threads."""
    made = Gate(1, 1, 60.0)
    done = threading.Event()

    def wait() -> None:
        with made.place():
            done.set()

    waiting = threading.Thread(target=wait)
    with made.place():
        waiting.start()
        until(lambda: made._waiting._value == 0)
        with pytest.raises(DatabaseBusy, match="too many"), made.place():
            pass
    assert done.wait(30)
    waiting.join(30)


def test_the_patient_wait_longer_and_beyond_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has an upload behind him is not turned away since a crowd waits."""
    monkeypatch.setattr(gate, "PATIENT", 0.05)
    made = Gate(1, 1, 0.01)
    made._waiting.acquire()
    with made.place(), pytest.raises(DatabaseBusy, match=r"0\.05 s"), made.place(patient=True):
        pass
    with made.place(patient=True):
        pass


def test_a_place_is_given_back_by_who_fails() -> None:
    """Whatever happens inside."""
    made = Gate(1, 1, 0.01)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError), made.place():
            raise ZeroDivisionError


def test_a_database_behind_a_gate_is_used_by_few(sqlite_url: str) -> None:
    """Reading, writing and repeating all go through it; who is refused is told that the database is unavailable."""
    database = Database(sqlite_url, gate=Gate(1, 1, 0.01))
    with database.reading():
        with pytest.raises(DatabaseUnavailable), database.reading():
            pass
        with pytest.raises(DatabaseUnavailable), database.transaction():
            pass
        with pytest.raises(DatabaseUnavailable):
            database.retrying(lambda tx: tx)
    with database.transaction():
        pass
    database.close()
