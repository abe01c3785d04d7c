"""Deliveries: webhook events on their way, written in the transaction that ends the job (the outbox).

```
pending ──claim──> sending ──> delivered
   ^                  │ ├────> failed     the schedule is used up, or the URL is refused
   └── again at next_at ┘
```

A claim counts `try`; every later write says `try = mine AND state = 'sending'`, so a sender that was frozen writes
nothing over its successor.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from models.db import AnyRow, Id, among, literal, metadata, new_id, now

table = sa.Table(
    "deliveries",
    metadata,
    sa.Column("id", Id, primary_key=True),
    sa.Column("owner", sa.String(64), nullable=False),
    sa.Column("job_id", Id, nullable=False),
    sa.Column("event", sa.String(32), nullable=False),
    sa.Column("url", sa.Text, nullable=False),
    sa.Column("secret", sa.Text),
    sa.Column("include_result", sa.Boolean, nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("try", sa.SmallInteger, nullable=False),
    sa.Column("next_at", sa.Double, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("delivered_at", sa.Double),
    sa.Column("status", sa.SmallInteger),
    sa.Column("latency_ms", sa.Integer),
    sa.Column("error", sa.Text),
    sa.Column("answer", sa.Text),
    sa.Column("endpoint_id", Id, nullable=False, server_default=""),
    sa.Column("host", sa.String(255), nullable=False, server_default=""),
    sa.Column("group_id", Id),
    sa.Column("tries_before", sa.SmallInteger, nullable=False, server_default=sa.text("0")),
    sa.UniqueConstraint("job_id", "event", "endpoint_id", name="deliveries_once"),
)
"""`job_id`: the job, or the bulk, that it tells of. `next_at`: when it is due; while sending, when its claim runs out.
`answer`: the first 1 kB of the receiver's. `endpoint_id`: `""` where the job itself named the URL. `host`: of the URL,
for the limit on requests at once. `group_id`: the `webhook-id` of the one request that carries this event and others.
`tries_before`: how many tries were made before it was last redelivered."""

tries = sa.Table(
    "delivery_tries",
    metadata,
    sa.Column("delivery_id", Id, primary_key=True),
    sa.Column("try", sa.SmallInteger, primary_key=True, autoincrement=False),
    sa.Column("at", sa.Double, nullable=False),
    sa.Column("status", sa.SmallInteger),
    sa.Column("latency_ms", sa.Integer, nullable=False),
    sa.Column("error", sa.Text),
)
"""The tries that failed, by `webhook-id` (of the delivery, or of its group); how the last one ended stands in the
delivery itself."""

_OPEN = sa.text("state IN ('pending', 'sending')")
_OF_ENDPOINT = sa.text("endpoint_id <> ''")
_ALONE = sa.text("state = 'pending' AND group_id IS NULL AND endpoint_id <> ''")
_GROUPED = sa.text("group_id IS NOT NULL")


def _partial(name: str, where: sa.TextClause, *columns: sa.Column[Any]) -> None:
    sa.Index(name, *columns, sqlite_where=where, postgresql_where=where)


_partial("deliveries_due", _OPEN, table.c.next_at)
_partial("deliveries_hosts", _OPEN, table.c.host, table.c.next_at)
_partial("deliveries_endpoint", _OF_ENDPOINT, table.c.endpoint_id, table.c.id)
_partial("deliveries_company", _ALONE, table.c.endpoint_id, table.c.id)
_partial("deliveries_group", _GROUPED, table.c.group_id)
sa.Index("deliveries_owner", table.c.owner, table.c.id)


@dataclass(frozen=True, slots=True)
class Delivery:
    """A claimed delivery: what to send where. `attempt` fences every write that follows."""

    id: str
    job_id: str
    event: str
    url: str
    secret: str | None = field(repr=False)
    include_result: bool
    created_at: float
    attempt: int


def enqueue(tx: sa.Connection, event: str, rows: Iterable[AnyRow]) -> None:
    """Write one delivery for each (job_id, owner, url, secret, include_result)."""
    values = [
        {
            "id": new_id("msg"),
            "job_id": job_id,
            "owner": owner,
            "event": event,
            "url": url,
            "secret": secret,
            "include_result": include_result,
            "state": "pending",
            "try": 0,
        }
        for job_id, owner, url, secret, include_result in rows
    ]
    if values:
        tx.execute(sa.insert(table).values(next_at=now(), created_at=now()), values)


def any_due(tx: sa.Connection) -> bool:
    """Tell whether a delivery is due."""
    return tx.execute(sa.select(sa.exists().where(*_due()))).scalar_one()


def _due() -> tuple[sa.ColumnElement[bool], ...]:
    return (table.c.state.in_([literal("pending"), literal("sending")]), table.c.next_at <= now())


def claim(tx: sa.Connection, limit: int, hold: float) -> Sequence[Delivery]:
    """Claim up to `limit` due deliveries for `hold` seconds; a claim that ran out counts as due."""
    due = sa.select(table.c.id).where(*_due()).order_by(table.c.next_at).limit(limit).with_for_update(skip_locked=True)
    ids = tx.execute(due).scalars().all()
    if not ids:
        return []
    claimed = tx.execute(
        sa.update(table)
        .where(among(table.c.id, ids), *_due())
        .values({"state": "sending", "try": table.c["try"] + 1, "next_at": now() + hold})
        .returning(
            table.c.id,
            table.c.job_id,
            table.c.event,
            table.c.url,
            table.c.secret,
            table.c.include_result,
            table.c.created_at,
            table.c["try"],
        )
    )
    return [Delivery(*row) for row in claimed]


@dataclass(frozen=True, slots=True)
class Try:
    """How one try ended. `status` is the receiver's, None when there was no answer; `latency` in seconds."""

    ok: bool
    status: int | None
    latency: float
    error: str | None = None
    answer: str | None = None


def record(tx: sa.Connection, delivery: Delivery, ended: Try, retry_in: float | None) -> bool:
    """Store how a try ended; `retry_in` (seconds) or None when there is none to follow. False: it is no longer ours."""
    state = "delivered" if ended.ok else "failed" if retry_in is None else "pending"
    updated = tx.execute(
        sa.update(table)
        .where(table.c.id == delivery.id, table.c["try"] == delivery.attempt, table.c.state == literal("sending"))
        .values(
            state=state,
            next_at=now() + (retry_in or 0.0),
            delivered_at=now() if ended.ok else None,
            status=ended.status,
            latency_ms=round(ended.latency * 1000),
            error=ended.error,
            answer=ended.answer,
        )
    )
    return updated.rowcount == 1
