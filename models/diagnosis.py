"""What `stoker doctor` asks the database: who is silent, what is stuck, who holds others up. It only reads.

Each question goes by an index and has a limit, so that it is cheap on a service that is in trouble already.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from models import batches, deliveries, engines, jobs, sweeps
from models.db import AnyRow, among, literal, now, one_of
from models.states import BATCH

MOST = 2_000
"""Rows that are looked at, at most, where there may be any number."""

_batch, _job, _delivery = batches.table.c, jobs.table.c, deliveries.table.c


def clock(tx: sa.Connection) -> float:
    """Return the database's clock."""
    return float(tx.execute(sa.select(now())).scalar_one())


def last_sweep(tx: sa.Connection) -> float | None:
    """Return the seconds since the last sweep, None when there was none yet."""
    age = tx.execute(sa.select(now() - sweeps.table.c.last_at)).scalar_one_or_none()
    return None if age is None else float(age)


def all_engines(tx: sa.Connection) -> Sequence[AnyRow]:
    """Return every engine that ever was, with the seconds of its silence (`silent`) and since its start (`age`)."""
    known = engines.table
    times = (known.c.id, (now() - known.c.seen_at).label("silent"), (now() - known.c.started_at).label("age"))
    columns = [column for column in known.c if column.name not in {"id", "seen_at", "started_at"}]
    return tx.execute(sa.select(*times, *columns).order_by(known.c.id)).all()


def without_batch(tx: sa.Connection) -> int:
    """Count the jobs that are batched or running in a batch that is over, or that does not exist."""
    named = set(tx.execute(sa.select(_job.batch_id).where(jobs.IN_BATCH).distinct().limit(MOST)).scalars())
    still = sa.select(_batch.id).where(among(_batch.id, named), one_of(_batch.state, BATCH.open))
    over = named - set(tx.execute(still).scalars())
    # Looked at in this order, and the jobs again: what ended meanwhile is not counted.
    lost = sa.or_(_job.batch_id.is_(None), among(_job.batch_id, over))
    return _count(tx, sa.select(_job.id).where(jobs.IN_BATCH, lost)) if over else 0


def lapsed(tx: sa.Connection, seconds: float) -> int:
    """Count the running batches whose lease ran out more than so many seconds ago: nobody swept them."""
    return _count(
        tx, sa.select(_batch.id).where(_batch.state == literal("running"), _batch.lease_until < now() - seconds)
    )


def unclaimed(tx: sa.Connection, seconds: float) -> int:
    """Count the READY batches that are older than so many seconds."""
    # Written so that it is not looked for among all batches that are older.
    old = _batch.created_at + seconds < now()
    return _count(tx, sa.select(_batch.id).where(_batch.state == literal("ready"), old))


def overdue(tx: sa.Connection, seconds: float) -> int:
    """Count the delayed jobs that were to be queued more than so many seconds ago."""
    return _count(tx, sa.select(_job.id).where(_job.state == literal("delayed"), _job.run_at < now() - seconds))


def suspected(tx: sa.Connection) -> int:
    """Count the queued jobs that were in an engine when it died, and now run in ever smaller groups."""
    return _count(tx, sa.select(_job.id).where(_job.state == literal("queued"), _job.cohort_id.is_not(None)))


def deaths(tx: sa.Connection, within: float) -> dict[str, int]:
    """Return how many batches of the last so many seconds ended with their engine's death, by engine."""
    dead = (_batch.created_at > now() - within, one_of(_batch.state, ("crashed", "lost")))
    chosen = sa.select(_batch.engine_id, sa.func.count()).where(*dead).group_by(_batch.engine_id)
    return {str(row[0]): int(row[1]) for row in tx.execute(chosen)}


def unsent(tx: sa.Connection, seconds: float) -> int:
    """Count the deliveries that were due more than so many seconds ago, and that nobody has sent."""
    waiting = _delivery.state.in_([literal("pending"), literal("sending")])
    return _count(tx, sa.select(_delivery.id).where(waiting, _delivery.next_at < now() - seconds))


def any_sent(tx: sa.Connection) -> bool:
    """Tell whether a delivery is on its way right now."""
    on_way = (_delivery.state == literal("sending"), _delivery.next_at > now())
    return bool(tx.execute(sa.select(sa.exists().where(*on_way))).scalar_one())


def failing(tx: sa.Connection, within: float) -> Sequence[AnyRow]:
    """Return (url, state, error) of deliveries that did not get through: on their way, or given up in so many seconds.

    Of each kind at most MOST.
    """
    columns = (_delivery.url, _delivery.state, _delivery.error)
    waiting = _delivery.state.in_([literal("pending"), literal("sending")])
    on_way = sa.select(*columns).where(waiting, _delivery["try"] > 0, _delivery.error.is_not(None)).limit(MOST)
    # Ids are ordered by time: what is new lies at the end of the primary key.
    since = f"msg_{max(0, int((clock(tx) - within) * 1000)):012x}"
    newest = sa.select(*columns).where(_delivery.id > since).order_by(_delivery.id.desc()).limit(MOST)
    given_up = [row for row in tx.execute(newest) if row.state == "failed"]
    return [*tx.execute(on_way), *given_up]


def _count(tx: sa.Connection, chosen: sa.Select[Any]) -> int:
    return int(tx.execute(sa.select(sa.func.count()).select_from(chosen.limit(MOST).subquery())).scalar_one())


_LONG = sa.text(
    """
    SELECT held.pid, held.usename, coalesce(held.application_name, '') AS program, held.state,
           extract(epoch FROM clock_timestamp() - held.xact_start)::float AS seconds,
           (SELECT count(*) FROM pg_stat_activity waits WHERE held.pid = ANY (pg_blocking_pids(waits.pid))) AS blocks
    FROM pg_stat_activity held
    WHERE held.datname = current_database() AND held.pid <> pg_backend_pid() AND held.xact_start IS NOT NULL
      AND held.backend_type = 'client backend'
    ORDER BY held.xact_start
    LIMIT 100
    """
)


def transactions(tx: sa.Connection) -> Sequence[AnyRow]:
    """Return PostgreSQL's open transactions, oldest first: pid, usename, program, state, seconds, blocks.

    `blocks` is how many others wait for it. Only of this user's own is everything told, or to a member of pg_monitor.
    """
    return tx.execute(_LONG).all()


def connections(tx: sa.Connection) -> tuple[int, int]:
    """Return how many connections PostgreSQL has, and how many it allows to other than superusers."""
    chosen = (
        "SELECT (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'),"
        " current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int"
    )
    row = tx.exec_driver_sql(chosen).one()
    return int(row[0]), int(row[1])


def writable(tx: sa.Connection) -> bool:
    """Tell whether PostgreSQL takes writes: no standby, and not set to read only."""
    chosen = "SELECT NOT pg_is_in_recovery() AND current_setting('default_transaction_read_only') = 'off'"
    return bool(tx.exec_driver_sql(chosen).scalar_one())
