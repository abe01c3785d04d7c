"""The census counts what is open."""

from __future__ import annotations

from models import census, cohorts, ends
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
    assert (counted.engines, counted.deliveries) == (1, 1)
