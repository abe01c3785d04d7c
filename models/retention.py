"""Retention: which rows and files are past their time, and their end, a slice at a time.

Ids are ordered by time, so what is old lies at the front of each primary key: it is read page by page up to the id of
the moment before which everything is past its time. What is open there, or ended later, is passed over. Every deletion
locks its rows and asks again, so that two at once are harmless.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from models import batches, bulks, deliveries, delivery_log, files, jobs, past_attempts, results, sweeps
from models.bulks import BATCH_KIND, BULK_KIND, UNFINISHED
from models.db import AnyRow, among, literal, now, one_of
from models.states import BATCH, BULK, JOB

Conditions = tuple[sa.ColumnElement[bool], ...]

_job, _bulk, _delivery, _file = jobs.table.c, bulks.table.c, deliveries.table.c, files.table.c
_LEFTOVER = one_of(_file.state, ("deleted", "uploading"))


@dataclass(frozen=True, slots=True)
class Kind:
    """Rows of one table that go when their time has passed: `due` says which (by a time), `purge` ends them."""

    name: str
    table: sa.Table
    prefix: str
    due: Callable[[float], Conditions]
    purge: Callable[[sa.Connection, Sequence[str]], None]

    @property
    def start(self) -> str:
        """Return what lies before every id."""
        return f"{self.prefix}_"

    def bound(self, before: float) -> str:
        """Return what lies behind every id that was made before a time: the first 48 bits are its milliseconds."""
        return f"{self.prefix}_{max(0, int(before * 1000)):012x}"


@dataclass(frozen=True, slots=True)
class Page:
    """What was found in a stretch of the primary key that ends with `upto`; `whole`: nothing older lies behind it."""

    ids: Sequence[str]
    upto: str
    whole: bool


def clock(tx: sa.Connection) -> float | None:
    """Return the database's clock; None while the sweeper stands still, or gives grace since the clock jumped."""
    row = tx.execute(sa.select(sweeps.table, now().label("clock"))).one_or_none()
    if row is None or row.grace_until > row.clock or not 0.0 <= row.clock - row.last_at <= sweeps.MOST_GAP:
        return None
    return float(row.clock)


def page(tx: sa.Connection, kind: Kind, behind: str, before: float, size: int) -> Page:
    """Look at the next `size` rows behind an id; return those that were past their time at the time `before`."""
    ident, bound = kind.table.c.id, kind.bound(before)
    ahead = sa.select(ident).where(ident > behind, ident < bound).order_by(ident)
    last = tx.execute(ahead.offset(size - 1).limit(1)).scalar_one_or_none()
    upto = bound if last is None else str(last)
    found = sa.select(ident).where(ident > behind, ident <= upto, *kind.due(before)).order_by(ident)
    return Page(tx.execute(found).scalars().all(), upto, last is None)


def retire(tx: sa.Connection, kind: Kind, ids: Sequence[str], before: float) -> Sequence[str]:
    """End those of these rows that are still past their time and that nobody else is ending; return their ids."""
    ident = kind.table.c.id
    mine = sa.select(ident).where(among(ident, ids), *kind.due(before)).order_by(ident)
    locked = tx.execute(mine.with_for_update(skip_locked=True)).scalars().all()
    if locked:
        kind.purge(tx, locked)
    return locked


def _none(column: sa.ColumnElement[Any], *where: sa.ColumnElement[bool] | sa.TextClause) -> sa.ColumnElement[bool]:
    """Return that there is no such row: looked up for one row at a time, never by reading the other table."""
    return sa.select(column).where(*where).limit(1).scalar_subquery().is_(None)


def _told(ident: sa.ColumnElement[str]) -> sa.ColumnElement[bool]:
    """Return that no event of this job or bulk is still on its way."""
    # Asked for so that no partial index of the open ones answers: it would be read through for each job.
    unsent = _delivery.state.not_in([literal(state) for state in ("delivered", "failed", "noted")])
    return _none(_delivery.id, _delivery.job_id == ident, unsent)


def _jobs_due(before: float) -> Conditions:
    return (
        one_of(_job.state, JOB.final),
        _job.finished_at < before,
        # A bulk's jobs go with their bulk.
        sa.or_(_job.bulk_id.is_(None), _none(_bulk.id, _bulk.id == _job.bulk_id)),
        # Also of one that named no URL: its owner's endpoints may have asked for it.
        _told(_job.id),
    )


def _purge_jobs(tx: sa.Connection, ids: Sequence[str]) -> None:
    delivery_log.purge(tx, tx.execute(sa.select(_delivery.id).where(among(_delivery.job_id, ids))).scalars().all())
    for column in (jobs.bodies.c.job_id, results.table.c.job_id, past_attempts.table.c.job_id, _job.id):
        tx.execute(sa.delete(column.table).where(among(column, ids)))


def _bulks_due(before: float) -> Conditions:
    retry = bulks.table.alias("retry")
    reading = (retry.c.retry_of == _bulk.id, ~retry.c.ingest_done, retry.c.deleted_at.is_(None))
    return (
        sa.or_(
            *(sa.and_(_bulk.state == literal(state), _bulk[f"{state}_at"] < before) for state in sorted(BULK.final))
        ),
        _bulk.deleted_at.is_(None),
        _none(retry.c.id, UNFINISHED, *reading),
        _told(_bulk.id),
    )


def _purge_bulks(tx: sa.Connection, ids: Sequence[str]) -> None:
    """Hide bulks as their owners' DELETE does; whoever tends them then deletes what they consist of."""
    tx.execute(sa.update(bulks.table).where(among(_bulk.id, ids)).values(deleted_at=now()))


def _deliveries_due(before: float) -> Conditions:
    # Whatever nobody sends any more.
    return (_delivery.state.not_in([literal("pending"), literal("sending")]), _delivery.created_at < before)


def _batches_due(before: float) -> Conditions:
    return (one_of(batches.table.c.state, BATCH.final), batches.table.c.finished_at < before)


def _purge(table: sa.Table) -> Callable[[sa.Connection, Sequence[str]], None]:
    def purge(tx: sa.Connection, ids: Sequence[str]) -> None:
        tx.execute(sa.delete(table).where(among(table.c.id, ids)))

    return purge


BULKS = Kind("bulks", bulks.table, BULK_KIND, _bulks_due, _purge_bulks)
BULKS_OF_OPENAI = Kind("bulks", bulks.table, BATCH_KIND, _bulks_due, _purge_bulks)
JOBS = Kind("jobs", jobs.table, "job", _jobs_due, _purge_jobs)
DELIVERIES = Kind("deliveries", deliveries.table, "msg", _deliveries_due, delivery_log.purge)
BATCHES = Kind("batches", batches.table, "batch", _batches_due, _purge(batches.table))
KINDS = (BULKS, BULKS_OF_OPENAI, JOBS, DELIVERIES, BATCHES)
"""Deliveries of jobs go with them; those of bulks by their own age. Batches are those of the dispatch."""


def fading(tx: sa.Connection, clock: float, upload_age: float, limit: int) -> list[str]:
    """Return files that are to be hidden: expired, or in writing for more than `upload_age` seconds."""
    chosen = [sa.select(_file.id).where(fades).limit(limit) for fades in _fading(clock, upload_age)]
    return [ident for one in chosen for ident in tx.execute(one).scalars()]


def _fading(clock: float, upload_age: float) -> Conditions:
    expired = sa.and_(_file.state == literal("ready"), _file.expires_at.is_not(None), _file.expires_at < clock)
    left = sa.and_(_file.state == literal("uploading"), _LEFTOVER, _file.created_at < clock - upload_age)
    return expired, left


def hide(tx: sa.Connection, ids: Sequence[str], clock: float, upload_age: float) -> int:
    """Mark files as deleted, those that still are to be: whoever is writing one can no longer make it visible."""
    fading_now = sa.update(files.table).where(among(_file.id, ids), sa.or_(*_fading(clock, upload_age)))
    return tx.execute(fading_now.values(state="deleted")).rowcount


def removable(tx: sa.Connection, behind: tuple[float, str], limit: int) -> Sequence[AnyRow]:
    """Return up to `limit` deleted files (id, key, created_at) behind a (created_at, id) that no open bulk reads."""
    since, last = behind
    reading = (_bulk.file_id == _file.id, ~_bulk.ingest_done, _bulk.deleted_at.is_(None))
    chosen = sa.select(_file.id, _file.key, _file.created_at).where(
        _file.state == literal("deleted"),
        _LEFTOVER,
        _file.created_at >= since,
        sa.or_(_file.created_at > since, _file.id > last),
        _none(_bulk.id, UNFINISHED, *reading),
    )
    return tx.execute(chosen.order_by(_file.created_at, _file.id).limit(limit)).all()
