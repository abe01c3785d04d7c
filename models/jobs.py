"""Jobs: the rows, the one function that writes their state, and how they come in (`models/ends.py`: how they end).

`jobs` is narrow because every step of the queue touches it; what a client sent lies beside it in `bodies`, what the
engine answered in `results` (`models/results.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from models.db import AnyRow, Id, among, in_order, literal, metadata, micros, new_id, now, one_of
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
    sa.Column("bulk_id", Id),
    sa.Column("line_no", sa.BigInteger),
    sa.Column("custom_id", sa.Text),
    sa.Column("prefix", sa.BigInteger, nullable=False, server_default=sa.text("0")),
)
"""`pos` is the queue position (microseconds), `tokens` an estimate for the batch bounds, `lone_deaths` how often the
engine died while this job ran alone; `line_no` and `custom_id` say which line of its bulk it is; `prefix` is the same
for prompts that begin alike, 0 where that is not known; times are seconds by the database's clock."""

bodies = sa.Table(
    "bodies",
    metadata,
    sa.Column("job_id", Id, primary_key=True),
    sa.Column("metadata", sa.JSON(none_as_null=True)),
    sa.Column("webhook_url", sa.Text),
    sa.Column("webhook_secret", sa.Text),
    sa.Column("webhook_include_result", sa.Boolean, nullable=False),
    sa.Column("body", sa.Text, nullable=False),  # nearly last: SQLite walks over all of it to what lies behind
    sa.Column("columns", sa.Text),
    sa.Column("trace", sa.Text),  # where a migration can put it: it is read beside the body, or where traces are wanted
)
"""`columns`: the other cells of a CSV line, as a JSON object. `trace`: its `traceparent` (models/traces.py)."""

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
# Of the states that a list is asked for, these are seldom among what came last. Only a job that gets there pays for it.
_partial(
    "jobs_unsuccessful",
    table.c.owner,
    table.c.state,
    table.c.id,
    where="state IN ('cancelled', 'expired', 'failed')",
)
_OF_BULK = sa.text("bulk_id IS NOT NULL")
sa.Index(
    "jobs_bulk",
    table.c.bulk_id,
    table.c.line_no,
    unique=True,
    sqlite_where=_OF_BULK,
    postgresql_where=_OF_BULK,
)

# SQLite takes a partial index only where the index's own condition stands in the query, word for word.
OPEN = one_of(table.c.state, JOB.open)
IN_BATCH = one_of(table.c.state, ("batched", "running"))
UNSUCCESSFUL = JOB.final - {"succeeded"}


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
    prefix: int = 0
    metadata: Mapping[str, str] | None = field(default=None, repr=False)
    webhook: Webhook | None = None
    expires_in: float | None = None
    trace: str = ""


@dataclass(frozen=True, slots=True)
class Stored:
    """What the database added to a new job. Times in seconds since 1970."""

    id: str
    created_at: float
    expires_at: float | None


_MOVED = tuple(
    table.c[name]
    for name in ("id", "owner", "model", "notify", "bulk_id", "line_no", "custom_id", "batch_id", "endpoint")
)


def move(
    tx: sa.Connection,
    to: str,
    *where: sa.ColumnElement[bool],
    sources: Iterable[str] = (),
    **values: Any,
) -> Sequence[AnyRow]:
    """Bring jobs to the state `to`: the only code that assigns a job's state.

    Only jobs in a state from which `to` follows (or in the narrower `sources`) move. Returns (id, owner, model, notify,
    bulk_id, line_no, custom_id, batch_id, endpoint) of those that did. Whoever moves jobs to an end state hands the
    rows to `ends.record`.
    """
    allowed = sorted(set(sources) or JOB.sources(to))
    if not JOB.sources(to).issuperset(allowed):
        msg = f"no job goes from {allowed} to {to}"
        raise ValueError(msg)
    from_state = one_of(table.c.state, allowed)
    statement = (
        sa.update(table).where(in_order(tx, table, from_state, *where)).values(state=to, **values).returning(*_MOVED)
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
        **{
            name: sa.bindparam(name)
            for name in ("id", "owner", "model", "lane", "endpoint", "tokens", "prefix", "notify")
        },
    )
    .returning(table.c.id, table.c.created_at, table.c.expires_at)
)
_insert_body = sa.insert(bodies).values(
    {column.name: sa.bindparam(f"{column.name}_", type_=column.type) for column in bodies.c if column.name != "columns"}
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
        "prefix": new.prefix,
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
        "trace_": new.trace or None,
    }
    if tx.dialect.name == "postgresql":
        return Stored(*tx.execute(_insert_both, job | body).one())
    stored = Stored(*tx.execute(_insert_job, job).one())
    tx.execute(_insert_body, body)
    return stored


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
