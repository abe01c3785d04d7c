"""What a test of the database layer starts from: jobs that were submitted, batches that were cut, engines."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import sqlalchemy as sa

from models import batches, endpoints, ends, engines, jobs
from models.db import AnyRow, Database, new_id, now
from models.ends import Settled
from models.engines import Incarnation
from models.jobs import NewJob, Webhook
from models.results import NewResult

T = TypeVar("T")
HOOK = Webhook("http://127.0.0.1:1/hook")


def engine(database: Database, name: str = "engine", models: Sequence[str] = ("fake",)) -> Incarnation:
    """Register a live engine with 256 slots; return its incarnation."""
    mine = Incarnation(name, new_id("run"), "fake", "host", 1, 1, "boot:1")
    with database.transaction() as tx:
        engines.register(tx, mine)
        engines.go_live(tx, mine, 256, 1, dict.fromkeys(models))
    return mine


def submitted(database: Database, count: int = 1, **fields: Any) -> list[str]:
    """Submit jobs one by one, in one transaction; return their ids."""
    values = {"owner": "alice", "model": "fake", "endpoint": "/v1/chat/completions", "body": "{}", **fields}
    with database.transaction() as tx:
        return [jobs.submit(tx, NewJob(**values)).id for _ in range(count)]


def cut(database: Database, ids: Sequence[str], **fields: Any) -> str:
    """Make a READY batch of jobs; return its id."""
    values = {"model": "fake", "lane": "standard", "rank": 1, "reason": "full", "tokens": len(ids), **fields}
    with database.transaction() as tx:
        batch_id = batches.gather(tx, batches.Cut(ids=ids, **values))
    assert batch_id is not None
    return batch_id


def claimed(database: Database, mine: Incarnation, *, lease: float = 15.0, idle: bool = True) -> batches.Claimed:
    """Claim the best READY batch."""
    batch = database.retrying(lambda tx: batches.claim(tx, mine, [0, 1, 2], lease, idle=idle))
    assert batch is not None
    return batch


def running(database: Database, mine: Incarnation, count: int = 1, **fields: Any) -> batches.Claimed:
    """Submit jobs and bring them, in one batch, to where they run."""
    cut(database, submitted(database, count, **fields))
    return claimed(database, mine)


def answered(job_id: str, body: str = '{"answer": 1}') -> Settled:
    """Return that a job succeeded."""
    return Settled(job_id, "succeeded", NewResult(200, body, prompt_tokens=3, completion_tokens=5))


def settled(database: Database, batch_id: str, outcomes: Sequence[Settled]) -> set[str]:
    """Settle in a transaction of its own; return the ids that took effect."""
    return database.retrying(lambda tx: ends.settle(tx, "engine", {batch_id: outcomes}))


def rows(database: Database, table: sa.Table, *where: sa.ColumnElement[bool]) -> Sequence[AnyRow]:
    """Return rows of a table, by its first column."""
    with database.reading() as tx:
        return tx.execute(sa.select(table).where(*where).order_by(table.c[0])).all()


def job(database: Database, job_id: str) -> AnyRow:
    """Return a job's row."""
    (found,) = rows(database, jobs.table, jobs.table.c.id == job_id)
    return found


def states(database: Database, ids: Sequence[str]) -> list[str]:
    """Return the states of jobs, in the order asked for."""
    found = {row.id: row.state for row in rows(database, jobs.table)}
    return [found[job_id] for job_id in ids]


def change(database: Database, table: sa.Table, *where: sa.ColumnElement[bool], **values: Any) -> None:
    """Change rows past all guards, for what a test cannot wait for."""
    with database.transaction() as tx:
        tx.execute(sa.update(table).where(*where).values(**values))


def together(works: Sequence[Callable[[], T]]) -> list[T]:
    """Run works in threads that start at the same moment; return their results, or raise what the first raised."""
    barrier = threading.Barrier(len(works))
    results: list[Any] = [None] * len(works)
    errors: list[BaseException] = []

    def run(nth: int) -> None:
        try:
            barrier.wait(30)
            results[nth] = works[nth]()
        except BaseException as error:  # noqa: BLE001  # handed to the test's own thread
            errors.append(error)

    threads = [threading.Thread(target=run, args=(nth,)) for nth in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    if errors:
        raise errors[0]
    return results


def sealed_endpoint(database: Database, secret: str) -> None:
    """Store a webhook endpoint of alice's whose secret is sealed like this."""
    texts = {"owner": "alice", "name": "", "url": "https://example.com", "secret": secret, "secret_hint": "whsec_..."}
    times = {"created_at": now(), "updated_at": now()}
    with database.transaction() as tx:
        added = sa.insert(endpoints.table).values(
            id=new_id("whe"), event_types=[], include_result=False, **texts, **times
        )
        tx.execute(added)
