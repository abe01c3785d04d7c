"""The census counts what is open."""

from __future__ import annotations

import pytest

from models import bulks, census, cohorts, ends, jobs, sweeps
from models.db import Database
from models.ends import Settled
from tests.models import given


def test_open_jobs_are_counted_by_state_lane_and_model(database: Database) -> None:
    """Jobs of cohorts count as the queued ones that they are; ended ones are not counted."""
    mine = given.engine(database)
    given.running(database, mine, 2)
    cohorts_of = given.engine(database)
    with database.transaction() as tx:
        cohorts.crash(tx, mine.engine, mine.id, "crashed", max_attempts=20)
    given.submitted(database)
    batch = given.running(database, cohorts_of, 3)
    done, later, _ = (job.id for job in batch.jobs)
    given.settled(database, batch.id, [given.answered(done), Settled(later, "delayed", run_in=60.0)])
    given.cut(database, given.submitted(database, lane="bulk", model="other"), model="other", lane="bulk")
    (cancelled,) = given.submitted(database, webhook=given.HOOK)
    with database.transaction() as tx:
        ends.cancel(tx, "alice", cancelled)
        counted = census.take(tx, 15.0)
    assert set(counted.jobs) == {
        ("queued", "standard", "fake", 3),
        ("running", "standard", "fake", 1),
        ("delayed", "standard", "fake", 1),
        ("batched", "bulk", "other", 1),
    }
    assert counted.ready == [("other", "bulk", 1)]
    assert ([engine.id for engine in counted.engines], counted.deliveries) == (["engine"], 1)
    assert [(load.engine, load.model, load.rank, load.jobs) for load in counted.running] == [("engine", "fake", 1, 1)]


def test_the_age_is_that_of_the_first_in_any_owners_line(database: Database) -> None:
    """Of each model and lane the job that waits longest, whoever owns it; who runs, was put off or paused does not."""
    old, _ = given.submitted(database, owner="zoe"), given.submitted(database, owner="alice")
    (put_off,) = given.submitted(database, lane="bulk")
    given.submitted(database, lane="bulk", model="other")
    (paused,) = given.submitted(database, lane="bulk")
    job = jobs.table.c
    given.change(database, jobs.table, job.id == old[0], pos=job.pos - 90_000_000)
    given.change(database, jobs.table, job.id == put_off, state="delayed", pos=job.pos - 900_000_000, run_at=5e9)
    given.change(database, jobs.table, job.id == paused, lane=bulks.PAUSED)
    with database.reading() as tx:
        ages = {(model, lane): age for model, lane, age in census.take(tx, 15.0).ages}
    assert ages.keys() == {("fake", "standard"), ("other", "bulk")}
    assert ages["fake", "standard"] == pytest.approx(90, abs=20)
    assert 0 <= ages["other", "bulk"] < 20


def test_the_age_of_the_last_sweep_is_known_once_there_was_one(database: Database) -> None:
    """None before; then by the database's clock, and never negative, though that was set back."""

    def age() -> float | None:
        with database.reading() as tx:
            return census.take(tx, 15.0).sweep_age

    assert age() is None
    with database.transaction() as tx:
        sweeps.begin(tx, 15.0)
    given.change(database, sweeps.table, last_at=sweeps.table.c.last_at - 600)
    assert age() == pytest.approx(600, abs=60)
    given.change(database, sweeps.table, last_at=sweeps.table.c.last_at + 7200)
    assert age() == 0.0
