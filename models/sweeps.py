"""Sweeps: when the sweeper last ran, and whether leases may be taken away now.

After a pause of the database, a suspended machine or a jump of its clock every lease looks expired at once. So a gap
between sweeps that is too long, or negative, starts a grace of one lease in which none expires. A negative one is a
clock that was set back, by about as much: what is due ahead is put back as well.
"""

from __future__ import annotations

import math

import sqlalchemy as sa

from models import clock_steps
from models.db import metadata, now, upsert

table = sa.Table(
    "sweeps",
    metadata,
    sa.Column("id", sa.SmallInteger, primary_key=True, autoincrement=False),
    sa.Column("last_at", sa.Double, nullable=False),
    sa.Column("grace_until", sa.Double, nullable=False),
)

MOST_GAP = 10.0
LEAST_STEP = 1.0
"""Seconds by which a clock must have gone back to be a step: less is the noise of a clock that is being kept right."""
MOST_LAG = 5.0
"""Seconds that a replica may be behind, beside the time between two sweeps, before it is not read."""


def begin(tx: sa.Connection, lease: float) -> bool | None:
    """Note this sweep; return whether leases may expire now, None when another sweeper is at work."""
    chosen = sa.select(table, now().label("clock")).with_for_update(skip_locked=True)
    row = tx.execute(chosen).one_or_none()
    if row is None and tx.execute(sa.select(table)).one_or_none() is None:
        tx.execute(upsert(tx, table).values(id=1, last_at=0.0, grace_until=0.0).on_conflict_do_nothing())
        row = tx.execute(chosen).one_or_none()
    if row is None:
        return None
    since = row.clock - row.last_at
    jumped = not 0.0 <= since <= MOST_GAP
    if since < -LEAST_STEP:
        clock_steps.put_back(tx, -since)
    grace = row.clock + lease if jumped else min(row.grace_until, row.clock + lease)
    tx.execute(sa.update(table).values(last_at=row.clock, grace_until=grace))
    return bool(grace <= row.clock)


def last(tx: sa.Connection) -> float | None:
    """Return when the last sweep was, by the clock of the database that it was written in; None when there was none."""
    return tx.execute(sa.select(table.c.last_at)).scalar_one_or_none()


def lag(known: float | None, clock: float) -> float:
    """Return how many seconds a replica is behind at most whose last sweep is `known`; infinity where nothing tells.

    A sweep that the primary's `clock` has yet to reach tells nothing: it was set back, or the sweep is another's.
    """
    return math.inf if known is None or known - clock > LEAST_STEP else clock - known


def age(tx: sa.Connection) -> float | None:
    """Return the seconds since the last sweep, None when there was none; never negative, though clocks are set back."""
    found = tx.execute(sa.select(now() - table.c.last_at)).scalar_one_or_none()
    return None if found is None else max(0.0, float(found))
