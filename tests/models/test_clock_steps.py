"""A database clock that was set back: nothing waits for the time to come round again."""

from __future__ import annotations

import time

import pytest

from models import batches, deliveries, due, engines, jobs, sweeps
from models.db import Database
from models.deliveries import NewDelivery
from tests.models import given

HOUR = 3600.0
LEASE = 15.0


def noticed(database: Database, by: float) -> None:
    """Sweep for the first time since the clock was set back by so much."""
    with database.transaction() as tx:
        sweeps.begin(tx, LEASE)
    given.change(database, sweeps.table, last_at=time.time() + by)
    with database.transaction() as tx:
        assert sweeps.begin(tx, LEASE) is False


def test_what_was_due_soon_is_due_soon(database: Database) -> None:
    """Delays, tries of webhooks, leases and engines' signs of life: what lay 5 s ahead lies 5 s ahead, not an hour."""
    mine = given.engine(database)
    batch = given.running(database, mine)
    (delayed,) = given.submitted(database)
    (told,) = given.submitted(database, webhook=given.HOOK)
    with database.transaction() as tx:
        jobs.move(tx, "cancelled", jobs.table.c.id == told)
        deliveries.enqueue(tx, [NewDelivery("alice", told, "job.cancelled", "http://127.0.0.1:1/")])
    soon = time.time() + HOUR + 5
    given.change(database, batches.table, lease_until=soon)
    given.change(database, engines.table, seen_at=soon)
    given.change(database, deliveries.table, next_at=soon)
    given.change(database, jobs.table, jobs.table.c.id == delayed, state="delayed", run_at=soon)
    noticed(database, HOUR)
    near = pytest.approx(time.time() + 5, abs=3)
    assert given.rows(database, batches.table, batches.table.c.id == batch.id)[0].lease_until == near
    assert given.rows(database, engines.table)[0].seen_at == near
    assert given.rows(database, deliveries.table)[0].next_at == near
    assert given.job(database, delayed).run_at == near


def test_an_expiry_keeps_its_distance_to_the_start(database: Database) -> None:
    """A job that was made before the step expires as late as it asked for; one made since, too."""
    before, after = given.submitted(database, 2, expires_in=100.0)
    made = time.time() + HOUR - 1
    given.change(database, jobs.table, jobs.table.c.id == before, created_at=made, expires_at=made + 100)
    noticed(database, HOUR)
    for job_id in (before, after):
        assert given.job(database, job_id).expires_at == pytest.approx(time.time() + 100, abs=5), job_id
    with database.reading() as tx:
        assert not due.any_due(tx)


def test_the_noise_of_a_clock_moves_nothing(database: Database) -> None:
    """A clock that is kept right goes back by milliseconds: nobody's time is touched for that."""
    (job_id,) = given.submitted(database, expires_in=100.0)
    asked = given.job(database, job_id).expires_at
    given.change(database, jobs.table, created_at=time.time() + 5)
    noticed(database, 0.5)
    assert given.job(database, job_id).expires_at == asked
