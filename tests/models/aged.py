"""Rows as they are left by a service that has run for months: ids and times lie in the past."""

from __future__ import annotations

import time
from itertools import count
from typing import Any

import sqlalchemy as sa

from models import batches, bulks, deliveries, files, jobs, results, sweeps
from models.bulks import NewBulk
from models.db import Database, now

DAY = 86400.0
_numbers = count(1)


def ident(prefix: str, age: float, sign: str = "_") -> str:
    """Return an id that was made so many seconds ago."""
    return f"{prefix}{sign}{int((time.time() - age) * 1000):012x}7{next(_numbers):019x}"


def sweeping(database: Database) -> None:
    """Make it look as if the sweeper had run all the time."""
    with database.transaction() as tx:
        tx.execute(sa.delete(sweeps.table))
        tx.execute(sa.insert(sweeps.table).values(id=1, last_at=now(), grace_until=0.0))


def many(database: Database, number: int, age: float, ended: float | None, **values: Any) -> list[str]:
    """Store jobs that were made `age` and ended `ended` seconds ago (None: open), with bodies, and results if any."""
    clock = time.time()
    row = {
        "owner": "alice",
        "model": "fake",
        "lane": "standard",
        "endpoint": "/v1/completions",
        "state": "queued" if ended is None else "succeeded",
        "pos": 1,
        "tokens": 1,
        "notify": False,
        "attempts": 1,
        "deferrals": 0,
        "lone_deaths": 0,
        "created_at": clock - age,
        "finished_at": None if ended is None else clock - ended,
        **values,
    }
    ids = [ident("job", age) for _ in range(number)]
    with database.transaction() as tx:
        tx.execute(sa.insert(jobs.table), [{**row, "id": job_id} for job_id in ids])
        body = {"body": "{}", "webhook_include_result": False}
        tx.execute(sa.insert(jobs.bodies), [{**body, "job_id": job_id} for job_id in ids])
        if ended is not None:
            answer = {"status": 200, "body": "{}", "prompt_tokens": 1, "completion_tokens": 1, "created_at": clock}
            tx.execute(sa.insert(results.table), [{**answer, "job_id": job_id} for job_id in ids])
    return ids


def job(database: Database, age: float, ended: float | None, **values: Any) -> str:
    """Store one such job; return its id."""
    return many(database, 1, age, ended, **values)[0]


def bulk(database: Database, age: float, state: str, ended: float | None = None, **values: Any) -> str:
    """Store a bulk that was made `age` and reached its (end) state `ended` seconds ago; return its id."""
    kind = values.pop("kind", "bulk")
    moments = {} if ended is None else {f"{state}_at": time.time() - ended}
    bulk_id = ident(kind, age)
    with database.transaction() as tx:
        made = bulks.create(tx, NewBulk(owner="alice", kind=kind, lane="bulk"))
        shifted = {"id": bulk_id, "state": state, "created_at": time.time() - age, **moments, **values}
        tx.execute(sa.update(bulks.table).where(bulks.table.c.id == made.id).values(shifted))
    return bulk_id


def delivery(database: Database, of: str, age: float, state: str = "delivered") -> str:
    """Store the delivery of a job's or a bulk's end."""
    message, made = ident("msg", age), time.time() - age
    row = {"id": message, "job_id": of, "owner": "alice", "event": "job.succeeded", "url": "http://127.0.0.1:1/"}
    fate = {"include_result": False, "state": state, "try": 1, "next_at": made, "created_at": made}
    with database.transaction() as tx:
        tx.execute(sa.insert(deliveries.table).values({**row, **fate}))
    return message


def batch(database: Database, age: float, state: str, ended: float | None) -> str:
    """Store a batch of the dispatch."""
    batch_id, clock = ident("batch", age), time.time()
    row = {"id": batch_id, "model": "fake", "lane": "standard", "rank": 1, "state": state, "reason": "full", "size": 1}
    times = {"created_at": clock - age, "finished_at": None if ended is None else clock - ended}
    with database.transaction() as tx:
        tx.execute(sa.insert(batches.table).values({**row, **times, "tokens": 1}))
    return batch_id


def file(database: Database, age: float, state: str = "ready", expired: float | None = None) -> str:
    """Store a file that was made `age` and expired `expired` seconds ago (negative: it will); return its id."""
    with database.transaction() as tx:
        made = files.begin(tx, "alice", "batch")
        expires = None if expired is None else time.time() - expired
        # Whole seconds: several files are of the same moment.
        shifted = {"state": state, "created_at": float(int(time.time() - age)), "expires_at": expires}
        tx.execute(sa.update(files.table).where(files.table.c.id == made.id).values(shifted))
    return made.id


def ids(database: Database, column: sa.ColumnElement[str]) -> set[str]:
    """Return all values of a column."""
    with database.reading() as tx:
        return set(tx.execute(sa.select(column)).scalars())
