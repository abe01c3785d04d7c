"""What came to nothing is written down: whatever took a batch from running jobs."""

from __future__ import annotations

from models import batches, cohorts, past_attempts, retention
from models.db import Database
from models.ends import Settled
from tests.models import given


def noted(database: Database) -> list[tuple[str, int, str, str]]:
    """Return (job, attempt, batch, outcome) of all past attempts."""
    rows = given.rows(database, past_attempts.table)
    return [(row.job_id, row.attempt, row.batch_id, row.outcome) for row in rows]


def test_a_crash_is_noted_of_each_unfinished_job(database: Database) -> None:
    """Not of one that had its answer."""
    mine = given.engine(database)
    batch = given.running(database, mine, 3)
    first, *left = [job.id for job in batch.jobs]
    given.settled(database, batch.id, [given.answered(first)])
    database.retrying(lambda tx: cohorts.crash(tx, mine.engine, mine.id, "crashed", max_attempts=9))
    assert noted(database) == [(job_id, 1, batch.id, "crashed") for job_id in left]


def test_the_last_attempt_is_not_past(database: Database) -> None:
    """A job that ends with the crash keeps the batch that it died in."""
    mine = given.engine(database)
    given.running(database, mine, 1)
    database.retrying(lambda tx: cohorts.crash(tx, mine.engine, mine.id, "crashed", max_attempts=1))
    assert noted(database) == []


def test_a_drained_engine_hands_its_jobs_back(database: Database) -> None:
    """Those that ran, not those that only waited in a READY batch."""
    mine = given.engine(database)
    running = given.running(database, mine, 1)
    given.cut(database, given.submitted(database))
    database.retrying(lambda tx: batches.give_back(tx, batches.table.c.size == 1))
    assert noted(database) == [(running.jobs[0].id, 1, running.id, "returned")]


def test_an_upstream_that_is_busy_is_noted(database: Database) -> None:
    """The attempt is over, the job waits for the next one; what is told twice is noted once."""
    mine = given.engine(database)
    batch = given.running(database, mine, 1)
    job_id = batch.jobs[0].id
    for _ in range(2):
        given.settled(database, batch.id, [Settled(job_id, "delayed", run_in=5.0)])
    assert noted(database) == [(job_id, 1, batch.id, "deferred")]


def test_they_go_with_their_job(database: Database) -> None:
    """When its time has passed."""
    mine = given.engine(database)
    batch = given.running(database, mine, 1)
    given.settled(database, batch.id, [Settled(batch.jobs[0].id, "delayed", run_in=5.0)])
    with database.transaction() as tx:
        retention.JOBS.purge(tx, [batch.jobs[0].id])
    assert noted(database) == []
