"""Batches: jobs dispatched together to one engine. One attempt, whose id is the fencing token.

The lease lives here, and only here. Lock order everywhere: batch first, then its jobs by id.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from models import engines, jobs, past_attempts
from models.db import AnyRow, Id, among, in_order, literal, metadata, new_id, now, one_of
from models.engines import Incarnation
from models.states import BATCH

table = sa.Table(
    "batches",
    metadata,
    sa.Column("id", Id, primary_key=True),
    sa.Column("model", sa.String(255), nullable=False),
    sa.Column("lane", sa.String(16), nullable=False),
    sa.Column("rank", sa.SmallInteger, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("reason", sa.String(16), nullable=False),
    sa.Column("size", sa.Integer, nullable=False),
    sa.Column("tokens", sa.BigInteger, nullable=False),
    sa.Column("cohort_id", Id),
    sa.Column("engine_id", sa.String(64)),
    sa.Column("incarnation", Id),
    sa.Column("lease_until", sa.Double),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("claimed_at", sa.Double),
    sa.Column("finished_at", sa.Double),
)
"""`rank` orders READY batches (0: realtime). `reason`: why it was cut: full, waited, room or cohort. `engine_id` is
set at the claim; for a cohort, which runs alone, already when it is cut."""


def _partial(name: str, *columns: sa.ColumnElement[Any], where: str) -> None:
    sa.Index(name, *columns, sqlite_where=sa.text(where), postgresql_where=sa.text(where))


_partial("batches_ready", table.c.model, table.c.rank, table.c.created_at, where="state = 'ready'")
_partial("batches_running", table.c.lease_until, where="state = 'running'")
_partial("batches_cohorts", table.c.model, where="cohort_id IS NOT NULL AND state IN ('ready', 'running')")
sa.Index("batches_recent", table.c.created_at)


@dataclass(frozen=True, slots=True)
class Cut:
    """What a policy decided to dispatch together."""

    model: str
    lane: str
    rank: int
    reason: str
    ids: Sequence[str]
    tokens: int
    cohort: str | None = None
    engine: str | None = None


@dataclass(frozen=True, slots=True)
class ClaimedJob:
    """A job that now runs in this worker. `left` is the seconds until it expires, None when it does not.

    `waited` is the seconds since it was submitted, `trace` the `traceparent` of its request, None when it has none.
    """

    id: str
    endpoint: str
    body: str = field(repr=False)
    attempts: int
    deferrals: int
    left: float | None
    bulk_id: str | None = None
    waited: float = 0.0
    trace: str | None = None


@dataclass(frozen=True, slots=True)
class Claimed:
    """A batch under this worker's lease."""

    id: str
    model: str
    lane: str
    cohort: str | None
    jobs: Sequence[ClaimedJob]


def move(tx: sa.Connection, to: str, *where: sa.ColumnElement[bool], **values: Any) -> Sequence[AnyRow]:
    """Bring batches to the state `to`: the only code that assigns a batch's state. Returns the rows that moved."""
    if "finished_at" not in values and to in BATCH.final:
        values["finished_at"] = now()
    from_state = one_of(table.c.state, BATCH.sources(to))
    statement = sa.update(table).where(in_order(tx, table, from_state, *where)).values(state=to, **values)
    return tx.execute(statement.returning(table)).all()


def gather(tx: sa.Connection, cut: Cut) -> str | None:
    """Make the batch that was decided on, READY, of those of its jobs that are still queued; None when none is."""
    batch_id = new_id("batch")
    moved = jobs.move(tx, "batched", among(jobs.table.c.id, cut.ids), sources=["queued"], batch_id=batch_id)
    if not moved:
        return None
    tx.execute(
        sa.insert(table).values(
            id=batch_id,
            model=cut.model,
            lane=cut.lane,
            rank=cut.rank,
            state="ready",
            reason=cut.reason,
            size=len(moved),
            tokens=cut.tokens,
            cohort_id=cut.cohort,
            engine_id=cut.engine,
            created_at=now(),
        )
    )
    return batch_id


def claim(tx: sa.Connection, mine: Incarnation, ranks: Iterable[int], lease: float, *, idle: bool) -> Claimed | None:
    """Claim the best READY batch for an engine: its rows run from now on, under a lease of so many seconds.

    `ranks` are the lanes that the engine has room for. A cohort that is meant for this engine goes first, and waits
    until the engine is idle. A batch of which no job is open any more is returned, and the next is looked at.
    """
    while True:
        chosen = _best_ready(tx, mine.engine, ranks, idle=idle)
        if chosen is None:
            return None
        if (claimed := claim_one(tx, mine, chosen, lease)) is not None:
            return claimed


def claim_one(tx: sa.Connection, mine: Incarnation, batch_id: str, lease: float) -> Claimed | None:
    """Claim this READY batch; returned, and None, when no job of it is open any more."""
    values = {
        "engine_id": mine.engine,
        "incarnation": mine.id,
        "claimed_at": now(),
        "lease_until": now() + lease,
    }
    (batch,) = move(tx, "running", table.c.id == batch_id, **values)
    running = jobs.move(
        tx,
        "running",
        jobs.table.c.batch_id == batch.id,
        jobs.IN_BATCH,
        attempts=jobs.table.c.attempts + 1,
        started_at=now(),
    )
    if running:
        return Claimed(batch.id, batch.model, batch.lane, batch.cohort_id, _bodies(tx, batch.id))
    move(tx, "returned", table.c.id == batch.id)
    return None


def claimable(tx: sa.Connection, engine: str) -> bool:
    """Tell whether a READY batch lies there that this engine could claim."""
    fits = sa.exists().where(
        table.c.state == literal("ready"),
        engines.serving.c.model == table.c.model,
        engines.serving.c.engine_id == engine,
        sa.or_(table.c.engine_id.is_(None), table.c.engine_id == engine),
    )
    return tx.execute(sa.select(fits)).scalar_one()


def _best_ready(tx: sa.Connection, engine: str, ranks: Iterable[int], *, idle: bool) -> str | None:
    ready = table.c.state == literal("ready")
    lone = tx.execute(sa.select(table.c.id).where(ready, table.c.engine_id == engine).with_for_update()).scalars().all()
    if lone:
        return lone[0] if idle else None
    served = sa.select(engines.serving.c.model).where(engines.serving.c.engine_id == engine)
    best = (
        sa.select(table.c.id)
        .where(ready, table.c.engine_id.is_(None), table.c.model.in_(served), table.c.rank.in_(list(ranks)))
        .order_by(table.c.rank, table.c.created_at)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    return tx.execute(best).scalar_one_or_none()


def _bodies(tx: sa.Connection, batch_id: str) -> list[ClaimedJob]:
    job, body = jobs.table.c, jobs.bodies.c
    chosen = (
        sa.select(
            job.id,
            job.endpoint,
            body.body,
            job.attempts,
            job.deferrals,
            (job.expires_at - now()).label("left"),
            job.bulk_id,
            (now() - job.created_at).label("waited"),
            body.trace,
        )
        .join(jobs.bodies, body.job_id == job.id)
        .where(job.batch_id == batch_id, job.state == literal("running"), jobs.IN_BATCH)
        .order_by(job.pos, job.id)
    )
    return [ClaimedJob(*row) for row in tx.execute(chosen)]


def renew(tx: sa.Connection, mine: Incarnation, ids: Iterable[str], lease: float) -> set[str]:
    """Renew the leases of these batches; return those that are still ours.

    An expired lease can be renewed until it is swept.
    """
    renewed = (
        sa.update(table)
        .where(among(table.c.id, ids), table.c.incarnation == mine.id, table.c.state == literal("running"))
        .values(lease_until=now() + lease)
        .returning(table.c.id)
    )
    return set(tx.execute(renewed).scalars())


def finish(tx: sa.Connection, batch_id: str) -> bool:
    """End a batch of which nothing is open any more."""
    still_open = sa.exists().where(jobs.table.c.batch_id == batch_id, jobs.IN_BATCH)
    return bool(move(tx, "finished", table.c.id == batch_id, ~still_open))


def give_back(tx: sa.Connection, *where: sa.ColumnElement[bool]) -> list[str]:
    """Return batches: their open jobs are queued again where they stood, uncharged. Returns the batches' ids."""
    returned = [row.id for row in move(tx, "returned", *where)]
    if returned:
        theirs = among(jobs.table.c.batch_id, returned)
        past_attempts.note(tx, "returned", theirs, jobs.IN_BATCH)
        jobs.move(
            tx,
            "queued",
            theirs,
            sources=["batched", "running"],
            batch_id=None,
        )
    return returned


def engines_to_ring(tx: sa.Connection, within: float) -> list[str]:
    """Return the live engines for which a READY batch lies there."""
    alive = sa.select(engines.table.c.id).where(
        engines.table.c.state == literal("live"), engines.table.c.seen_at > now() - within
    )
    fits = sa.exists().where(
        table.c.state == literal("ready"),
        engines.serving.c.model == table.c.model,
        engines.serving.c.engine_id == engines.table.c.id,
        sa.or_(table.c.engine_id.is_(None), table.c.engine_id == engines.table.c.id),
    )
    return list(tx.execute(alive.where(fits)).scalars())


def give_back_stranded(tx: sa.Connection, within: float, after: float) -> list[str]:
    """Return READY batches, older than `after` seconds, that no engine seen `within` seconds could claim."""
    engine = engines.table.c
    takers = sa.exists().where(
        engine.state == literal("live"),
        engine.seen_at > now() - within,
        engines.serving.c.engine_id == engine.id,
        engines.serving.c.model == table.c.model,
        sa.or_(table.c.engine_id.is_(None), table.c.engine_id == engine.id),
    )
    # Written so that it is not looked for among all batches that are older.
    old = table.c.created_at + after < now()
    return give_back(tx, table.c.state == literal("ready"), old, ~takers)


def expired(tx: sa.Connection) -> list[tuple[str, str]]:
    """Return the incarnations (engine, incarnation) that hold a batch whose lease ran out."""
    gone = sa.select(table.c.engine_id, table.c.incarnation).where(
        table.c.state == literal("running"), table.c.lease_until < now()
    )
    return [(row[0], row[1]) for row in tx.execute(gone.distinct())]
