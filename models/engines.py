"""Engines and the models that they serve.

An engine keeps its name over restarts; each start of its process is a new incarnation. `models` remembers every model
that was ever configured or registered: a job for a known model is accepted and waits, also while nothing serves it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from models.db import AnyRow, Id, literal, metadata, now, upsert

table = sa.Table(
    "engines",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("incarnation", Id, nullable=False),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("slots", sa.Integer, nullable=False),
    sa.Column("reserve", sa.Integer, nullable=False),
    sa.Column("host", sa.String(255), nullable=False),
    sa.Column("pid", sa.Integer, nullable=False),
    sa.Column("process_group", sa.Integer, nullable=False),
    sa.Column("process_start", sa.String(64), nullable=False),
    sa.Column("started_at", sa.Double, nullable=False),
    sa.Column("seen_at", sa.Double, nullable=False),
    sa.Column("detail", sa.Text),
)
"""`state`: starting, live, draining, gone. `reserve`: slots kept for realtime. `process_start` (boot and start time)
tells a process from a later one that got the same pid. `detail`: what it tells of itself besides, as JSON (its
upstreams)."""

serving = sa.Table(
    "engine_models",
    metadata,
    sa.Column("engine_id", sa.String(64), primary_key=True),
    sa.Column("model", sa.String(255), primary_key=True),
    sa.Column("slots", sa.Integer),
)
"""`slots`: how many requests of this model run at once; NULL: it shares the engine's with the other models."""

models = sa.Table(
    "models",
    metadata,
    sa.Column("name", sa.String(255), primary_key=True),
    sa.Column("max_model_len", sa.Integer),
    sa.Column("tokenizer", sa.Text),
    sa.Column("registered_at", sa.Double, nullable=False),
    sa.Column("removed_at", sa.Double),
)


@dataclass(frozen=True, slots=True)
class Incarnation:
    """One start of an engine's process."""

    engine: str
    id: str
    kind: str
    host: str
    pid: int
    process_group: int
    process_start: str


@dataclass(frozen=True, slots=True)
class Live:
    """An engine that takes work. For a model with slots of its own (`apart`) only its own jobs take them up."""

    id: str
    slots: int
    reserve: int
    apart: bool = False
    started_at: float = field(default=0.0, compare=False)


def predecessor(tx: sa.Connection, engine: str) -> Incarnation | None:
    """Return the last incarnation of an engine, locked, so that two that start at once do not both reap it."""
    row = tx.execute(sa.select(table).where(table.c.id == engine).with_for_update()).one_or_none()
    return None if row is None else _incarnation(row)


def _incarnation(row: AnyRow) -> Incarnation:
    return Incarnation(row.id, row.incarnation, row.kind, row.host, row.pid, row.process_group, row.process_start)


def register(tx: sa.Connection, mine: Incarnation) -> None:
    """Record a start: the engine is `starting` and takes no work yet."""
    values = {
        "incarnation": mine.id,
        "kind": mine.kind,
        "state": "starting",
        "slots": 0,
        "reserve": 0,
        "host": mine.host,
        "pid": mine.pid,
        "process_group": mine.process_group,
        "process_start": mine.process_start,
        "started_at": now(),
        "seen_at": now(),
        "detail": None,
    }
    _upsert(tx, table, {"id": mine.engine}, values)


def go_live(tx: sa.Connection, mine: Incarnation, slots: int, reserve: int, served: Mapping[str, int | None]) -> bool:
    """Open an engine for work; `served` has each model's own slots, None where it shares the engine's.

    False: a newer incarnation has taken its name.
    """
    return _offer(tx, mine, served, state="live", slots=slots, reserve=reserve)


def change(tx: sa.Connection, mine: Incarnation, slots: int, reserve: int, served: Mapping[str, int | None]) -> bool:
    """Change what a live engine offers, as `go_live` does; one that is leaving stays closed."""
    return _offer(tx, mine, served, slots=slots, reserve=reserve)


def _offer(tx: sa.Connection, mine: Incarnation, served: Mapping[str, int | None], **values: Any) -> bool:
    ours = (table.c.id == mine.engine, table.c.incarnation == mine.id)
    if tx.execute(sa.update(table).where(*ours).values(seen_at=now(), **values)).rowcount == 0:
        return False
    tx.execute(sa.delete(serving).where(serving.c.engine_id == mine.engine))
    if served:
        rows = [{"engine_id": mine.engine, "model": name, "slots": slots} for name, slots in served.items()]
        tx.execute(sa.insert(serving), rows)
    return True


def seen(tx: sa.Connection, mine: Incarnation) -> bool:
    """Renew the sign of life. False: a newer incarnation has taken this engine's name."""
    alive = sa.update(table).where(table.c.id == mine.engine, table.c.incarnation == mine.id).values(seen_at=now())
    return tx.execute(alive).rowcount == 1


def tell(tx: sa.Connection, mine: Incarnation, detail: str) -> None:
    """Store what an engine tells of itself, as JSON."""
    ours = (table.c.id == mine.engine, table.c.incarnation == mine.id)
    tx.execute(sa.update(table).where(*ours).values(detail=detail))


def working(tx: sa.Connection, old: Incarnation, within: float, *, loading: bool) -> bool:
    """Tell whether an incarnation is at work: seen within so many seconds and not gone.

    With `loading` also one that is still starting, which gives no signs of life.
    """
    mine = sa.select(table.c.state, (table.c.seen_at > now() - within).label("seen"))
    row = tx.execute(mine.where(table.c.id == old.engine, table.c.incarnation == old.id)).one_or_none()
    return row is not None and row.state != "gone" and bool(row.seen or (loading and row.state == "starting"))


def state(tx: sa.Connection, mine: Incarnation) -> str | None:
    """Return the state of an incarnation, locked; None when another has taken its engine's name or it has gone."""
    ours = (table.c.id == mine.engine, table.c.incarnation == mine.id, table.c.state != literal("gone"))
    return tx.execute(sa.select(table.c.state).where(*ours).with_for_update()).scalar_one_or_none()


def has_opened(tx: sa.Connection, engine: str, pid: int) -> bool:
    """Tell whether this process of an engine got as far as taking work: it has slots since then, also when gone."""
    mine = sa.exists().where(table.c.id == engine, table.c.pid == pid, table.c.slots > 0)
    return tx.execute(sa.select(mine)).scalar_one()


def of_host(tx: sa.Connection, host: str) -> list[Incarnation]:
    """Return the incarnations of a machine that have not gone."""
    here = sa.select(table).where(table.c.host == host, table.c.state != literal("gone"))
    return [_incarnation(row) for row in tx.execute(here)]


def leave(tx: sa.Connection, mine: Incarnation, state: str) -> None:
    """Close an engine for work: `draining`, then `gone`."""
    mine_only = (table.c.id == mine.engine, table.c.incarnation == mine.id)
    tx.execute(sa.update(table).where(*mine_only).values(state=state))


def live(tx: sa.Connection, within: float, model: str | None = None) -> list[Live]:
    """Return engines that take work and were seen within so many seconds; with a model, what they have for it."""
    own = sa.null() if model is None else serving.c.slots
    chosen = sa.select(table.c.id, table.c.slots, table.c.reserve, own.label("own"), table.c.started_at).where(
        table.c.state == literal("live"), table.c.seen_at > now() - within
    )
    if model is not None:
        chosen = chosen.join(serving, serving.c.engine_id == table.c.id).where(serving.c.model == model)
    return [_live(*row) for row in tx.execute(chosen.order_by(table.c.id))]


def _live(engine: str, slots: int, reserve: int, own: int | None, started_at: float) -> Live:
    if own is None:
        return Live(engine, slots, reserve, started_at=started_at)
    # Its part of the reserve, rounded up, but never all that it has.
    kept = math.ceil(reserve * own / max(1, slots))
    return Live(engine, own, min(kept, max(0, own - 1)), apart=True, started_at=started_at)


def remember(tx: sa.Connection, name: str, max_model_len: int | None, tokenizer: str | None) -> None:
    """Make a model known, with what its engine told of it."""
    values = {
        "max_model_len": max_model_len,
        "tokenizer": tokenizer,
        "registered_at": now(),
        "removed_at": None,
    }
    _upsert(tx, models, {"name": name}, values)


def served(tx: sa.Connection, within: float) -> Sequence[AnyRow]:
    """Return the models of the engines that take work and were seen within so many seconds, by name.

    Each is (name, max_model_len, registered_at).
    """
    alive = sa.select(serving.c.model).join(table, table.c.id == serving.c.engine_id)
    alive = alive.where(table.c.state == literal("live"), table.c.seen_at > now() - within)
    chosen = sa.select(models.c.name, models.c.max_model_len, models.c.registered_at).where(models.c.name.in_(alive))
    return tx.execute(chosen.order_by(models.c.name)).all()


def known(tx: sa.Connection) -> dict[str, AnyRow]:
    """Return the models that jobs may name: (name, max_model_len, tokenizer) by name."""
    chosen = sa.select(models.c.name, models.c.max_model_len, models.c.tokenizer).where(models.c.removed_at.is_(None))
    return {row.name: row for row in tx.execute(chosen)}


def _upsert(tx: sa.Connection, target: sa.Table, key: dict[str, str], values: dict[str, Any]) -> None:
    row = upsert(tx, target).values(**key, **values)
    tx.execute(row.on_conflict_do_update(index_elements=list(key), set_=values))


def names(tx: sa.Connection, engine: str) -> list[str]:
    """Return the models that an engine serves."""
    return list(tx.execute(sa.select(serving.c.model).where(serving.c.engine_id == engine)).scalars())


def forget(tx: sa.Connection, names: Iterable[str]) -> None:
    """Remove models from the known ones; jobs that wait for them keep waiting."""
    tx.execute(sa.update(models).where(models.c.name.in_(list(names))).values(removed_at=now()))
