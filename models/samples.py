"""Samples: what each engine measured, in stretches of ten seconds and of five minutes.

A row belongs to one incarnation of an engine, which alone writes it: whole, with what it has counted of the stretch so
far, so that writing it again is harmless. What an engine measured since its last heartbeat dies with it; these are
statistics, and nothing is decided by them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import sqlalchemy as sa

from models.db import Id, metadata, now, upsert
from models.engines import Incarnation
from models.measures import Measures

table = sa.Table(
    "samples",
    metadata,
    sa.Column("width", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("at", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("engine", sa.String(64), primary_key=True),
    sa.Column("incarnation", Id, primary_key=True),
    sa.Column("model", sa.String(255), primary_key=True),
    sa.Column("lane", sa.String(16), primary_key=True),
    sa.Column("data", sa.Text, nullable=False),
)
"""`at`: where the stretch begins, by the database's clock; `data` as `Measures.encode` writes it. A row with model ''
is the engine's own: how long it was open, and busy."""

WIDTHS = {10: 2 * 3600, 300: 14 * 86400}
"""Seconds of a stretch, and how long it is kept."""
A_SLICE = 100
"""Stretches that are read at once."""

Kind = tuple[str, str]
"""Model and lane."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What one engine measured in one stretch."""

    at: int
    engine: str
    model: str
    lane: str
    measures: Measures


def clock(tx: sa.Connection) -> float:
    """Return the database's clock, which stretches go by."""
    return float(tx.execute(sa.select(now())).scalar_one())


def start(width: int, at: float) -> int:
    """Return where the stretch of this width begins that a moment lies in."""
    return int(at // width) * width


def write(tx: sa.Connection, mine: Incarnation, width: int, at: int, measured: Mapping[Kind, Measures]) -> None:
    """Store what an incarnation has measured so far in one stretch, in the place of what it stored before."""
    rows = [
        {"model": model, "lane": lane, "data": measures.encode()}
        for (model, lane), measures in sorted(measured.items())
    ]
    if not rows:
        return
    same = {"width": width, "at": at, "engine": mine.engine, "incarnation": mine.id}
    row = upsert(tx, table)
    tx.execute(
        row.on_conflict_do_update(index_elements=list(table.primary_key), set_={"data": row.excluded.data}),
        [same | each for each in rows],
    )


def read(tx: sa.Connection, width: int, since: int) -> Iterator[Sample]:
    """Yield the samples of the stretches that begin at `since` or later, in their order."""
    columns = (table.c.at, table.c.engine, table.c.model, table.c.lane, table.c.data)
    ends = sa.select(sa.func.min(table.c.at), sa.func.max(table.c.at))
    # What a clock that was ahead has left in the future would make this a long way.
    reached = (table.c.at >= since, table.c.at <= start(width, clock(tx)))
    first, last = tx.execute(ends.where(table.c.width == width, *reached)).one()
    # In slices: a week of a hundred engines is half a million rows.
    for begin in range(first, last + 1, A_SLICE * width) if first is not None else ():
        part = (table.c.width == width, table.c.at >= begin, table.c.at < begin + A_SLICE * width)
        for row in tx.execute(sa.select(*columns).where(*part).order_by(table.c.at)):
            yield Sample(row.at, row.engine, row.model, row.lane, Measures.decode(row.data))


def forget(tx: sa.Connection, limit: int) -> int:
    """Delete samples past their time, up to about `limit` rows of each width, oldest first; return how many."""
    gone, moment = 0, clock(tx)
    for width, kept in WIDTHS.items():
        before = start(width, moment - kept)
        old = sa.select(table.c.at).where(table.c.width == width, table.c.at < before).order_by(table.c.at)
        upto = sa.select(sa.func.max(old.limit(limit).subquery().c.at)).scalar_subquery()
        gone += tx.execute(sa.delete(table).where(table.c.width == width, table.c.at <= upto)).rowcount
    return gone
