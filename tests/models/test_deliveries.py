"""Deliveries: the outbox, and a claim that a later try fences."""

from __future__ import annotations

from models import deliveries, ends, owed, sending
from models.db import Database
from models.jobs import Webhook
from models.sending import Delivery, Ended, Try
from tests.models import given

OK = Try(ok=True, status=204, latency=0.0123, answer="thanks")
REFUSED = Try(ok=False, status=500, latency=1.0, error="500 from the receiver")


def told(database: Database, count: int = 1, **fields: object) -> list[str]:
    """Cancel jobs that have a webhook: so many deliveries are pending; return the jobs' ids."""
    ids = given.submitted(database, count, **{"webhook": given.HOOK, **fields})
    with database.transaction() as tx:
        for job_id in ids:
            ends.cancel(tx, "alice", job_id)
    return ids


def claim(database: Database, limit: int = 10, hold: float = 30.0) -> list[Delivery]:
    """Claim what is due."""
    with database.transaction() as tx:
        return [one for parcel in sending.claim(tx, owed.due(tx, limit), hold) for one in parcel]


def record(database: Database, delivery: Delivery, ended: Try, retry_in: float | None = None) -> bool:
    """Store how a try ended."""
    with database.transaction() as tx:
        return bool(sending.record(tx, [Ended(delivery, ended, retry_in)]))


def test_only_jobs_with_a_webhook_are_told_of(database: Database) -> None:
    """The delivery has what is needed to send it, as the job had it."""
    hook = Webhook("http://127.0.0.1:1/é", "whsec_secret", include_result=True)
    (job_id,) = told(database, webhook=hook)
    told(database, webhook=None)
    (row,) = given.rows(database, deliveries.table)
    assert (row.job_id, row.owner, row.event, row.state) == (job_id, "alice", "job.cancelled", "pending")
    (sent,) = claim(database)
    assert (sent.url, sent.secrets, sent.include_result, sent.attempt) == (hook.url, (hook.secret,), True, 1)


def test_an_empty_secret_means_the_services_own(database: Database) -> None:
    """It is stored as none."""
    told(database)
    assert claim(database)[0].secrets == ()


def test_the_outbox_is_part_of_the_transaction(database: Database) -> None:
    """When the end of the job is rolled back, so is its delivery."""
    (job_id,) = given.submitted(database, webhook=given.HOOK)
    with database.engine.connect() as tx:
        ends.cancel(tx, "alice", job_id)
        tx.rollback()
    assert given.rows(database, deliveries.table) == []
    assert given.states(database, [job_id]) == ["queued"]


def test_a_claimed_delivery_is_not_due_until_its_claim_runs_out(database: Database) -> None:
    """Then another sender takes it, and counts one try more."""
    told(database)
    with database.reading() as tx:
        assert owed.any_due(tx)
    (first,) = claim(database, hold=30.0)
    assert claim(database) == []
    with database.reading() as tx:
        assert not owed.any_due(tx)
    given.change(database, deliveries.table, next_at=1.0)
    (second,) = claim(database)
    assert (second.id, first.attempt, second.attempt) == (first.id, 1, 2)


def test_a_frozen_sender_writes_nothing_over_its_successor(database: Database) -> None:
    """The try is the fence; and what is delivered stays delivered."""
    told(database)
    (first,) = claim(database, hold=0.0)
    (second,) = claim(database)
    assert not record(database, first, REFUSED)
    assert record(database, second, OK)
    assert not record(database, second, REFUSED, retry_in=1.0)
    (row,) = given.rows(database, deliveries.table)
    assert (row.state, row.status, row.latency_ms, row.answer, row.error) == ("delivered", 204, 12, "thanks", None)
    assert row.delivered_at is not None


def test_a_refused_delivery_waits_for_its_next_try(database: Database) -> None:
    """Pending again until the seconds are over; failed when there is no try left."""
    told(database)
    (sent,) = claim(database)
    assert record(database, sent, REFUSED, retry_in=60.0)
    assert claim(database) == []
    (row,) = given.rows(database, deliveries.table)
    assert (row.state, row.error, row.delivered_at) == ("pending", REFUSED.error, None)
    given.change(database, deliveries.table, next_at=1.0)
    (sent,) = claim(database)
    assert record(database, sent, REFUSED, retry_in=None)
    given.change(database, deliveries.table, next_at=1.0)
    assert claim(database) == []
    (row,) = given.rows(database, deliveries.table)
    assert (row.state, row._mapping["try"]) == ("failed", 2)


def test_senders_at_once_claim_nothing_twice(database: Database) -> None:
    """Five senders share forty deliveries, oldest due first, at most so many each time."""
    told(database, 40)

    def work() -> list[str]:
        got: list[str] = []
        while some := claim(database, limit=3):
            assert len(some) <= 3
            got.extend(delivery.id for delivery in some)
        return got

    taken = [delivery_id for some in given.together([work] * 5) for delivery_id in some]
    assert len(taken) == len(set(taken)) == 40
