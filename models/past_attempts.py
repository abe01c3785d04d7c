"""Attempts that came to nothing: what a job's row no longer tells, once it waits for the next one.

Written where a batch is taken from running jobs (after a crash, or as an upstream puts them off), in the same
transaction.
"""

from __future__ import annotations

import sqlalchemy as sa

from models import jobs
from models.db import Id, literal, metadata, now, upsert

table = sa.Table(
    "past_attempts",
    metadata,
    sa.Column("job_id", Id, primary_key=True),
    sa.Column("attempt", sa.SmallInteger, primary_key=True, autoincrement=False),
    sa.Column("batch_id", Id, nullable=False),
    sa.Column("started_at", sa.Double),
    sa.Column("ended_at", sa.Double, nullable=False),
    sa.Column("outcome", sa.String(16), nullable=False),
)
"""`outcome`: crashed or lost (its engine died, or was silent for too long), returned (its engine was drained), deferred
(an upstream could not take it)."""

_job = jobs.table.c


def note(tx: sa.Connection, outcome: str, *where: sa.ColumnElement[bool]) -> None:
    """Note the present attempt of those of these jobs that run, before they are moved."""
    columns = (_job.id, _job.attempts, _job.batch_id, _job.started_at, now(), literal(outcome))
    running = sa.select(*columns).where(_job.state == literal("running"), *where)
    names = [column.name for column in table.c]
    tx.execute(upsert(tx, table).from_select(names, running).on_conflict_do_nothing())
