"""What the outbox owes: which deliveries are due, and of which hosts.

The oldest are read by the index of their time, the hosts by hops from one to the next: both cost the same however many
deliveries wait for their next try.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from models import endpoints
from models.db import literal, now
from models.deliveries import table

TEST = "test"
"""The prefix of what a test tells of, which an owner asked for: `test_...` is no job and no bulk."""

_row, _endpoint = table.c, endpoints.table.c
NO_TEST = ~_row.job_id.startswith(literal(f"{TEST}_"))
OPEN = _row.state.in_([literal("pending"), literal("sending")])
DUE = (OPEN, _row.next_at <= now())
FRESH = (
    _row.state == literal("pending"),
    _row.group_id.is_(None),
    _row.endpoint_id != literal(""),
    # One that was tried keeps its webhook-id, also when it is sent again since its owner asked for it.
    _row["try"] == sa.literal_column("0"),
    NO_TEST,
)


def is_test(subject: str) -> bool:
    """Tell whether a delivery's subject (`job_id`) is that of a test."""
    return subject.startswith(f"{TEST}_")


@dataclass(frozen=True, slots=True)
class Due:
    """A delivery that is due: by itself, as one of a group, or (`company`: its endpoint) to be grouped with others."""

    id: str
    host: str
    group_id: str | None
    company: str | None
    owner: str
    endpoint_id: str

    @property
    def parcel(self) -> str:
        """Return what is the same for all that go in one request."""
        return self.group_id or self.company or self.id


def any_due(tx: sa.Connection) -> bool:
    """Tell whether a delivery is due."""
    # By the first in the order of time: asked for any, PostgreSQL may go through all hosts.
    first = sa.select(sa.func.min(_row.next_at)).where(OPEN).scalar_subquery()
    return bool(tx.execute(sa.select(first <= now())).scalar_one())


_SEEN = (
    _row.id,
    _row.host,
    _row.group_id,
    sa.case((sa.and_(*FRESH, _endpoint.coalesce.is_not(None)), _row.endpoint_id)).label("company"),
    _row.owner,
    _row.endpoint_id,
)
_LOOK = sa.select(*_SEEN).select_from(table.outerjoin(endpoints.table, _endpoint.id == _row.endpoint_id))


def due(tx: sa.Connection, most: int) -> list[Due]:
    """Return what is due, the oldest first."""
    return [Due(*row) for row in tx.execute(_LOOK.where(*DUE).order_by(_row.next_at).limit(most))]


_HOP = """
    WITH RECURSIVE hop(host, next_at, nth) AS (
        SELECT host, next_at, 1 FROM deliveries AS first WHERE id = (
            SELECT id FROM deliveries WHERE state IN ('pending', 'sending') {beyond}
            ORDER BY host, next_at LIMIT 1)
        UNION ALL
        SELECT next.host, next.next_at, hop.nth + 1 FROM hop JOIN deliveries AS next ON next.id = (
            SELECT id FROM deliveries
            WHERE state IN ('pending', 'sending') AND deliveries.host > hop.host
            ORDER BY deliveries.host, deliveries.next_at LIMIT 1)
        WHERE hop.nth < :most
    )
    SELECT host, next_at AS first FROM hop ORDER BY nth
"""
_FROM_START, _BEYOND = (sa.text(_HOP.format(beyond=beyond)) for beyond in ("", "AND host > :after"))


def due_hosts(tx: sa.Connection, after: str | None, most: int) -> tuple[list[str], str | None]:
    """Look at the next `most` hosts with open deliveries, from hop to hop; return those with one that is due.

    Also returns the host that was looked at last, to go on from; None at the end.
    """
    values = {"most": most} if after is None else {"most": most, "after": after}
    found = tx.execute(_FROM_START if after is None else _BEYOND, values).all()
    clock = tx.execute(sa.select(now())).scalar_one()
    last = found[-1].host if len(found) == most else None
    return [row.host for row in found if row.first <= clock], last


def due_of(tx: sa.Connection, hosts: Sequence[str], each: int) -> list[Due]:
    """Return the oldest that are due of each of these hosts."""
    if tx.dialect.name == "sqlite":
        of_one = _LOOK.where(*DUE, _row.host == sa.bindparam("of")).order_by(_row.next_at).limit(each)
        return [Due(*row) for host in hosts for row in tx.execute(of_one, {"of": host})]
    asked = (
        sa.func.unnest(sa.bindparam("hosts", list(hosts), sa.ARRAY(sa.Text())))
        .table_valued("host", name="asked")
        .render_derived()
    )
    # As a stretch of the index of hosts: told that a host is one, PostgreSQL may look for it among all that are due.
    ends = sa.tuple_(_row.host, _row.next_at) <= sa.tuple_(asked.c.host, now())
    its = _LOOK.where(OPEN, _row.host >= asked.c.host, ends).order_by(_row.host, _row.next_at)
    of_each = its.limit(each).lateral("of_each")
    return [Due(*row) for row in tx.execute(sa.select(*of_each.c).select_from(asked).join(of_each, sa.true()))]
