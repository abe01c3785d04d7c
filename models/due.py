"""Jobs whose time has come: open ones that expire, delayed ones that are queued again; in slices."""

from __future__ import annotations

import sqlalchemy as sa

from models import ends, jobs
from models.db import among, literal, micros, now

_job = jobs.table.c
_EXPIRING = (_job.expires_at <= now(), _job.expires_at.is_not(None), jobs.OPEN)
_DELAY_OVER = (_job.state == literal("delayed"), _job.run_at <= now())


def expire(tx: sa.Connection, limit: int = 200) -> list[str]:
    """Expire up to `limit` open jobs whose time has passed; return their ids."""
    due = sa.select(_job.id).where(*_EXPIRING).order_by(_job.expires_at).limit(limit)
    ids = tx.execute(due).scalars().all()
    if not ids:
        return []
    moved = jobs.move(tx, "expired", among(_job.id, ids), finished_at=now())
    ends.record(tx, [(row, "expired", None) for row in moved])
    return [row.id for row in moved]


def release_due(tx: sa.Connection, limit: int = 200) -> set[str]:
    """Queue again up to `limit` delayed jobs whose time has come; return the models they are for."""
    due = sa.select(_job.id).where(*_DELAY_OVER).order_by(_job.run_at).limit(limit)
    ids = tx.execute(due).scalars().all()
    if not ids:
        return set()
    moved = jobs.move(tx, "queued", among(_job.id, ids), sources=["delayed"], run_at=None, pos=micros())
    return {row.model for row in moved}


def any_due(tx: sa.Connection) -> bool:
    """Tell whether a job is to expire or to be queued again."""
    either = sa.or_(sa.exists().where(*_EXPIRING), sa.exists().where(*_DELAY_OVER))
    return tx.execute(sa.select(either)).scalar_one()
