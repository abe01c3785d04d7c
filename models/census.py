"""How much there is of everything: the counts behind the metrics page.

Only open jobs are counted, by their partial indexes: counting the ended ones would read the whole table.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from models import batches, deliveries, engines, jobs
from models.db import literal, now


@dataclass(frozen=True, slots=True)
class Census:
    """Counts of open jobs (state, lane, model, count), READY batches (model, lane, count), live engines, deliveries."""

    jobs: Sequence[tuple[str, str, str, int]]
    ready: Sequence[tuple[str, str, int]]
    engines: int
    deliveries: int


def take(tx: sa.Connection, live_within: float) -> Census:
    """Count everything; an engine counts as live when it was seen within so many seconds."""
    return Census(_jobs(tx), _ready(tx), len(engines.live(tx, live_within)), _deliveries(tx))


def recent_pace(tx: sa.Connection, model: str, within: float = 600.0) -> float | None:
    """Return how many jobs of a model ended a second lately, None when none did."""
    batch = batches.table.c
    done = (batch.created_at > now() - within, batch.model == model, batch.state == literal("finished"))
    counted = sa.select(sa.func.sum(batch.size), sa.func.min(batch.claimed_at), sa.func.max(batch.finished_at))
    size, first, last = tx.execute(counted.where(*done)).one()
    return float(size) / (last - first) if size and last > first else None


def _jobs(tx: sa.Connection) -> list[tuple[str, str, str, int]]:
    job = jobs.table.c
    queued = job.state == literal("queued")
    counted: Counter[tuple[str, str, str]] = Counter()
    # Each is the condition of one partial index.
    for part in (
        sa.and_(queued, job.cohort_id.is_(None)),
        sa.and_(queued, job.cohort_id.is_not(None)),
        job.state == literal("delayed"),
        jobs.IN_BATCH,
    ):
        groups = sa.select(job.state, job.lane, job.model, sa.func.count()).where(part)
        for state, lane, model, count in tx.execute(groups.group_by(job.state, job.lane, job.model)):
            counted[state, lane, model] += count
    return [(state, lane, model, count) for (state, lane, model), count in sorted(counted.items())]


def _ready(tx: sa.Connection) -> list[tuple[str, str, int]]:
    batch = batches.table.c
    groups = sa.select(batch.model, batch.lane, sa.func.count()).where(batch.state == literal("ready"))
    return [(model, lane, count) for model, lane, count in tx.execute(groups.group_by(batch.model, batch.lane))]


def _deliveries(tx: sa.Connection) -> int:
    delivery = deliveries.table.c
    waiting = delivery.state.in_([literal("pending"), literal("sending")])
    return tx.execute(sa.select(sa.func.count()).select_from(deliveries.table).where(waiting)).scalar_one()
