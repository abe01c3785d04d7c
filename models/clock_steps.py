"""A database clock that was set back: every due time that was written before is put back with it.

Without that a delay of five seconds lasts an hour and five seconds, and a lease whose holder has died is waited for as
long. A clock that is set on needs nothing: what is due early is done early, and leases have their grace (`sweeps`).
"""

from __future__ import annotations

import sqlalchemy as sa

from models import batches, bulks, deliveries, engines, jobs
from models.db import literal, now, one_of
from models.states import BULK

_UNNOTICED = 60.0
"""Seconds for which a step may have gone unnoticed, at most; what was made since then has the right times."""


def put_back(tx: sa.Connection, seconds: float) -> None:
    """Put back by so many seconds what is open and lies ahead, in the transaction that notes the step.

    What was written since the step is put back too: then something is tried early, or a lease has only its grace.
    An expiry is not, it would end a job too soon.
    """
    job, delivery, bulk = jobs.table.c, deliveries.table.c, bulks.table.c
    unsent = one_of(delivery.state, ("pending", "sending"))
    unfinished = one_of(bulk.state, BULK.open)
    for column, where in (
        (batches.table.c.lease_until, batches.table.c.state == literal("running")),
        (engines.table.c.seen_at, engines.table.c.state != literal("gone")),
        (job.run_at, job.state == literal("delayed")),
        (job.expires_at, sa.and_(job.expires_at.is_not(None), jobs.OPEN, _before_it(job.created_at))),
        (delivery.next_at, unsent),
        (bulk.lease_until, unfinished),
        (bulk.expires_at, sa.and_(unfinished, _before_it(bulk.created_at))),
    ):
        ahead = sa.and_(where, column > now())
        tx.execute(sa.update(column.table).where(ahead).values({column: column - seconds}))


def _before_it(created_at: sa.ColumnElement[float]) -> sa.ColumnElement[bool]:
    return sa.or_(created_at > now(), created_at < now() - _UNNOTICED)
