"""Jobs: the rows, the one function that writes their state, and the verbs of their life.

`jobs` is narrow because every step of the queue touches it; what a client sent lies beside it in `bodies`, what the
engine answered in `results` (`models/results.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from models import deliveries, results
from models.db import AnyRow, Id, among, in_order, literal, metadata, micros, new_id, now, one_of
from models.errors import AlreadyFinished, NotFound
from models.states import JOB

table = sa.Table(
    "jobs",
    metadata,
    sa.Column("id", Id, primary_key=True),
    sa.Column("owner", sa.String(64), nullable=False),
    sa.Column("model", sa.String(255), nullable=False),
    sa.Column("lane", sa.String(16), nullable=False),
    sa.Column("endpoint", sa.String(64), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("pos", sa.BigInteger, nullable=False),
    sa.Column("tokens", sa.Integer, nullable=False),
    sa.Column("notify", sa.Boolean, nullable=False),
    sa.Column("attempts", sa.SmallInteger, nullable=False),
    sa.Column("deferrals", sa.SmallInteger, nullable=False),
    sa.Column("lone_deaths", sa.SmallInteger, nullable=False),
    sa.Column("batch_id", Id),
    sa.Column("cohort_id", Id),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("run_at", sa.Double),
    sa.Column("expires_at", sa.Double),
    sa.Column("started_at", sa.Double),
    sa.Column("finished_at", sa.Double),
)
"""`pos` is the queue position (microseconds), `tokens` an estimate for the batch bounds, `lone_deaths` how often the
engine died while this job ran alone; times are seconds by the database's clock."""

bodies = sa.Table(
    "bodies",
    metadata,
    sa.Column("job_id", Id, primary_key=True),
    sa.Column("metadata", sa.JSON(none_as_null=True)),
    sa.Column("webhook_url", sa.Text),
    sa.Column("webhook_secret", sa.Text),
    sa.Column("webhook_include_result", sa.Boolean, nullable=False),
    sa.Column("body", sa.Text, nullable=False),  # the last: SQLite walks over all of it to what lies behind
)

_QUEUED = sa.text("state = 'queued' AND cohort_id IS NULL")
_LINE = (table.c.model, table.c.lane, table.c.owner, table.c.pos)
sa.Index("jobs_queue", *_LINE, table.c.tokens, sqlite_where=_QUEUED).ddl_if(dialect="sqlite")
sa.Index("jobs_queue", *_LINE, postgresql_include=["tokens"], postgresql_where=_QUEUED).ddl_if(dialect="postgresql")


def _partial(name: str, *columns: sa.ColumnElement[Any], where: str) -> None:
    sa.Index(name, *columns, sqlite_where=sa.text(where), postgresql_where=sa.text(where))


_partial("jobs_cohorts", table.c.model, table.c.cohort_id, where="state = 'queued' AND cohort_id IS NOT NULL")
_partial("jobs_batch", table.c.batch_id, where="state IN ('batched', 'running')")
_partial("jobs_delayed", table.c.run_at, where="state = 'delayed'")
_partial(
    "jobs_expiry",
    table.c.expires_at,
    where="expires_at IS NOT NULL AND state IN ('batched', 'delayed', 'queued', 'running')",
)
sa.Index("jobs_owner", table.c.owner, table.c.id)

# SQLite takes a partial index only where the index's own condition stands in the query, word for word.
OPEN = one_of(table.c.state, JOB.open)
IN_BATCH = one_of(table.c.state, ("batched", "running"))


@dataclass(frozen=True, slots=True)
class Webhook:
    """Where to tell of a job's end, and how to sign it. An empty secret means the service's own."""

    url: str
    secret: str = field(default="", repr=False)
    include_result: bool = False


@dataclass(frozen=True, slots=True)
class NewJob:
    """A validated job, not yet stored. `body` is JSON text; `expires_in` in seconds."""

    owner: str
    model: str
    endpoint: str
    body: str = field(repr=False)
    lane: str = "standard"
    tokens: int = 1
    metadata: Mapping[str, str] | None = field(default=None, repr=False)
    webhook: Webhook | None = None
    expires_in: float | None = None


@dataclass(frozen=True, slots=True)
class Stored:
    """What the database added to a new job. Times in seconds since 1970."""

    id: str
    created_at: float
    expires_at: float | None


@dataclass(frozen=True, slots=True)
class Settled:
    """What became of one running job: its next state and what is stored with it; `run_in` (seconds) when delayed."""

    job_id: str
    state: str
    result: results.NewResult | None = None
    run_in: float = 0.0


def move(
    tx: sa.Connection,
    to: str,
    *where: sa.ColumnElement[bool],
    sources: Iterable[str] = (),
    **values: Any,
) -> Sequence[AnyRow]:
    """Bring jobs to the state `to`: the only code that assigns a job's state.

    Only jobs in a state from which `to` follows (or in the narrower `sources`) move. Returns (id, owner, model, notify)
    of those that did.
    """
    allowed = sorted(set(sources) or JOB.sources(to))
    if not JOB.sources(to).issuperset(allowed):
        msg = f"no job goes from {allowed} to {to}"
        raise ValueError(msg)
    from_state = one_of(table.c.state, allowed)
    statement = (
        sa.update(table)
        .where(in_order(tx, table, from_state, *where))
        .values(state=to, **values)
        .returning(table.c.id, table.c.owner, table.c.model, table.c.notify)
    )
    return tx.execute(statement).all()


def lock(tx: sa.Connection, *where: sa.ColumnElement[bool]) -> list[str]:
    """Lock open jobs in the order of their ids, ahead of more than one `move` of them; return the ids."""
    return list(tx.execute(sa.select(table.c.id).where(OPEN, *where).order_by(table.c.id).with_for_update()).scalars())


_insert_job = (
    sa.insert(table)
    .values(
        state="queued",
        pos=micros(),
        attempts=0,
        deferrals=0,
        lone_deaths=0,
        created_at=now(),
        expires_at=now() + sa.bindparam("expires_in", type_=sa.Double),
        **{name: sa.bindparam(name) for name in ("id", "owner", "model", "lane", "endpoint", "tokens", "notify")},
    )
    .returning(table.c.id, table.c.created_at, table.c.expires_at)
)
_insert_body = sa.insert(bodies).values(
    {column.name: sa.bindparam(f"{column.name}_", type_=column.type) for column in bodies.c}
)


# One statement where the database can: each is a round trip, and a POST has few others.
_job_row = _insert_job.cte("job_row")
_insert_both = sa.select(_job_row).add_cte(_insert_body.cte("body_row"))


def submit(tx: sa.Connection, new: NewJob) -> Stored:
    """Store a job as queued."""
    job_id = new_id("job")
    hook = new.webhook
    job = {
        "id": job_id,
        "owner": new.owner,
        "model": new.model,
        "lane": new.lane,
        "endpoint": new.endpoint,
        "tokens": new.tokens,
        "notify": hook is not None,
        "expires_in": new.expires_in,
    }
    body = {
        "job_id_": job_id,
        "body_": new.body,
        "metadata_": None if new.metadata is None else dict(new.metadata),
        "webhook_url_": hook and hook.url,
        "webhook_secret_": (hook and hook.secret) or None,
        "webhook_include_result_": hook is not None and hook.include_result,
    }
    if tx.dialect.name == "postgresql":
        return Stored(*tx.execute(_insert_both, job | body).one())
    stored = Stored(*tx.execute(_insert_job, job).one())
    tx.execute(_insert_body, body)
    return stored


def settle(tx: sa.Connection, batch_id: str, engine_id: str, outcomes: Sequence[Settled]) -> set[str]:
    """Store what became of jobs of one batch: state, result and delivery together. Returns the ids that were ours.

    Fenced: a job that no longer runs in this batch (cancelled, expired, given to another) is left as it is and gets no
    result. So calling it twice, or after the lease was lost, is harmless.
    """
    stored: set[str] = set()
    states = sorted({outcome.state for outcome in outcomes})
    if len(states) > 1:
        lock(tx, among(table.c.id, [outcome.job_id for outcome in outcomes]), table.c.batch_id == batch_id)
    for state in states:
        chosen = {outcome.job_id: outcome for outcome in outcomes if outcome.state == state}
        mine = (among(table.c.id, chosen), table.c.batch_id == batch_id)
        if state == "delayed":
            moved = _defer(tx, chosen, mine)
        else:
            moved = move(tx, state, *mine, sources=["running"], finished_at=now())
            results.store(tx, batch_id, engine_id, [(row.id, chosen[row.id].result) for row in moved])
            announce(tx, moved, state)
        stored.update(row.id for row in moved)
    return stored


def _defer(
    tx: sa.Connection, chosen: Mapping[str, Settled], mine: tuple[sa.ColumnElement[bool], ...]
) -> Sequence[AnyRow]:
    # One delay for the group: the longest that an upstream asked for.
    delay = max(outcome.run_in for outcome in chosen.values())
    return move(
        tx,
        "delayed",
        *mine,
        sources=["running"],
        run_at=now() + delay,
        deferrals=table.c.deferrals + 1,
        batch_id=None,
    )


def announce(tx: sa.Connection, moved: Sequence[AnyRow], state: str) -> None:
    """Put the delivery of a job's end into the outbox, for those that asked for one."""
    wanted = [row.id for row in moved if row.notify]
    if wanted:
        hook = (bodies.c.webhook_url, bodies.c.webhook_secret, bodies.c.webhook_include_result)
        chosen = sa.select(bodies.c.job_id, table.c.owner, *hook).join(table, table.c.id == bodies.c.job_id)
        rows = tx.execute(chosen.where(among(bodies.c.job_id, wanted))).all()
        deliveries.enqueue(tx, f"job.{state}", rows)


def fail(tx: sa.Connection, code: str, message: str, *where: sa.ColumnElement[bool]) -> list[str]:
    """Fail running jobs for a reason that is not the engine's answer (poison, too many attempts); return their ids."""
    moved = move(tx, "failed", *where, sources=["running"], finished_at=now(), cohort_id=None)
    result = results.NewResult(status=500, code=code, message=message)
    results.store(tx, None, None, [(row.id, result) for row in moved])
    announce(tx, moved, "failed")
    return [row.id for row in moved]


def cancel(tx: sa.Connection, owner: str, job_id: str) -> None:
    """Cancel an open job of this owner; the worker's heartbeat then tells the engine to abort it.

    Raises NotFound, and AlreadyFinished for a job in an end state.
    """
    moved = move(tx, "cancelled", table.c.id == job_id, table.c.owner == owner, finished_at=now())
    if not moved:
        mine = sa.select(table.c.state).where(table.c.id == job_id, table.c.owner == owner)
        state = tx.execute(mine).scalar_one_or_none()
        if state is None:
            raise NotFound("job", job_id)
        raise AlreadyFinished(job_id, state)
    announce(tx, moved, "cancelled")


def stopped(tx: sa.Connection, running: Mapping[str, Iterable[str]]) -> list[str]:
    """Return which of the jobs that a worker believes to run (batch id -> job ids) do so no longer."""
    believed = [job_id for ids in running.values() for job_id in ids]
    still = sa.select(table.c.id).where(
        among(table.c.id, believed),
        among(table.c.batch_id, running),
        table.c.state == literal("running"),
    )
    alive = set(tx.execute(still).scalars())
    return [job_id for job_id in believed if job_id not in alive]
