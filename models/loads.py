"""What engines are doing, as the collector counts it: what runs, what is READY, and how long batches took."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import sqlalchemy as sa

from models import batches, jobs
from models.db import literal, now

_batch = batches.table.c

_MEASURED_FOR = 600.0
_MEASURED = 500
"""How far back, in seconds and batches, it is looked for how long batches took."""


@dataclass(frozen=True, slots=True)
class Running:
    """How many jobs of a model and lane (`rank`) run on an engine."""

    engine: str
    model: str
    rank: int
    jobs: int


@dataclass(frozen=True, slots=True)
class Took:
    """From when to when a batch ran, by the database's clock; `done`: to its end, and not until now or given back."""

    engine: str
    model: str
    lane: str
    size: int
    tokens: int
    began: float
    ended: float
    done: bool


def running(tx: sa.Connection, ids: Iterable[str]) -> list[Running]:
    """Return the open jobs in the running batches of these engines, counted by engine, model and lane."""
    kind = (_batch.engine_id, _batch.model, _batch.rank)
    counted = (
        sa.select(*kind, sa.func.count())
        .join(jobs.table, jobs.table.c.batch_id == _batch.id)
        .where(
            _batch.state == literal("running"),
            _batch.engine_id.in_(list(ids)),
            jobs.table.c.state == literal("running"),
            jobs.IN_BATCH,
        )
        .group_by(*kind)
    )
    return [Running(*row) for row in tx.execute(counted)]


def ready(tx: sa.Connection, model: str) -> dict[str, int]:
    """Return the number of jobs in a model's READY batches that any of its engines could take, by lane.

    Only this model's: if those of others on the same engine counted too, whoever is cut first would keep them out.
    """
    counted = (
        sa.select(_batch.lane, sa.func.sum(_batch.size))
        .where(_batch.state == literal("ready"), _batch.model == model, _batch.engine_id.is_(None))
        .group_by(_batch.lane)
    )
    return {row[0]: int(row[1]) for row in tx.execute(counted)}


def measured(tx: sa.Connection) -> list[Took]:
    """Return the times of the newest batches that an engine took, of all models, newest first."""
    times = (_batch.claimed_at, sa.func.coalesce(_batch.finished_at, now()), _batch.state == literal("finished"))
    recent = (
        sa.select(_batch.engine_id, _batch.model, _batch.lane, _batch.size, _batch.tokens, *times)
        .where(_batch.created_at > now() - _MEASURED_FOR)
        .order_by(_batch.created_at.desc())
        .limit(_MEASURED)
    )
    # Those that nobody took are few: filtered here, so that they are no reason for the database to look further.
    return [Took(*row) for row in tx.execute(recent) if row.claimed_at is not None]
