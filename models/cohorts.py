"""Cohorts: how a prompt that kills the engine is found without failing the others.

When an engine dies, the unfinished jobs of all its batches split into two cohorts. A cohort leaves the normal queue and
runs alone on an engine; when that dies too, its unfinished jobs split again. A job that died alone twice is poison.
About k * (ceil(log2(n / k)) + 3) deaths find k poisons among n jobs in flight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from models import batches, ends, jobs
from models.db import AnyRow, among, literal, new_id

POISON_DEATHS = 2
_job = jobs.table.c


@dataclass(frozen=True, slots=True)
class Crash:
    """What an engine's death cost: the batches it left, and the jobs that failed for good because of it."""

    batches: int = 0
    requeued: int = 0
    poison: Sequence[str] = ()
    interrupted: Sequence[str] = ()
    models: Sequence[str] = ()


def crash(  # a death has these facts
    tx: sa.Connection, engine: str, incarnation: str, to: str, *, max_attempts: int, charge: bool = True
) -> Crash:
    """End all running batches of an incarnation as `crashed` or `lost`, and queue what they left undone.

    With `charge=False` (the death is known not to be the jobs' fault) nothing is split and nobody is blamed.
    """
    mine = (batches.table.c.engine_id == engine, batches.table.c.incarnation == incarnation)
    ended = batches.move(tx, to, *mine)
    if not ended:
        return Crash()
    ids = [batch.id for batch in ended]
    jobs.lock(tx, among(_job.batch_id, ids), jobs.IN_BATCH)
    # Beside another batch nothing is proved against a job.
    alone = len(ended) == 1 and ended[0].cohort_id is not None and ended[0].size == 1
    if charge and alone:
        _charge(tx, ids)
    interrupted, poison = _fail_hopeless(tx, ids, max_attempts)
    left = _unfinished(tx, ids)
    if charge:
        for group in split(left):
            _requeue(tx, group, cohort_id=new_id("cohort"))
    else:
        _requeue(tx, left)
    return Crash(len(ids), len(left), poison, interrupted, sorted({batch.model for batch in ended}))


def split(ids: Sequence[str]) -> list[Sequence[str]]:
    """Split jobs into two groups of half the size; one job stays alone."""
    middle = (len(ids) + 1) // 2
    return [group for group in (ids[:middle], ids[middle:]) if group]


def _unfinished(tx: sa.Connection, batch_ids: Sequence[str]) -> list[str]:
    chosen = sa.select(_job.id).where(among(_job.batch_id, batch_ids), jobs.IN_BATCH).order_by(_job.id)
    return list(tx.execute(chosen).scalars())


def _charge(tx: sa.Connection, batch_ids: Sequence[str]) -> None:
    running = _job.state == literal("running")
    died = sa.update(jobs.table).where(among(_job.batch_id, batch_ids), running, jobs.IN_BATCH)
    tx.execute(died.values(lone_deaths=_job.lone_deaths + 1))


def _fail_hopeless(tx: sa.Connection, batch_ids: Sequence[str], max_attempts: int) -> tuple[list[str], list[str]]:
    mine = among(_job.batch_id, batch_ids)
    poison = ends.fail(
        tx,
        "poison",
        "The engine died twice while it ran this job alone; it is not tried again.",
        mine,
        jobs.IN_BATCH,
        _job.lone_deaths >= POISON_DEATHS,
    )
    interrupted = ends.fail(
        tx,
        "interrupted",
        f"The job was interrupted {max_attempts} times; it is not tried again.",
        mine,
        jobs.IN_BATCH,
        _job.attempts >= max_attempts,
    )
    return interrupted, poison


def _requeue(tx: sa.Connection, ids: Sequence[str], **values: Any) -> None:
    sources = ["batched", "running"]
    jobs.move(tx, "queued", among(_job.id, ids), sources=sources, batch_id=None, **values)


def busy_engines(tx: sa.Connection) -> set[str]:
    """Return the engines that a cohort has for itself, or is waiting for."""
    open_states = [literal("ready"), literal("running")]
    held = sa.select(batches.table.c.engine_id).where(
        batches.table.c.state.in_(open_states), batches.table.c.cohort_id.is_not(None)
    )
    return set(tx.execute(held).scalars())


def next_waiting(tx: sa.Connection, model: str) -> tuple[str, Sequence[AnyRow]] | None:
    """Return the oldest queued cohort of a model with its jobs, unless one is under way: only one runs at a time."""
    open_states = [literal("ready"), literal("running")]
    under_way = sa.exists().where(
        batches.table.c.model == model,
        batches.table.c.state.in_(open_states),
        batches.table.c.cohort_id.is_not(None),
    )
    queued = (_job.model == model, _job.state == literal("queued"), _job.cohort_id.is_not(None))
    oldest = tx.execute(sa.select(sa.func.min(_job.cohort_id)).where(*queued, ~under_way)).scalar_one()
    if oldest is None:
        return None
    members = sa.select(_job.id, _job.lane, _job.tokens).where(*queued, _job.cohort_id == oldest).order_by(_job.id)
    return oldest, tx.execute(members).all()
