"""Jobs: submit, the guard of every step, settle with its fence, cancel, expire, delay."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

from models import batches, cohorts, deliveries, due, ends, jobs, results
from models.db import Database, among
from models.ends import Settled
from models.errors import AlreadyFinished, NotFound
from models.jobs import NewJob
from models.results import Ended, NewResult
from models.states import JOB
from tests.models import given


def test_submit_stores_a_queued_job_with_its_body(database: Database) -> None:
    """What was submitted is there, queued now, with nothing of a result."""
    new = NewJob(
        "alice",
        "fake",
        "/v1/completions",
        '{"prompt": "é"}',
        lane="bulk",
        tokens=7,
        metadata={"a": "b"},
        webhook=given.HOOK,
        expires_in=60.0,
    )
    before = time.time()
    with database.transaction() as tx:
        job_id = jobs.submit(tx, new).id
    after = time.time()
    job = given.job(database, job_id)
    (body,) = given.rows(database, jobs.bodies)
    assert (job.owner, job.model, job.lane, job.tokens, job.state) == ("alice", "fake", "bulk", 7, "queued")
    assert (job.attempts, job.deferrals, job.batch_id, job.finished_at) == (0, 0, None, None)
    assert before - 1 <= job.created_at <= after + 1
    assert job.expires_at == pytest.approx(job.created_at + 60, abs=1)
    assert job.pos / 1e6 == pytest.approx(job.created_at, abs=1)
    assert (body.body, body.metadata, body.webhook_url) == (new.body, {"a": "b"}, given.HOOK.url)
    assert given.rows(database, results.table) == []


def test_jobs_queue_in_the_order_of_their_submission(database: Database) -> None:
    """Ids and positions grow, so that the first come is the first served."""
    ids = [given.submitted(database)[0] for _ in range(5)]
    assert ids == sorted(ids)
    positions = [given.job(database, job_id).pos for job_id in ids]
    assert positions == sorted(positions)


@pytest.mark.parametrize("state", sorted(JOB.states))
def test_a_job_moves_only_along_the_machine(database: Database, state: str) -> None:
    """From each state exactly its steps are possible; every other move leaves the row as it is."""
    for target in sorted(JOB.states):
        (job_id,) = given.submitted(database)
        given.change(database, jobs.table, jobs.table.c.id == job_id, state=state)
        with database.transaction() as tx:
            moved = jobs.move(tx, target, jobs.table.c.id == job_id)
        allowed = target in JOB.steps[state]
        assert [row.id for row in moved] == ([job_id] if allowed else [])
        assert given.job(database, job_id).state == (target if allowed else state)


def test_a_move_that_the_machine_does_not_have_is_refused(database: Database) -> None:
    """A caller cannot widen the sources, nor invent a state."""
    with database.transaction() as tx:
        with pytest.raises(ValueError, match="no job goes from"):
            jobs.move(tx, "queued", sources=["succeeded"])
        with pytest.raises(ValueError, match="no state 'done'"):
            jobs.move(tx, "done")


def test_settle_stores_state_result_and_delivery_together(database: Database) -> None:
    """One transaction: when it is rolled back, nothing of the end is left."""
    batch = given.running(database, given.engine(database), 2, webhook=given.HOOK)
    first, second = (job.id for job in batch.jobs)
    with database.engine.connect() as tx:
        assert ends.settle(tx, "engine", {batch.id: [given.answered(first)]}) == {first}
        tx.rollback()
    assert given.states(database, [first, second]) == ["running", "running"]
    assert given.rows(database, results.table) == given.rows(database, deliveries.table) == []

    assert given.settled(database, batch.id, [given.answered(first)]) == {first}
    assert given.states(database, [first, second]) == ["succeeded", "running"]
    (result,) = given.rows(database, results.table)
    assert (result.job_id, result.batch_id, result.engine_id, result.status) == (first, batch.id, "engine", 200)
    assert (result.prompt_tokens, result.completion_tokens) == (3, 5)
    (delivery,) = given.rows(database, deliveries.table)
    assert (delivery.job_id, delivery.event, delivery.state) == (first, "job.succeeded", "pending")


def test_settling_twice_stores_once(database: Database) -> None:
    """A commit whose answer was lost is repeated without harm."""
    batch = given.running(database, given.engine(database), 3, webhook=given.HOOK)
    outcomes = [given.answered(job.id) for job in batch.jobs]
    assert len(given.settled(database, batch.id, outcomes)) == 3
    assert given.settled(database, batch.id, outcomes) == set()
    assert len(given.rows(database, results.table)) == len(given.rows(database, deliveries.table)) == 3


def test_a_stale_batch_writes_nothing(database: Database) -> None:
    """A worker that was frozen, while its job ran again elsewhere, changes nothing when it wakes up."""
    old = given.running(database, given.engine(database), webhook=given.HOOK)
    (job,) = old.jobs
    with database.transaction() as tx:
        batches.give_back(tx, batches.table.c.id == old.id)
    given.cut(database, [job.id])
    new = given.claimed(database, given.engine(database, "other"))
    assert given.settled(database, old.id, [given.answered(job.id, '"stale"')]) == set()
    assert given.settled(database, new.id, [given.answered(job.id, '"mine"')]) == {job.id}
    assert given.settled(database, old.id, [Settled(job.id, "delayed", run_in=0.0)]) == set()
    (result,) = given.rows(database, results.table)
    assert (result.body, result.batch_id) == ('"mine"', new.id)
    assert given.job(database, job.id).attempts == 2


def test_one_settle_stores_every_kind_of_outcome(database: Database) -> None:
    """Succeeded, failed and delayed jobs of one batch go in one transaction."""
    batch = given.running(database, given.engine(database), 3)
    good, bad, later = (job.id for job in batch.jobs)
    failed = Settled(bad, "failed", NewResult(400, code="bad_request", message="no"))
    outcomes = [given.answered(good), failed, Settled(later, "delayed", run_in=30.0)]
    assert given.settled(database, batch.id, outcomes) == {good, bad, later}
    assert given.states(database, [good, bad, later]) == ["succeeded", "failed", "delayed"]
    assert {row.job_id for row in given.rows(database, results.table)} == {good, bad}


def test_a_delayed_job_waits_for_its_time_and_queues_anew(database: Database) -> None:
    """Deferred: out of its batch, counted, not before `run_at`, and behind those that came meanwhile."""
    batch = given.running(database, given.engine(database))
    (job,) = batch.jobs
    before = time.time()
    given.settled(database, batch.id, [Settled(job.id, "delayed", run_in=60.0)])
    after = time.time()
    (younger,) = given.submitted(database)
    row = given.job(database, job.id)
    assert (row.state, row.batch_id, row.deferrals) == ("delayed", None, 1)
    assert before + 59 <= row.run_at <= after + 61
    with database.transaction() as tx:
        assert not due.any_due(tx)
        assert due.release_due(tx) == set()
    given.change(database, jobs.table, jobs.table.c.id == job.id, run_at=1.0)
    with database.transaction() as tx:
        assert due.any_due(tx)
        assert due.release_due(tx) == {"fake"}
        assert not due.any_due(tx)
    row = given.job(database, job.id)
    assert (row.state, row.run_at) == ("queued", None)
    assert row.pos >= given.job(database, younger).pos


def test_a_running_job_can_be_cancelled_and_its_answer_is_dropped(database: Database) -> None:
    """The end state stands; the engine's late answer is not stored."""
    batch = given.running(database, given.engine(database), webhook=given.HOOK)
    (job,) = batch.jobs
    with database.transaction() as tx:
        ends.cancel(tx, "alice", job.id)
        assert jobs.stopped(tx, {batch.id: [job.id]}) == [job.id]
    assert given.settled(database, batch.id, [given.answered(job.id)]) == set()
    assert given.states(database, [job.id]) == ["cancelled"]
    assert given.rows(database, results.table) == []
    assert [row.event for row in given.rows(database, deliveries.table)] == ["job.cancelled"]


def test_cancel_knows_no_jobs_of_others_and_no_ended_ones(database: Database) -> None:
    """Another owner's job does not exist; an ended one says how it ended."""
    (job_id,) = given.submitted(database)
    with database.transaction() as tx, pytest.raises(NotFound):
        ends.cancel(tx, "mallory", job_id)
    with database.transaction() as tx, pytest.raises(NotFound):
        ends.cancel(tx, "alice", "job_none")
    with database.transaction() as tx:
        ends.cancel(tx, "alice", job_id)
    with database.transaction() as tx, pytest.raises(AlreadyFinished, match="already cancelled"):
        ends.cancel(tx, "alice", job_id)


def test_jobs_expire_when_their_time_has_passed(database: Database) -> None:
    """In whatever open state, at most so many at once, and only those that have a time."""
    mine = given.engine(database)
    batch = given.running(database, mine, expires_in=0.0)
    ids = [*given.submitted(database, 3, expires_in=0.0, webhook=given.HOOK), batch.jobs[0].id]
    kept = [*given.submitted(database, expires_in=60.0), *given.submitted(database)]
    time.sleep(0.01)
    with database.transaction() as tx:
        assert due.any_due(tx)
        assert len(due.expire(tx, limit=3)) == 3
    with database.transaction() as tx:
        assert len(due.expire(tx, limit=3)) == 1
        assert due.expire(tx) == []
        assert not due.any_due(tx)
    assert given.states(database, [*ids, *kept]) == ["expired"] * 4 + ["queued"] * 2
    assert [row.event for row in given.rows(database, deliveries.table)] == ["job.expired"] * 3
    assert given.settled(database, batch.id, [given.answered(batch.jobs[0].id)]) == set()


def test_stopped_names_what_runs_here_no_longer(database: Database) -> None:
    """Given back, settled, or in another batch: the worker is told, of its own jobs only."""
    batch = given.running(database, given.engine(database), 3)
    here, done, unknown = batch.jobs[0].id, batch.jobs[1].id, "job_unknown"
    given.settled(database, batch.id, [given.answered(done)])
    with database.reading() as tx:
        assert jobs.stopped(tx, {batch.id: [here, done, unknown]}) == [done, unknown]
        assert jobs.stopped(tx, {"batch_other": [here]}) == [here]
        assert jobs.stopped(tx, {}) == []


def test_cancel_expire_and_settle_at_once_leave_one_end(database: Database) -> None:
    """Each job ends once, with a result only if it succeeded, and one delivery that tells its real end."""
    batch = given.running(database, given.engine(database), 40, webhook=given.HOOK, expires_in=0.0)
    ids = [job.id for job in batch.jobs]

    def settle() -> None:
        for nth in range(0, 40, 4):
            given.settled(database, batch.id, [given.answered(job_id) for job_id in ids[nth : nth + 4]])

    def cancel() -> None:
        for job_id in reversed(ids):
            with database.transaction() as tx:
                try:
                    ends.cancel(tx, "alice", job_id)
                except AlreadyFinished:
                    continue

    def expire() -> None:
        for _ in range(10):
            with database.transaction() as tx:
                due.expire(tx, limit=2)

    given.together([settle, settle, cancel, expire])
    ended = dict(zip(ids, given.states(database, ids), strict=True))
    assert set(ended.values()) <= {"succeeded", "cancelled", "expired"}
    stored = [row.job_id for row in given.rows(database, results.table)]
    assert sorted(stored) == sorted(job_id for job_id, end in ended.items() if end == "succeeded")
    told = {row.job_id: row.event for row in given.rows(database, deliveries.table)}
    assert told == {job_id: f"job.{end}" for job_id, end in ended.items()}
    assert len(given.rows(database, deliveries.table)) == 40


def _settle_mixed(tx: sa.Connection, batch: batches.Claimed) -> None:
    first, second = (job.id for job in batch.jobs)
    ends.settle(tx, "engine", {batch.id: [given.answered(first), Settled(second, "failed", NewResult(500))]})


def _crash_mixed(tx: sa.Connection, batch: batches.Claimed) -> None:
    (row,) = tx.execute(sa.select(batches.table).where(batches.table.c.id == batch.id)).all()
    cohorts.crash(tx, row.engine_id, row.incarnation, "crashed", max_attempts=20)


@pytest.mark.parametrize(("work", "pause_at"), [(_settle_mixed, 2), (_crash_mixed, 3)])
def test_jobs_are_locked_in_one_order(postgres_database: Database, work: Callable[..., None], pause_at: int) -> None:
    """Work that moves the later job first has locked the earlier one before: beside others it never deadlocks."""
    batch = given.running(postgres_database, given.engine(postgres_database), 2)
    given.change(postgres_database, jobs.table, jobs.table.c.id == batch.jobs[1].id, attempts=20)
    halfway = threading.Event()
    updates: list[str] = []

    def pause(_conn: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("UPDATE jobs") and threading.current_thread().name == "mixed":
            updates.append(statement)
            if len(updates) == pause_at:
                halfway.set()
                time.sleep(0.3)

    def mixed() -> None:
        threading.current_thread().name = "mixed"
        with postgres_database.transaction() as tx:
            work(tx, batch)

    def cancel() -> None:
        assert halfway.wait(60)
        with postgres_database.transaction() as tx:
            jobs.move(tx, "cancelled", among(jobs.table.c.id, [job.id for job in batch.jobs]))

    sa.event.listen(postgres_database.engine, "before_cursor_execute", pause)
    given.together([mixed, cancel])


def test_a_result_cannot_be_written_twice(database: Database) -> None:
    """The primary key is the last guard, below all others."""
    batch = given.running(database, given.engine(database))
    given.settled(database, batch.id, [given.answered(batch.jobs[0].id)])
    with pytest.raises(sa.exc.IntegrityError), database.transaction() as tx:
        results.store(tx, "engine", [Ended(batch.jobs[0].id, "succeeded", NewResult(200, "{}"))], {})
