"""Usage: each job that ends is counted once, whatever happens on the way."""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from typing import Any

import pytest
import sqlalchemy as sa

from models import due, ends, jobs, usage
from models.db import Database, new_id
from models.ends import Settled
from models.errors import AlreadyFinished
from models.results import NewResult
from tests.models import given

ANSWER = NewResult(200, "{}", prompt_tokens=5, completion_tokens=2, cached_tokens=1, reasoning_tokens=1)
DAYS = (0, 10**6)


def used(database: Database, owner: str | None = None) -> list[dict[str, Any]]:
    """Return what was used, without the days."""
    with database.reading() as tx:
        rows = [row._asdict() for row in usage.page(tx, owner, *DAYS)]
    return [{name: value for name, value in row.items() if value and name != "day"} for row in rows]


def running(database: Database, count: int = 1, **of: Any) -> dict[str, list[str]]:
    """Return a batch of running jobs."""
    ids, batch = given.submitted(database, count, **of), new_id("batch")
    with database.transaction() as tx:
        these = jobs.table.c.id.in_(ids)
        jobs.move(tx, "batched", these, batch_id=batch)
        jobs.move(tx, "running", these, attempts=1)
    return {batch: ids}


def settled(by_batch: dict[str, list[str]], state: str = "succeeded") -> dict[str, list[Settled]]:
    """Return that all of these have ended."""
    return {batch: [Settled(ident, state, ANSWER) for ident in ids] for batch, ids in by_batch.items()}


def test_jobs_and_tokens_are_counted_by_owner_and_model(database: Database) -> None:
    """In the transaction of their end, on the day that it is by the database's clock."""
    batches = running(database, 3) | running(database, 2, model="other") | running(database, 1, owner="bob")
    with database.transaction() as tx:
        ends.settle(tx, "engine", settled(batches))
    with database.reading() as tx:
        today = usage.day(tx)
        assert {row.day for row in usage.page(tx, None, *DAYS)} == {today}
        assert usage.page(tx, None, today + 1, today + 9) == usage.page(tx, None, 0, today - 1) == []
        assert [row.model for row in usage.page(tx, "alice", today, today, model="other")] == ["other"]
        assert len(usage.page(tx, None, *DAYS, limit=2)) == 2
    assert today == pytest.approx(time.time() / 86_400, abs=1.01)
    one = {"prompt_tokens": 5, "completion_tokens": 2, "cached_tokens": 1, "reasoning_tokens": 1}
    three = {"owner": "alice", "succeeded": 3} | {name: 3 * many for name, many in one.items()}
    assert three in [{name: value for name, value in row.items() if name != "model"} for row in used(database, "alice")]
    assert used(database, "bob")[0]["succeeded"] == 1
    assert used(database, "nobody") == []


def test_a_job_counts_once_however_often_it_is_settled(database: Database) -> None:
    """Twice, after its cancellation, or by another who had its batch before."""
    batches = running(database, 2)
    ((batch, (first, second)),) = batches.items()
    with database.transaction() as tx:
        ends.cancel(tx, "alice", first)
    for _ in range(2):
        with database.transaction() as tx:
            ends.settle(tx, "engine", settled(batches))
            ends.settle(tx, "another", {new_id("batch"): [Settled(second, "failed", ANSWER)]})
    with database.transaction() as tx, pytest.raises(AlreadyFinished):
        ends.cancel(tx, "alice", second)
    (row,) = used(database)
    assert (row["succeeded"], row["cancelled"], row["prompt_tokens"]) == (1, 1, 5)
    assert "failed" not in row
    assert batch


def test_what_is_rolled_back_is_not_counted(database: Database) -> None:
    """A crash before COMMIT, or a deadlock's victim: the second attempt counts, the first does not."""
    batches = running(database)
    with suppress(ZeroDivisionError), database.transaction() as tx:
        ends.settle(tx, "engine", settled(batches))
        _ = 1 / 0
    assert used(database) == []
    with database.transaction() as tx:
        ends.settle(tx, "engine", settled(batches))
    assert used(database)[0]["succeeded"] == 1


def test_every_way_to_end_is_counted(database: Database) -> None:
    """Failed by the sweeper, expired, cancelled, withdrawn because no engine was free."""
    failing = running(database)
    withdrawn, expiring = given.submitted(database, 1)[0], given.submitted(database, 1)[0]
    given.change(database, jobs.table, jobs.table.c.id == expiring, expires_at=1.0)
    with database.transaction() as tx:
        ends.fail(tx, "poison", "it is", jobs.table.c.id.in_(next(iter(failing.values()))))
        assert ends.withdraw(tx, withdrawn)
        assert not ends.withdraw(tx, withdrawn)
        due.expire(tx)
    (row,) = used(database)
    assert (row["failed"], row["cancelled"], row["expired"]) == (1, 1, 1)
    assert "prompt_tokens" not in row


def test_many_who_count_at_once_neither_block_nor_miss(database: Database) -> None:
    """Engines and cancels at the same moment, over the same owners in any order."""
    owners = ["alice", "bob", "carol"]
    work = [running(database, 2, owner=owner, model=model) for owner in owners for model in ("a", "b")]
    failed: list[BaseException] = []

    def settle(nth: int) -> None:
        mine = {batch: ids for batches in work[:: 1 - 2 * (nth % 2)] for batch, ids in batches.items()}
        try:
            database.retrying(lambda tx: ends.settle(tx, f"engine{nth % 2}", settled(mine)))
        except BaseException as error:  # noqa: BLE001  # for the test to see
            failed.append(error)

    threads = [threading.Thread(target=settle, args=(nth,)) for nth in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failed
    assert [row["succeeded"] for row in used(database)] == [2] * 6


def test_the_tokens_of_today_are_of_today(database: Database) -> None:
    """Of all models and engines of one owner, and the day ends at midnight UTC."""
    for engine in ("one", "two"):
        done = settled(running(database, 1, model=engine))
        with database.transaction() as tx:
            ends.settle(tx, engine, done)
    with database.transaction() as tx:
        yesterday = sa.insert(usage.table).from_select(
            [column.name for column in usage.table.c],
            sa.select(*(column - 1 if column.name == "day" else column for column in usage.table.c)),
        )
        tx.execute(yesterday)
    with database.reading() as tx:
        today = usage.today(tx, "alice")
        assert usage.today(tx, "bob").tokens == 0
    assert today.tokens == 2 * (5 + 2)
    assert 0 < today.left <= 86_400
    assert (time.time() + today.left) % 86_400 == pytest.approx(0, abs=60) or today.left > 86_340


def test_old_usage_goes_in_slices(database: Database) -> None:
    """The oldest first, and nothing that is young enough."""
    rows = [
        dict.fromkeys(usage.STATES + usage.TOKENS, 1) | {"owner": "alice", "day": day, "model": "m", "engine": ""}
        for day in range(10)
    ]
    with database.transaction() as tx:
        tx.execute(sa.insert(usage.table), rows)
    with database.transaction() as tx:
        assert [usage.forget(tx, 7, 5) for _ in range(3)] == [5, 2, 0]
    assert sorted(row.day for row in given.rows(database, usage.table)) == [7, 8, 9]
