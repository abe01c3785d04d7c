"""Usage: what became of each owner's jobs, and the tokens that they took, by day and model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.expression import FunctionElement

from models.db import AnyRow, metadata, now, upsert
from models.results import TOKENS, NewResult

STATES = ("succeeded", "failed", "cancelled", "expired")

table = sa.Table(
    "usage",
    metadata,
    sa.Column("owner", sa.String(64), primary_key=True),
    sa.Column("day", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("model", sa.String(255), primary_key=True),
    sa.Column("engine", sa.String(64), primary_key=True),
    *(sa.Column(name, sa.BigInteger, nullable=False) for name in STATES + TOKENS),
)
"""`day`: whole days since 1970, UTC. `engine`: who counted, so that engines do not wait for each other's row; added up
by whoever reads."""

sa.Index("usage_day", table.c.day)

DAY = 86_400
_COUNTS = STATES + TOKENS


class _Today(FunctionElement[int]):
    """The day that it is by the database's clock, read once a statement: an index is searched for it."""

    type = sa.Integer()
    inherit_cache = True


@compiles(_Today, "postgresql")
def _today_postgresql(_element: _Today, compiler: Any, **_: Any) -> str:
    return f"floor({compiler.process(now())} / {DAY})::integer"


@compiles(_Today, "sqlite")
def _today_sqlite(_element: _Today, compiler: Any, **_: Any) -> str:
    return f"CAST({compiler.process(now())} / {DAY} AS INTEGER)"


_today = _Today()


@dataclass(frozen=True, slots=True)
class Today:
    """What an owner has used on this UTC day, and the seconds until the next one, by the database's clock."""

    tokens: int
    left: float


def count(tx: sa.Connection, ended: Iterable[tuple[AnyRow, str, NewResult | None]], engine_id: str | None) -> None:
    """Count jobs that have just ended (row with owner and model, state, result), in the transaction of their end.

    Who counts twice, or not at all, would have ended the job twice, or not. In order, so that nobody deadlocks.
    """
    added: dict[tuple[str, str], Counter[str]] = {}
    for row, state, result in ended:
        counts = added.setdefault((row.owner, row.model), Counter())
        counts[state] += 1
        for name in TOKENS if result is not None else ():
            counts[name] += getattr(result, name)
    rows = [
        {"owner_": owner, "model_": model, "engine_": engine_id or ""} | {f"{name}_": counts[name] for name in _COUNTS}
        for (owner, model), counts in sorted(added.items())
    ]
    if (statement := _upserts.get(tx.dialect.name)) is None:
        statement = _upserts[tx.dialect.name] = _upsert(tx)
    # One row alone is sent as one statement, many as a pipeline, which has a price of its own.
    tx.execute(statement, rows if len(rows) > 1 else rows[0])


_upserts: dict[str, sa.Insert] = {}
"""Made once for each kind of database: to make it takes as long as to send it."""


def _upsert(tx: sa.Connection) -> sa.Insert:
    given: dict[str, Any] = {name: sa.bindparam(f"{name}_") for name in ("owner", "model", "engine", *_COUNTS)}
    statement = upsert(tx, table).values(day=_today, **given)
    more = {name: table.c[name] + statement.excluded[name] for name in _COUNTS}
    return statement.on_conflict_do_update(index_elements=list(table.primary_key), set_=more)


def today(tx: sa.Connection, owner: str) -> Today:
    """Return what an owner has used today."""
    used = sa.func.coalesce(sa.func.sum(table.c.prompt_tokens + table.c.completion_tokens), 0)
    mine = sa.select(used).where(table.c.owner == owner, table.c.day == _today).scalar_subquery()
    row = tx.execute(sa.select(mine.label("tokens"), now().label("clock"))).one()
    return Today(int(row.tokens), DAY - row.clock % DAY)


def day(tx: sa.Connection) -> int:
    """Return the day that it is by the database's clock, in whole days since 1970."""
    return int(tx.execute(sa.select(_today)).scalar_one())


def page(
    tx: sa.Connection, owner: str | None, first: int, last: int, *, model: str | None = None, limit: int = 10_000
) -> Sequence[AnyRow]:
    """Return what was used from one day to another, both included, by day, owner (None: every one) and model."""
    groups = (table.c.day, table.c.owner, table.c.model)
    added = [sa.cast(sa.func.sum(table.c[name]), sa.BigInteger).label(name) for name in _COUNTS]
    where: list[sa.ColumnElement[Any]] = [table.c.day.between(first, last)]
    if owner is not None:
        where.append(table.c.owner == owner)
    if model is not None:
        where.append(table.c.model == model)
    return tx.execute(sa.select(*groups, *added).where(*where).group_by(*groups).order_by(*groups).limit(limit)).all()


def any_before(tx: sa.Connection, before: int) -> bool:
    """Tell whether there is usage of days before this one."""
    return tx.execute(sa.select(sa.exists().where(table.c.day < before))).scalar_one()


def forget(tx: sa.Connection, before: int, limit: int) -> int:
    """Delete up to `limit` rows of days before this one, the oldest first; return how many."""
    old = sa.select(*table.primary_key).where(table.c.day < before).order_by(table.c.day).limit(limit)
    keys = [{f"{name}_": value for name, value in row._asdict().items()} for row in tx.execute(old)]
    if keys:
        # By the whole key, each: a join with what was found would read the whole table for every slice.
        tx.execute(
            sa.delete(table).where(*(column == sa.bindparam(f"{column.name}_") for column in table.primary_key)), keys
        )
    return len(keys)
