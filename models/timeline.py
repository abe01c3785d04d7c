"""One job on its way: its batches, the jobs beside it, its webhooks, and what it waits for. It only reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from models import batches, delivery_log, engines, jobs, loads, past_attempts, views
from models.db import AnyRow, literal, now
from models.delivery_log import Filters
from models.engines import Live
from models.errors import NotFound

MOST_MATES = 50
NEAR = 500
"""How many of an owner's jobs before and after this one it is looked among for those of its batch."""
MOST_DELIVERIES = MOST_ATTEMPTS = 20

_job, _batch = jobs.table.c, batches.table.c


@dataclass(frozen=True, slots=True)
class Waiting:
    """What a queued job waits for: the engines that take its model, what runs there, and which are still starting.

    `ahead` is how many of the owner's jobs go before it.
    """

    live: Sequence[Live]
    running: int
    starting: Sequence[AnyRow]
    ahead: int | None


@dataclass(frozen=True, slots=True)
class Timeline:
    """A job (its row), its batch, past attempts, mates (ids), deliveries; `waiting` while it is queued; the clock."""

    job: AnyRow
    batch: AnyRow | None
    past: Sequence[AnyRow]
    mates: Sequence[str]
    deliveries: Sequence[AnyRow]
    waiting: Waiting | None
    clock: float


def of(tx: sa.Connection, owner: str, job_id: str, live_within: float, start_within: float) -> Timeline:
    """Return the way of a job so far; seconds in which an engine was seen, and was started. Raises NotFound."""
    columns = (*jobs.table.c, now().label("clock"))
    row = tx.execute(sa.select(*columns).where(_job.id == job_id, _job.owner == owner)).one_or_none()
    if row is None:
        raise NotFound("job", job_id)
    batch = None if row.batch_id is None else _batch_of(tx, row.batch_id)
    told, _ = delivery_log.page(tx, owner, Filters(job_id=job_id), after=None, limit=MOST_DELIVERIES)
    waiting = _waiting(tx, row, live_within, start_within) if row.state == "queued" else None
    return Timeline(row, batch, _past(tx, job_id), _mates(tx, row), told[::-1], waiting, row.clock)


def _batch_of(tx: sa.Connection, batch_id: str) -> AnyRow | None:
    return tx.execute(sa.select(batches.table).where(_batch.id == batch_id)).one_or_none()


def _past(tx: sa.Connection, job_id: str) -> Sequence[AnyRow]:
    """Return the last attempts that came to nothing, in their order, each with what is still known of its batch."""
    past = past_attempts.table
    source = past.outerjoin(batches.table, _batch.id == past.c.batch_id)
    known = (_batch.created_at.label("batched_at"), _batch.engine_id, _batch.size, _batch.reason)
    chosen = sa.select(*past.c, *known).select_from(source).where(past.c.job_id == job_id)
    # One that an upstream puts off again and again has many.
    return tx.execute(chosen.order_by(past.c.attempt.desc()).limit(MOST_ATTEMPTS)).all()[::-1]


def _mates(tx: sa.Connection, row: AnyRow) -> list[str]:
    """Return the owner's other jobs in the same batch: looked for among its neighbours, as no index has them all."""
    if row.batch_id is None:
        return []
    mine = sa.select(_job.id, _job.batch_id).where(_job.owner == row.owner)
    before = mine.where(_job.id < row.id).order_by(_job.id.desc()).limit(NEAR)
    after = mine.where(_job.id > row.id).order_by(_job.id).limit(NEAR)
    near = [one for part in (before, after) for one in tx.execute(part)]
    return sorted(one.id for one in near if one.batch_id == row.batch_id)[:MOST_MATES]


def _waiting(tx: sa.Connection, row: AnyRow, within: float, start_within: float) -> Waiting:
    live = engines.live(tx, within, row.model)
    running = loads.running(tx, [engine.id for engine in live])
    busy = sum(load.jobs for load in running if not any(one.apart for one in live) or load.model == row.model)
    age = (now() - engines.table.c.started_at).label("age")
    # Nobody writes down the end of one that died as it loaded.
    loads_still = (engines.table.c.state == literal("starting"), engines.table.c.started_at > now() - start_within)
    starting = sa.select(engines.table.c.id, age).where(*loads_still)
    return Waiting(live, busy, tx.execute(starting.order_by("age")).all(), views.queue_position(tx, row))
