"""How much there is of everything: the counts behind the metrics page.

Only open jobs are counted, by their partial indexes: counting the ended ones would read the whole table.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from models import batches, bulks, deliveries, engines, jobs, loads, sweeps
from models.db import literal, micros, now
from models.engines import Live
from models.loads import Running


@dataclass(frozen=True, slots=True)
class Open:
    """How many of an owner's jobs of a model and lane are in a state.

    `age`: seconds since the first in line was submitted; None where there is no line (other states, and cohorts).
    """

    state: str
    lane: str
    model: str
    owner: str
    jobs: int
    age: float | None = None


@dataclass(frozen=True, slots=True)
class Census:
    """Counts of open jobs, READY batches (model, lane, count) and deliveries; live engines and the jobs in them.

    `sweep_age`: seconds since the sweeper last ran; None before its first time.
    """

    open: Sequence[Open]
    ready: Sequence[tuple[str, str, int]]
    engines: Sequence[Live]
    deliveries: int
    running: Sequence[Running] = ()
    sweep_age: float | None = None

    @property
    def jobs(self) -> list[tuple[str, str, str, int]]:
        """Return how many jobs there are of each (state, lane, model), whosever they are."""
        counted: Counter[tuple[str, str, str]] = Counter()
        for one in self.open:
            counted[one.state, one.lane, one.model] += one.jobs
        return [(*kind, count) for kind, count in sorted(counted.items())]

    @property
    def ages(self) -> list[tuple[str, str, float]]:
        """Return the seconds since the oldest queued job of each (model, lane) was submitted.

        Who is paused waits for a person, not for an engine: alerts, and what adds engines, go by these ages.
        """
        oldest: dict[tuple[str, str], float] = {}
        for one in self.open:
            if one.age is not None and one.lane != bulks.PAUSED:
                oldest[one.model, one.lane] = max(one.age, oldest.get((one.model, one.lane), 0.0))
        return [(*kind, age) for kind, age in sorted(oldest.items())]


def take(tx: sa.Connection, live_within: float) -> Census:
    """Count everything; an engine counts as live when it was seen within so many seconds."""
    live = engines.live(tx, live_within)
    running = loads.running(tx, [engine.id for engine in live])
    return Census(_open(tx), _ready(tx), live, _deliveries(tx), running, sweeps.age(tx))


def recent_pace(tx: sa.Connection, model: str, within: float = 600.0) -> float | None:
    """Return how many jobs of a model ended a second lately, None when none did."""
    batch = batches.table.c
    done = (batch.created_at > now() - within, batch.model == model, batch.state == literal("finished"))
    counted = sa.select(sa.func.sum(batch.size), sa.func.min(batch.claimed_at), sa.func.max(batch.finished_at))
    size, first, last = tx.execute(counted.where(*done)).one()
    return float(size) / (last - first) if size and last > first else None


def _open(tx: sa.Connection) -> list[Open]:
    job = jobs.table.c
    queued = job.state == literal("queued")
    kind = (job.state, job.lane, job.model, job.owner)
    found = []
    # Each is the condition of one partial index.
    for part, in_line in (
        (sa.and_(queued, job.cohort_id.is_(None)), True),
        (sa.and_(queued, job.cohort_id.is_not(None)), False),
        (job.state == literal("delayed"), False),
        (jobs.IN_BATCH, False),
    ):
        age = (micros() - sa.func.min(job.pos)) / 1e6 if in_line else sa.null()
        groups = sa.select(*kind, sa.func.count(), age).where(part).group_by(*kind)
        for state, lane, model, owner, count, oldest in tx.execute(groups):
            waited = None if oldest is None else max(0.0, float(oldest))
            found.append(Open(state, lane, model, owner, count, waited))
    return found


def _ready(tx: sa.Connection) -> list[tuple[str, str, int]]:
    batch = batches.table.c
    groups = sa.select(batch.model, batch.lane, sa.func.count()).where(batch.state == literal("ready"))
    return [(model, lane, count) for model, lane, count in tx.execute(groups.group_by(batch.model, batch.lane))]


def _deliveries(tx: sa.Connection) -> int:
    delivery = deliveries.table.c
    waiting = delivery.state.in_([literal("pending"), literal("sending")])
    return tx.execute(sa.select(sa.func.count()).select_from(deliveries.table).where(waiting)).scalar_one()
