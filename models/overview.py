"""What is going on at this moment: the engines, and the batches that they have. It only reads."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from models import batches, engines, jobs, results
from models.db import AnyRow, literal, now, one_of

MOST_BATCHES = 50
REMEMBERED = 3600.0
"""Seconds for which an engine that has gone is still shown."""

MOST_FAILURES = 8

_engine, _batch = engines.table.c, batches.table.c
_job, _result = jobs.table.c, results.table.c


@dataclass(frozen=True, slots=True)
class Now:
    """Engines with their models, and the batches in flight, those that run longest first, MOST_BATCHES of `running`."""

    clock: float
    engines: Sequence[AnyRow]
    models: dict[str, list[str]]
    batches: Sequence[AnyRow]
    running: int


def look(tx: sa.Connection) -> Now:
    """Look at engines and batches.

    Each engine is its row with `silent` and `age` (seconds), each batch its row with `seconds` since its claim.
    """
    clock = float(tx.execute(sa.select(now())).scalar_one())
    served: defaultdict[str, list[str]] = defaultdict(list)
    for engine, model in tx.execute(sa.select(engines.serving.c.engine_id, engines.serving.c.model)):
        served[engine].append(model)
    for names in served.values():
        names.sort()
    running = _batch.state == literal("running")
    count = sa.select(sa.func.count()).select_from(batches.table).where(running)
    return Now(clock, _engines(tx), served, _batches(tx, running), int(tx.execute(count).scalar_one()))


def _engines(tx: sa.Connection) -> Sequence[AnyRow]:
    silent, age = (now() - _engine.seen_at).label("silent"), (now() - _engine.started_at).label("age")
    shown = sa.or_(_engine.state != literal("gone"), _engine.seen_at > now() - REMEMBERED)
    return tx.execute(sa.select(engines.table, silent, age).where(shown).order_by(_engine.id)).all()


def _batches(tx: sa.Connection, running: sa.ColumnElement[bool]) -> Sequence[AnyRow]:
    seconds = (now() - _batch.claimed_at).label("seconds")
    chosen = sa.select(batches.table, seconds).where(running).order_by(_batch.claimed_at, _batch.id)
    return tx.execute(chosen.limit(MOST_BATCHES)).all()


def failures(tx: sa.Connection, owner: str) -> Sequence[AnyRow]:
    """Return the newest of an owner's jobs that failed, with the error of each."""
    failed = (_job.owner == owner, _job.state == literal("failed"), one_of(_job.state, jobs.UNSUCCESSFUL))
    ids = sa.select(_job.id, _job.finished_at).where(*failed).order_by(_job.id.desc()).limit(MOST_FAILURES)
    newest = ids.subquery()
    source = newest.outerjoin(results.table, _result.job_id == newest.c.id)
    told = sa.select(newest, _result.error_code, _result.error_message).select_from(source)
    return tx.execute(told.order_by(newest.c.id.desc())).all()
