"""How much there is of everything: the counts behind the metrics page.

Only open jobs are counted, by their partial indexes: counting the ended ones would read the whole table.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from models import batches, deliveries, engines, jobs, loads
from models.db import literal, micros, now
from models.engines import Live
from models.loads import Running


@dataclass(frozen=True, slots=True)
class Census:
    """Counts of open jobs (state, lane, model, count), READY batches (model, lane, count), deliveries; live engines.

    `ages` has the seconds since the oldest queued job of a model and lane was submitted; cohorts are not looked at.
    `running` counts the jobs in the live engines.
    """

    jobs: Sequence[tuple[str, str, str, int]]
    ready: Sequence[tuple[str, str, int]]
    engines: Sequence[Live]
    deliveries: int
    ages: Sequence[tuple[str, str, float]] = ()
    running: Sequence[Running] = ()


def take(tx: sa.Connection, live_within: float) -> Census:
    """Count everything; an engine counts as live when it was seen within so many seconds."""
    open_jobs, live = _jobs(tx), engines.live(tx, live_within)
    oldest = ages(tx, sorted({(model, lane) for state, lane, model, _ in open_jobs if state == "queued"}))
    running = loads.running(tx, [engine.id for engine in live])
    return Census(open_jobs, _ready(tx), live, _deliveries(tx), oldest, running)


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


_OLDEST = sa.text(
    """
    WITH RECURSIVE hop(owner) AS (
        SELECT min(owner) FROM jobs
        WHERE model = :model AND lane = :lane AND state = 'queued' AND cohort_id IS NULL
        UNION ALL
        SELECT (SELECT min(owner) FROM jobs
                WHERE model = :model AND lane = :lane AND state = 'queued' AND cohort_id IS NULL
                  AND jobs.owner > hop.owner)
        FROM hop WHERE hop.owner IS NOT NULL
    )
    SELECT min((SELECT min(pos) FROM jobs
                WHERE model = :model AND lane = :lane AND state = 'queued' AND cohort_id IS NULL
                  AND jobs.owner = hop.owner))
    FROM hop WHERE hop.owner IS NOT NULL
    """
)


def ages(tx: sa.Connection, kinds: Sequence[tuple[str, str]]) -> list[tuple[str, str, float]]:
    """Return the age of the oldest queued job of each (model, lane): by hops, of each owner only the first in line."""
    clock = tx.execute(sa.select(micros())).scalar_one()
    oldest = [(*kind, tx.execute(_OLDEST, {"model": kind[0], "lane": kind[1]}).scalar_one()) for kind in kinds]
    return [(model, lane, max(0.0, (clock - pos) / 1e6)) for model, lane, pos in oldest if pos is not None]


def _ready(tx: sa.Connection) -> list[tuple[str, str, int]]:
    batch = batches.table.c
    groups = sa.select(batch.model, batch.lane, sa.func.count()).where(batch.state == literal("ready"))
    return [(model, lane, count) for model, lane, count in tx.execute(groups.group_by(batch.model, batch.lane))]


def _deliveries(tx: sa.Connection) -> int:
    delivery = deliveries.table.c
    waiting = delivery.state.in_([literal("pending"), literal("sending")])
    return tx.execute(sa.select(sa.func.count()).select_from(deliveries.table).where(waiting)).scalar_one()
