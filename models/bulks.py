"""Bulks: many jobs submitted by one upload. An OpenAI batch is a bulk that came in, and goes out, as a file.

The row is the bulk's plan, its progress and its counts. Which jobs and results belong to it stands in their own rows
(`models/bulk_lines.py`, `models/bulk_results.py`); who looks after it, in `models/bulk_leases.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import sqlalchemy as sa

from models import outbox
from models.db import AnyRow, Id, metadata, new_id, now, one_of
from models.errors import AlreadyFinished, NotFound, StillRunning
from models.results import TOKENS, Ended
from models.states import BULK
from models.tags import tagged

BULK_KIND, BATCH_KIND = "bulk", "batch"
PAUSED = "paused"
"""The lane of a paused bulk's jobs: no collector serves it."""

COUNTS = ("total", "done", "succeeded", "failed", "cancelled", "expired", "invalid")
MOMENTS = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")

table = sa.Table(
    "bulks",
    metadata,
    sa.Column("id", Id, primary_key=True),
    sa.Column("owner", sa.String(64), nullable=False),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("lane", sa.String(16), nullable=False),
    sa.Column("lane_applied", sa.String(16), nullable=False),
    sa.Column("paused_at", sa.Double),
    sa.Column("model", sa.String(255)),
    sa.Column("endpoint", sa.String(64)),
    sa.Column("file_id", Id),
    sa.Column("input_url", sa.Text),
    sa.Column("format", sa.String(16), nullable=False),
    sa.Column("gzip", sa.Boolean, nullable=False),
    sa.Column("defaults", sa.JSON(none_as_null=True)),
    sa.Column("metadata", sa.JSON(none_as_null=True)),
    sa.Column("dry_run", sa.Boolean, nullable=False),
    sa.Column("stop_after_failed", sa.Double),
    sa.Column("retry_of", Id),
    sa.Column("window", sa.String(16)),
    sa.Column("webhook_url", sa.Text),
    sa.Column("webhook_secret", sa.Text),
    sa.Column("offset", sa.BigInteger, nullable=False),
    sa.Column("line", sa.BigInteger, nullable=False),
    sa.Column("ingest_done", sa.Boolean, nullable=False),
    *(sa.Column(name, sa.BigInteger, nullable=False) for name in COUNTS + TOKENS),
    sa.Column("errors", sa.JSON(none_as_null=True)),
    sa.Column("report", sa.JSON(none_as_null=True)),
    sa.Column("output_file_id", Id),
    sa.Column("error_file_id", Id),
    sa.Column("output_expires_after", sa.Integer),
    sa.Column("created_at", sa.Double, nullable=False),
    *(sa.Column(f"{name}_at", sa.Double) for name in MOMENTS),
    sa.Column("expires_at", sa.Double),
    sa.Column("deleted_at", sa.Double),
    sa.Column("holder", Id),
    sa.Column("lease_until", sa.Double),
)
"""`offset`: bytes of the decompressed input that have become jobs, `line`: the lines in them. `done`: the lines that
ended, which is the last `seq` given to a result; `invalid`: how many of the failed could not be read. `lane_applied`:
the lane that the jobs stand in, which follows `lane` and `paused_at`. `errors`: a list of {code, message, param,
line}."""

_UNFINISHED = "(state IN ('cancelling', 'finalizing', 'running', 'validating') OR deleted_at IS NOT NULL)"
UNFINISHED = sa.text(_UNFINISHED)
sa.Index("bulks_owner", table.c.owner, table.c.id)
sa.Index("bulks_unfinished", table.c.id, sqlite_where=UNFINISHED, postgresql_where=UNFINISHED)


@dataclass(frozen=True, slots=True)
class NewBulk:
    """A bulk that is about to be stored. `defaults` are JSON values by name; `expires_in` in seconds."""

    owner: str
    kind: str
    lane: str
    model: str | None = None
    endpoint: str | None = None
    file_id: str | None = None
    input_url: str | None = None
    format: str = "jsonl"
    gzip: bool = False
    defaults: Mapping[str, Any] | None = field(default=None, repr=False)
    metadata: Mapping[str, str] | None = field(default=None, repr=False)
    dry_run: bool = False
    stop_after_failed: float | None = None
    retry_of: str | None = None
    window: str | None = None
    expires_in: float | None = None
    webhook_url: str | None = None
    webhook_secret: str | None = field(default=None, repr=False)
    output_expires_after: int | None = None
    errors: Sequence[Mapping[str, Any]] | None = None


def create(tx: sa.Connection, new: NewBulk) -> AnyRow:
    """Store a bulk as validating; return its row."""
    values = asdict(new)
    expires_in = values.pop("expires_in")
    made = sa.insert(table).values(
        **values,
        id=new_id(new.kind),
        state="validating",
        lane_applied=new.lane,
        offset=0,
        line=0,
        ingest_done=False,
        **dict.fromkeys(COUNTS + TOKENS, 0),
        created_at=now(),
        expires_at=None if expires_in is None else now() + expires_in,
    )
    return tx.execute(made.returning(table)).one()


def move(tx: sa.Connection, to: str, *where: sa.ColumnElement[bool], **values: Any) -> Sequence[AnyRow]:
    """Bring bulks to the state `to`: the only code that assigns a bulk's state. Returns the rows that moved."""
    moment = "in_progress_at" if to == "running" else f"{to}_at"
    statement = (
        sa.update(table)
        .where(one_of(table.c.state, BULK.sources(to)), *where)
        .values(state=to, **{moment: now()}, **values)
    )
    return tx.execute(statement.returning(table)).all()


def get(tx: sa.Connection, owner: str, bulk_id: str, kind: str | None = None) -> AnyRow:
    """Return a bulk of this owner. Raises NotFound."""
    chosen = sa.select(table).where(table.c.id == bulk_id, table.c.owner == owner, table.c.deleted_at.is_(None))
    if kind is not None:
        chosen = chosen.where(table.c.kind == kind)
    row = tx.execute(chosen).one_or_none()
    if row is None:
        raise NotFound(kind or BULK_KIND, bulk_id)
    return row


def page(
    tx: sa.Connection,
    owner: str,
    *,
    kind: str | None = None,
    state: str | None = None,
    tags: Mapping[str, str] | None = None,
    begins: Iterable[str] = (),
    after: str | None = None,
    limit: int = 20,
) -> tuple[Sequence[AnyRow], bool]:
    """Return up to `limit` bulks from behind the id `after`, newest first, and whether more follow.

    The ids of bulks and of batches are both ordered by time, but not with each other: without `kind`, `after` compares
    their digits. `begins`: how their ids begin, one of these: `bulk_` or `batch_` and hex digits; none mean all.
    """
    chosen = sa.select(table).where(table.c.owner == owner, table.c.deleted_at.is_(None))
    digits = sa.func.substr(table.c.id, sa.func.length(table.c.kind) + 2)
    order: sa.ColumnElement[Any] = table.c.id if kind else digits
    if kind is not None:
        chosen = chosen.where(table.c.kind == kind)
    if state is not None:
        chosen = chosen.where(table.c.state == state)
    if ranges := [sa.and_(table.c.id >= begin, table.c.id < f"{begin}g") for begin in begins]:
        chosen = chosen.where(sa.or_(*ranges))  # `g` is behind every hex digit
    if after is not None:
        chosen = chosen.where(order < (after if kind else after.rpartition("_")[2]))
    chosen = chosen.where(*tagged(tx, table.c.metadata, tags or {}))
    rows = tx.execute(chosen.order_by(order.desc()).limit(limit + 1)).all()
    return rows[:limit], len(rows) > limit


def cancel(tx: sa.Connection, owner: str, bulk_id: str, kind: str | None = None) -> AnyRow:
    """Cancel a bulk: its open jobs are cancelled in slices. Cancelling twice is fine.

    Raises NotFound, and AlreadyFinished for one that has ended or is being written out.
    """
    row = get(tx, owner, bulk_id, kind)
    if row.state in {"cancelling", "cancelled"}:
        return row
    moved = move(tx, "cancelling", table.c.id == bulk_id, table.c.owner == owner)
    if moved:
        return moved[0]
    row = get(tx, owner, bulk_id, kind)
    if row.state in {"cancelling", "cancelled"}:
        return row
    raise AlreadyFinished(bulk_id, row.state, "bulk")


def steer(
    tx: sa.Connection, owner: str, bulk_id: str, *, lane: str | None = None, paused: bool | None = None
) -> AnyRow:
    """Change an open bulk's lane, pause it, or let it go on; its waiting jobs follow in slices.

    Raises NotFound, and AlreadyFinished for one that has ended.
    """
    values: dict[str, Any] = {} if lane is None else {"lane": lane}
    if paused is not None:
        values["paused_at"] = sa.func.coalesce(table.c.paused_at, now()) if paused else None
    row = get(tx, owner, bulk_id)
    steered = sa.update(table).where(table.c.id == bulk_id, one_of(table.c.state, ("validating", "running")))
    changed = tx.execute(steered.values(**values).returning(table)).one_or_none()
    if changed is None:
        raise AlreadyFinished(bulk_id, row.state, "bulk")
    return changed


def effective_lane(row: AnyRow) -> str:
    """Return the lane that a bulk's waiting jobs are to stand in."""
    return PAUSED if row.paused_at is not None else str(row.lane)


def delete(tx: sa.Connection, owner: str, bulk_id: str) -> None:
    """Hide an ended bulk for good; its jobs, results and input go in slices.

    Raises NotFound, and StillRunning also while a retry still reads the lines of it.
    """
    if tx.execute(sa.select(sa.exists().where(UNFINISHED, table.c.retry_of == bulk_id, ~table.c.ingest_done))).scalar():
        get(tx, owner, bulk_id)
        raise StillRunning(bulk_id, "being retried")
    ended = one_of(table.c.state, BULK.final)
    mine = (table.c.id == bulk_id, table.c.owner == owner, table.c.deleted_at.is_(None), ended)
    if tx.execute(sa.update(table).where(*mine).values(deleted_at=now())).rowcount == 0:
        row = get(tx, owner, bulk_id)
        raise StillRunning(bulk_id, row.state)


def forget(tx: sa.Connection, bulk_id: str) -> None:
    """Delete the row of a bulk of which nothing else is left."""
    tx.execute(sa.delete(table).where(table.c.id == bulk_id))


def announce(tx: sa.Connection, row: AnyRow) -> None:
    """Put the deliveries of a bulk's end into the outbox: to its own webhook, and to its owner's endpoints."""
    outbox.tell_bulk(tx, row)


def count(tx: sa.Connection, ended: Iterable[Ended]) -> dict[str, int]:
    """Count lines that ended in this transaction on their bulks; return each one's `seq` by its job id.

    The last write of a transaction that locks anything else: the row stays locked until COMMIT, so that `seq` is given
    in the order in which results become visible, and a reader who saw one has seen all before it.
    """
    by_bulk: dict[str, list[Ended]] = {}
    for one in ended:
        if one.bulk_id is not None:
            by_bulk.setdefault(one.bulk_id, []).append(one)
    places: dict[str, int] = {}
    for bulk_id in sorted(by_bulk):
        lines = by_bulk[bulk_id]
        added: Counter[str] = Counter(one.state for one in lines)
        added["done"] = len(lines)
        for one in lines:
            if one.result is not None:
                added.update({name: getattr(one.result, name) for name in TOKENS})
        values = {name: table.c[name] + many for name, many in added.items() if many}
        done = tx.execute(
            sa.update(table).where(table.c.id == bulk_id).values(values).returning(table.c.done)
        ).scalar_one_or_none()
        if done is not None:  # else it was deleted
            places.update({one.job_id: done - len(lines) + nth for nth, one in enumerate(lines, 1)})
    return places
