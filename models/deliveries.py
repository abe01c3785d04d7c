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

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import sqlalchemy as sa

from models.db import Id, metadata, new_id, now, upsert

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
class NewDelivery:
    """An event on its way to one URL: the job's or bulk's own, or an endpoint's. It waits `delay` seconds for others.

    `secret` is sealed; None: the service's own signs, or the endpoint's.
    """

    owner: str
    job_id: str
    event: str
    url: str
    secret: str | None = field(default=None, repr=False)
    include_result: bool = False
    endpoint_id: str = ""
    delay: float = 0.0


def host_of(url: str) -> str:
    """Return the host of a URL, in lower case: what limits the requests at once; pure."""
    try:
        return (urlsplit(url).hostname or "").rstrip(".")[:255]
    except ValueError:
        return ""


def enqueue(tx: sa.Connection, new: Iterable[NewDelivery]) -> list[str]:
    """Put events into the outbox, in the transaction of what they tell of; return their ids.

    An end is told of once to each URL or endpoint: what is there already stays as it is.
    """
    rows: list[dict[str, Any]] = [
        {
            "id": new_id("msg"),
            "job_id": one.job_id,
            "owner": one.owner,
            "event": one.event,
            "url": one.url,
            "secret": one.secret,
            "include_result": one.include_result,
            "state": "pending",
            "try": 0,
            "endpoint_id": one.endpoint_id,
            "host": host_of(one.url),
            "tries_before": 0,
            "delay": one.delay,
        }
        for one in new
    ]
    if rows:
        columns: dict[str, Any] = {name: sa.bindparam(name) for name in rows[0] if name != "delay"}
        due = now() + sa.bindparam("delay", type_=sa.Double)
        told = upsert(tx, table).values(columns | {"next_at": due, "created_at": now()})
        tx.execute(told.on_conflict_do_nothing(), rows)
    return [row["id"] for row in rows]
