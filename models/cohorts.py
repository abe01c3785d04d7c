"""Cohorts: how a prompt that kills the engine is found without failing the others.

When an engine dies, the unfinished jobs of all its batches split into two cohorts. A cohort leaves the normal queue and
runs alone on an engine. When that dies too its jobs are suspects, which run half by half: what is left when one half
has passed holds the culprit, so it is halved again before it runs. A job that died alone is put aside for a while and
tried again; the third such death makes it poison. At most about k * (ceil(log2(n / k)) + 3) deaths find k poisons
among n jobs in flight.

Who kills engines from outside must not make innocents look guilty (docs/decisions/blame.md): only the known death of a
process counts against a job, and what counted is forgiven when the engine vanishes while nothing runs on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import sqlalchemy as sa

from models import batches, ends, engines, jobs, past_attempts
from models.db import AnyRow, among, literal, new_id, now
from models.engines import Incarnation

LONE_DEATHS = 3
REST, MOST_REST = 16.0, 900.0
"""A job that died alone rests `REST` times as long as it ran, `MOST_REST` seconds at most."""

T = TypeVar("T")
_SUSPECTS = "suspects"  # sorts behind "cohort": who is probably innocent runs first
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

    With `charge=False` (it is not known that the process died of what it ran) the jobs split, but nobody is blamed.
    """
    mine = (batches.table.c.engine_id == engine, batches.table.c.incarnation == incarnation)
    ended = batches.move(tx, to, *mine)
    if not ended:
        return Crash()
    ids = [batch.id for batch in ended]
    jobs.lock(tx, among(_job.batch_id, ids), jobs.IN_BATCH)
    # Beside another batch nothing is proved against a job.
    blamed = charge and len(ended) == 1 and ended[0].cohort_id is not None and ended[0].size == 1
    if blamed:
        _charge(tx, ids)
    interrupted, poison = _fail_hopeless(tx, ids, max_attempts)
    left = _unfinished(tx, ids)
    past_attempts.note(tx, to, among(_job.id, left))
    if blamed:
        _put_aside(tx, left, ended[0].finished_at - ended[0].claimed_at)
    elif all(batch.cohort_id for batch in ended):
        _requeue(tx, left, cohort_id=new_id(_SUSPECTS))
    else:
        for group in split(left):
            _requeue(tx, group, cohort_id=new_id("cohort"))
    return Crash(len(ids), len(left), poison, interrupted, sorted({batch.model for batch in ended}))


def vanish(tx: sa.Connection, gone: Incarnation, *, max_attempts: int, charge: bool = True) -> Crash:
    """End an incarnation whose process is gone, and all that it left; the engine counts as live no more.

    If nothing ran on it, something else than a prompt kills engines: its suspects are forgiven what happened so far.
    """
    was = engines.state(tx, gone)
    crashed = crash(tx, gone.engine, gone.id, "crashed", max_attempts=max_attempts, charge=charge)
    if was in {"starting", "live"} and not crashed.batches:
        _forgive(tx, engines.names(tx, gone.engine))
    if was is not None:
        batches.give_back(tx, batches.table.c.state == literal("ready"), batches.table.c.engine_id == gone.engine)
        engines.leave(tx, gone, "gone")
    return crashed


def split(members: Sequence[T]) -> list[Sequence[T]]:
    """Split jobs into two groups of half the size; one job stays alone."""
    middle = (len(members) + 1) // 2
    return [group for group in (members[:middle], members[middle:]) if group]


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
        f"The engine died {LONE_DEATHS} times while it ran this job alone; it is not tried again.",
        mine,
        jobs.IN_BATCH,
        _job.lone_deaths >= LONE_DEATHS,
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


def _put_aside(tx: sa.Connection, ids: Sequence[str], ran: float) -> None:
    """Let a suspect rest, as itself: a few kills in a row are over then, and a steady killer hits the idle engine."""
    rest = min(MOST_REST, REST * max(0.0, ran))
    jobs.move(tx, "delayed", among(_job.id, ids), sources=["running"], batch_id=None, run_at=now() + rest)


def _forgive(tx: sa.Connection, models: Sequence[str]) -> None:
    waiting = _job.state.in_([literal("delayed"), literal("queued")])
    suspects = (waiting, _job.cohort_id.is_not(None), _job.lone_deaths > 0, _job.model.in_(models))
    tx.execute(sa.update(jobs.table).where(*suspects).values(lone_deaths=0))


def busy_engines(tx: sa.Connection) -> set[str]:
    """Return the engines that a cohort has for itself, or is waiting for."""
    open_states = [literal("ready"), literal("running")]
    held = sa.select(batches.table.c.engine_id).where(
        batches.table.c.state.in_(open_states), batches.table.c.cohort_id.is_not(None)
    )
    return set(tx.execute(held).scalars())


def next_waiting(tx: sa.Connection, model: str) -> tuple[str, Sequence[AnyRow]] | None:
    """Return the oldest queued cohort of a model and who of it is to run, unless one is under way: one at a time.

    Of suspects that is one half. If it passes, the culprit is in the other, which is halved in its turn: run as a whole
    first, it would only cost one more death.
    """
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
    chosen = sa.select(_job.id, _job.lane, _job.tokens).where(*queued, _job.cohort_id == oldest).order_by(_job.id)
    members = tx.execute(chosen).all()
    return oldest, split(members)[0] if oldest.startswith(_SUSPECTS) else members
