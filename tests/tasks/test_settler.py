"""The settler: grouped commits, a database that comes back, data that no database takes."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

import pytest
import sqlalchemy as sa

from models import batches, ends, results
from models.db import Database
from models.ends import Settled
from models.errors import DatabaseUnavailable
from models.results import NewResult
from stoker.settings import Settings
from tasks import collector
from tasks.settler import Settler
from tests.tasks.inprocess import Bell, alive, states, submit


@pytest.fixture
def running(
    database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> Callable[[int], tuple[str, list[str]]]:
    """Return a maker of running batches: their id and their jobs' ids."""
    monkeypatch.setattr(collector, "doorbell", Bell)

    def make(count: int) -> tuple[str, list[str]]:
        mine = alive(database, slots=4096, reserve=0)
        submit(database, *map(str, range(count)), lane="realtime")
        wide = settings.model_copy(update={"realtime_batch": 4096})
        collector.cut_all(database, wide, "fake")
        with database.transaction() as tx:
            claimed = batches.claim(tx, mine, [0], 15.0, idle=True)
        assert claimed is not None
        return claimed.id, [job.id for job in claimed.jobs]

    return make


def ok(job_id: str) -> Settled:
    """Return a success."""
    return Settled(job_id, "succeeded", NewResult(200, "{}", prompt_tokens=1, completion_tokens=1))


def fail_first(database: Database, monkeypatch: pytest.MonkeyPatch, *errors: Exception) -> None:
    """Let the next transactions fail with these errors, in this order, and those after them work."""
    real, left = database.retrying, deque(errors)

    def flaky(work: Callable[[sa.Connection], Any]) -> Any:
        if left:
            raise left.popleft()
        return real(work)

    monkeypatch.setattr(database, "retrying", flaky)


def test_many_outcomes_share_a_commit(database: Database, running: Callable[[int], Any]) -> None:
    """What gathers while a commit runs is stored by the next one: far fewer commits than outcomes, none lost."""
    batch, ids = running(500)
    commits: list[int] = []
    settler = Settler(database, "engine", lambda stored: commits.append(len(stored)), pytest.fail)
    for job_id in ids:
        settler.put(batch, ok(job_id))
    assert settler.wait(batch, timeout=60)
    assert sum(commits) == 500
    assert len(commits) < 100
    assert states(database) == {"succeeded": 500}


def test_an_outage_is_sat_out(
    database: Database, running: Callable[[int], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the database is away nothing is dropped; when it is back everything is stored once."""
    batch, ids = running(3)
    fail_first(database, monkeypatch, DatabaseUnavailable("away"), DatabaseUnavailable("still away"))
    settler = Settler(database, "engine", lambda _: None, pytest.fail)
    for job_id in ids:
        settler.put(batch, ok(job_id))
    assert settler.wait(timeout=60)
    assert states(database) == {"succeeded": 3}


def test_an_answer_lost_at_commit_is_harmless(
    database: Database, running: Callable[[int], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A commit that took effect but was reported as failed is not done twice."""
    batch, ids = running(3)
    lost = threading.Event()
    real = database.retrying

    def unsure(work: Callable[[sa.Connection], Any]) -> Any:
        done = real(work)
        if not lost.is_set():
            lost.set()
            raise DatabaseUnavailable("the answer was lost")
        return done

    monkeypatch.setattr(database, "retrying", unsure)
    settler = Settler(database, "engine", lambda _: None, pytest.fail)
    for job_id in ids:
        settler.put(batch, ok(job_id))
    assert settler.wait(timeout=60)
    assert states(database) == {"succeeded": 3}
    with database.reading() as tx:
        assert tx.execute(sa.select(sa.func.count(results.table.c.job_id))).scalar_one() == 3


def test_one_bad_row_does_not_hold_up_the_others(
    database: Database, running: Callable[[int], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Data that the database refuses fails its own job, with a code that says so; the rest of the commit is stored."""
    batch, ids = running(5)
    bad = ids[2]
    real = results.store

    def refusing(tx: sa.Connection, engine_id: Any, ended: Any, places: Any) -> None:
        if any(one.job_id == bad and one.result.code != "unstorable" for one in ended):
            raise sa.exc.DataError("insert", {}, ValueError("no"))
        real(tx, engine_id, ended, places)

    monkeypatch.setattr(results, "store", refusing)
    settler = Settler(database, "engine", lambda _: None, pytest.fail)
    for job_id in ids:
        settler.put(batch, ok(job_id))
    assert settler.wait(timeout=60)
    assert states(database) == {"succeeded": 4, "failed": 1}
    with database.reading() as tx:
        assert (
            tx.execute(sa.select(results.table.c.error_code).where(results.table.c.job_id == bad)).scalar_one()
            == "unstorable"
        )


def test_a_stale_outcome_is_dropped(database: Database, running: Callable[[int], Any]) -> None:
    """An outcome for a job that was cancelled meanwhile leaves no result and is not told of."""
    batch, (kept, gone) = running(2)
    with database.transaction() as tx:
        ends.cancel(tx, "owner", gone)
    told: list[str] = []
    settler = Settler(database, "engine", lambda stored: told.extend(outcome.job_id for outcome in stored), pytest.fail)
    settler.put(batch, ok(gone))
    settler.put(batch, ok(kept))
    assert settler.wait(timeout=60)
    assert told == [kept]
    assert states(database) == {"succeeded": 1, "cancelled": 1}


def test_an_outage_among_single_rows_is_sat_out(
    database: Database, running: Callable[[int], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the database goes away while bad data is stored row by row, that is an outage like any other."""
    batch, ids = running(3)
    refused = sa.exc.DataError("insert", {}, ValueError("no"))
    fail_first(database, monkeypatch, refused, DatabaseUnavailable("away"))
    settler = Settler(database, "engine", lambda _: None, pytest.fail)
    for job_id in ids:
        settler.put(batch, ok(job_id))
    assert settler.wait(timeout=60)
    assert states(database) == {"succeeded": 3}


def test_a_settler_that_cannot_go_on_says_so(
    database: Database, running: Callable[[int], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error that nothing provides for ends the worker: a silent settler would keep its batches leased for ever."""
    batch, (job_id,) = running(1)

    def broken(_work: Callable[[sa.Connection], Any]) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(database, "retrying", broken)
    reasons: SimpleQueue[str] = SimpleQueue()
    settler = Settler(database, "engine", lambda _: None, reasons.put)
    settler.put(batch, ok(job_id))
    assert reasons.get(timeout=60) == "results cannot be stored: ZeroDivisionError"
