"""Idempotency keys: one job and one answer, however often and however parallel a request comes."""

from __future__ import annotations

import pytest

from models import idempotency, jobs
from models.db import Database
from models.errors import KeyBusy, KeyReused
from models.jobs import NewJob
from tests.models import given


def post(database: Database, key: str = "k", fingerprint: str = "body", owner: str = "alice") -> str:
    """Do what a POST does with a key; return the answer."""
    with database.transaction() as tx:
        answer = idempotency.begin(tx, owner, key, fingerprint)
        if answer is None:
            answer = jobs.submit(tx, NewJob(owner, "fake", "/v1/completions", "{}")).id
            idempotency.finish(tx, owner, key, answer)
        return answer


def test_fifty_requests_at_once_make_one_job(database: Database) -> None:
    """All get the answer of the one that was first."""
    answers = given.together([lambda: post(database)] * 50)
    (job,) = given.rows(database, jobs.table)
    assert set(answers) == {job.id}


def test_another_body_is_refused(database: Database) -> None:
    """The key is bound to what it was first used with."""
    post(database)
    with pytest.raises(KeyReused):
        post(database, fingerprint="another")
    assert len(given.rows(database, jobs.table)) == 1


def test_keys_belong_to_their_owner(database: Database) -> None:
    """Two owners may use the same key."""
    assert post(database) != post(database, owner="bob")


def test_a_request_that_failed_leaves_its_key_free(database: Database) -> None:
    """The key is taken in the transaction of the work."""
    with database.engine.connect() as tx:
        assert idempotency.begin(tx, "alice", "k", "body") is None
        tx.rollback()
    assert post(database, fingerprint="another").startswith("job_")


def test_a_key_without_an_answer_is_busy(database: Database) -> None:
    """A key that was taken, and whose work was not finished with it, gives no answer."""
    with database.transaction() as tx:
        idempotency.begin(tx, "alice", "k", "body")
    with pytest.raises(KeyBusy):
        post(database)


def anew(database: Database, before: str) -> str:
    """Do what a POST does whose key leads to what is gone; return the answer, `""` when another was faster."""
    try:
        with database.transaction() as tx:
            idempotency.renew(tx, "alice", "k", before)
            answer = jobs.submit(tx, NewJob("alice", "fake", "/v1/completions", "{}")).id
            idempotency.finish(tx, "alice", "k", answer)
            return answer
    except KeyBusy:
        return ""


def test_of_many_that_begin_anew_one_does(database: Database) -> None:
    """The others are told that it is at work; its answer is what the key leads to from then on."""
    gone = post(database)
    answers = given.together([lambda: anew(database, gone)] * 20)
    (made,) = set(answers) - {""}
    assert answers.count(made) == 1
    assert post(database) == made
    assert len(given.rows(database, jobs.table)) == 2


def test_a_key_is_released_with_its_work(database: Database) -> None:
    """In the same transaction, or not at all; never one that leads to something else by now, or is another owner's."""
    job_id = post(database)
    with database.engine.connect() as tx:
        idempotency.release(tx, "alice", "k", job_id)
        tx.rollback()
    for owner, answer in (("alice", "another"), ("bob", job_id)):
        with database.transaction() as tx:
            idempotency.release(tx, owner, "k", answer)
    assert post(database) == job_id
    with database.transaction() as tx:
        idempotency.release(tx, "alice", "k", job_id)
    assert post(database, fingerprint="another") != job_id


def test_old_keys_are_forgotten_in_slices(database: Database) -> None:
    """Only those that are old; at most so many at once."""
    for nth in range(5):
        post(database, f"old{nth}")
    given.change(database, idempotency.table, created_at=1.0)
    first = post(database, "young")
    with database.transaction() as tx:
        assert idempotency.any_older(tx, 3600.0)
        assert idempotency.forget(tx, 3600.0, limit=3) == 3
        assert idempotency.forget(tx, 3600.0, limit=3) == 2
        assert not idempotency.any_older(tx, 3600.0)
    assert post(database, "young") == first
