"""Replacing the key that stored secrets are sealed with."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from models import bulks, deliveries, endpoints, ends, idempotency, jobs, resealing
from models.db import Database, new_id, now
from models.deliveries import NewDelivery
from models.jobs import Webhook
from models.resealing import Resealed, locked_out, reseal
from models.sealing import NoSecretKey, Seal, new_key
from tests.models import given

OLD, NEW = new_key(), new_key()
SECRET = "whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do not wait between rounds."""
    monkeypatch.setattr(resealing, "PAUSE", 0.0)


def put(database: Database, secrets: dict[str, str | None]) -> None:
    """Store a job's body for each secret, by job."""
    rows = [
        {"job_id": job, "webhook_secret": secret, "webhook_include_result": False, "body": "{}"}
        for job, secret in secrets.items()
    ]
    with database.transaction() as tx:
        tx.execute(sa.insert(jobs.bodies), rows)


def stored(database: Database) -> dict[str, str | None]:
    """Return the secrets of jobs, by job."""
    with database.reading() as tx:
        chosen = sa.select(jobs.bodies.c.job_id, jobs.bodies.c.webhook_secret)
        return {row.job_id: row.webhook_secret for row in tx.execute(chosen)}


def test_every_secret_is_sealed_with_the_newest_key(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of an old key and those never sealed, over many slices; others stay; then the old key can go."""
    monkeypatch.setattr(resealing, "SLICE", 3)
    before = {
        **{f"job_{n:02}": Seal([OLD]).close(f"{SECRET}{n}") for n in range(10)},
        "job_20": SECRET,
        "job_21": Seal([NEW]).close(SECRET),
        "job_22": None,
        "job_23": Seal([new_key()]).close("lost"),
    }
    put(database, before)
    assert reseal(database, Seal([NEW, OLD])) == Resealed(changed=11, kept=1, lost=1)
    after = stored(database)
    assert {job: after[job] for job in ("job_21", "job_22", "job_23")} == {
        job: before[job] for job in ("job_21", "job_22", "job_23")
    }
    assert [Seal([NEW]).open(after[f"job_{n:02}"] or "") for n in range(10)] == [f"{SECRET}{n}" for n in range(10)]
    assert Seal([NEW]).open(after["job_20"] or "") == SECRET


def test_it_can_be_broken_off_and_run_again(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was done stays done; the second run does the rest, and a third finds nothing to do."""
    monkeypatch.setattr(resealing, "SLICE", 2)
    put(database, {f"job_{n}": Seal([OLD]).close(SECRET) for n in range(7)})
    seal = Seal([NEW, OLD])
    renewed = 0

    def dies(text: str) -> str:
        nonlocal renewed
        renewed += 1
        if renewed == 6:
            raise RuntimeError("killed")
        return Seal.renew(seal, text)

    monkeypatch.setattr(seal, "renew", dies)
    with pytest.raises(RuntimeError):
        reseal(database, seal)
    monkeypatch.undo()
    assert reseal(database, Seal([NEW, OLD])) == Resealed(changed=3, kept=4)
    assert reseal(database, Seal([NEW, OLD])) == Resealed(kept=7)


def meanwhile(
    monkeypatch: pytest.MonkeyPatch, column: sa.Column[Any], work: Callable[[], None], *, first: bool
) -> None:
    """Let something happen before, or after, a column is looked through, each time."""
    real = resealing._slices

    def slices(database: Database, seal: Seal, of: sa.Column[str], *, only_sealed: bool) -> Iterator[Resealed]:
        if of is column and first:
            work()
        yield from real(database, seal, of, only_sealed=only_sealed)
        if of is column and not first:
            work()

    monkeypatch.setattr(resealing, "_slices", slices)


def delivered(database: Database) -> list[str]:
    """Return the secrets of deliveries."""
    return [row.secret for row in given.rows(database, deliveries.table)]


@pytest.mark.parametrize("first", [True, False])
def test_a_job_that_ends_meanwhile_takes_no_old_secret_along(
    database: Database, monkeypatch: pytest.MonkeyPatch, first: bool
) -> None:
    """Its delivery has a copy of the job's secret: before or after that one was sealed anew."""
    hook = Webhook("http://127.0.0.1:1/h", Seal([OLD]).close(SECRET), False)
    (job_id,) = given.submitted(database, webhook=hook)

    def end() -> None:
        with database.transaction() as tx:
            ends.cancel(tx, given.job(database, job_id).owner, job_id)

    meanwhile(monkeypatch, jobs.bodies.c.webhook_secret, end, first=first)
    assert reseal(database, Seal([NEW, OLD])).changed in {1, 2}
    assert [Seal([NEW]).open(secret) for secret in delivered(database)] == [SECRET]


def test_what_is_copied_late_is_sealed_too(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A transaction that read the old secret and stores it when deliveries were looked through: they are again."""
    put(database, {"job_1": Seal([OLD]).close(SECRET)})
    late = 4

    def copy() -> None:
        nonlocal late
        late -= 1
        if late >= 0:
            one = NewDelivery("alice", new_id("job"), "job.failed", "http://127.0.0.1:1/h", Seal([OLD]).close(SECRET))
            with database.transaction() as tx:
                deliveries.enqueue(tx, [one])

    meanwhile(monkeypatch, deliveries.table.c.secret, copy, first=False)
    assert reseal(database, Seal([NEW, OLD])) == Resealed(changed=5)
    assert [Seal([NEW]).open(secret) for secret in delivered(database)] == [SECRET] * 4


def test_who_goes_on_with_the_old_key_does_not_keep_it_for_ever(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that was not restarted may store more for as long as it likes."""
    monkeypatch.setattr(resealing, "MOST_ROUNDS", 3)

    def store() -> None:
        one = NewDelivery("alice", new_id("job"), "job.failed", "http://127.0.0.1:1/h", Seal([OLD]).close(SECRET))
        with database.transaction() as tx:
            deliveries.enqueue(tx, [one])

    store()
    meanwhile(monkeypatch, deliveries.table.c.secret, store, first=False)
    assert reseal(database, Seal([NEW, OLD])) == Resealed(changed=4)


def test_every_place_of_a_secret_is_known() -> None:
    """Each column of a table of ours that is called a secret is resealed, but for the hint, which is shown."""
    tables = (bulks, deliveries, endpoints, idempotency)
    named = {
        column
        for table in (*(module.table for module in tables), jobs.bodies, jobs.table)
        for column in table.c
        if "secret" in column.name and not column.name.endswith(("_until", "_hint"))
    }
    assert named == set(resealing._COLUMNS)


def test_sealed_answers_too_and_no_others(database: Database) -> None:
    """An answer that is kept for an Idempotency-Key is sealed where a secret stands in it."""
    with database.transaction() as tx:
        for key, answer in (("a", Seal([OLD]).close("{}")), ("b", '{"id":"job_1"}'), ("c", None)):
            values = {"owner": "me", "key": key, "fingerprint": "f", "answer": answer, "created_at": now()}
            tx.execute(sa.insert(idempotency.table).values(**values))
    assert reseal(database, Seal([NEW, OLD])) == Resealed(changed=1)
    with database.reading() as tx:
        answers = {row.key: row.answer for row in tx.execute(sa.select(idempotency.table))}
    assert Seal([NEW]).open(answers["a"] or "") == "{}"
    assert (answers["b"], answers["c"]) == ('{"id":"job_1"}', None)


def test_without_a_key_nothing_is_touched(database: Database) -> None:
    """It says so, instead of counting everything as lost."""
    put(database, {"job_1": SECRET})
    with pytest.raises(NoSecretKey):
        reseal(database, Seal([]))
    assert stored(database) == {"job_1": SECRET}


def test_a_key_that_opens_nothing_is_noticed(database: Database) -> None:
    """Of the secrets that are needed next it is counted how many no key opens."""
    for key in (OLD, NEW):
        given.sealed_endpoint(database, Seal([key]).close(SECRET))
    with database.reading() as tx:
        assert locked_out(tx, Seal([NEW])) == (1, 2)
        assert locked_out(tx, Seal([NEW, OLD])) == (0, 2)
        assert locked_out(tx, Seal([])) == (2, 2)
