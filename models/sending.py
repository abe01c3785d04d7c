"""The sender's side of the outbox: who may send which deliveries, and how their tries ended.

What is sent in one request is a parcel: one event, or those of a group, which share `webhook-id` (`group_id`), claim
and record. A group is claimed by its first row, so that no two senders ever hold parts of one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from models import endpoints, results
from models.db import AnyRow, among, literal, new_id, now, upsert
from models.deliveries import host_of, table, tries
from models.owed import DUE, FRESH, OPEN, Due, is_test

MOST_TOGETHER = 1_000
"""Events in one request."""
MOST_BYTES = 4_000_000
"""Bytes of results in one request of more than one event."""

_row, _endpoint = table.c, endpoints.table.c


@dataclass(frozen=True, slots=True)
class Delivery:
    """A claimed delivery: what to send where. `attempt` fences every write that follows.

    `secrets` are sealed, each signs; none: the service's does. `dead` says why it cannot be sent any more.
    """

    id: str
    job_id: str
    event: str
    url: str
    include_result: bool
    created_at: float
    attempt: int
    tries_before: int = 0
    endpoint_id: str = ""
    host: str = ""
    group_id: str | None = None
    owner: str = ""
    secrets: tuple[str, ...] = field(default=(), repr=False)
    dead: str | None = None

    @property
    def webhook_id(self) -> str:
        """Return the id of the request."""
        return self.group_id or self.id

    @property
    def count(self) -> int:
        """Return which try this is, counted from 1, since it was enqueued or last redelivered."""
        return self.attempt - self.tries_before


@dataclass(frozen=True, slots=True)
class Try:
    """How one try ended. `status` is the receiver's, None when there was no answer; `latency` in seconds."""

    ok: bool
    status: int | None
    latency: float
    error: str | None = None
    answer: str | None = None


def claim(tx: sa.Connection, chosen: Sequence[Due], hold: float) -> list[tuple[Delivery, ...]]:
    """Claim what is still due of these for `hold` seconds; a claim that ran out counts as due. Returns parcels.

    What goes to another host by now is not claimed: it is due there, where others may be on their way.
    """
    known = _endpoints(tx, {one.endpoint_id for one in chosen} - {""})
    moved = {one.parcel for one in chosen if _moved(one, known.get(one.endpoint_id))}
    for was, endpoint_id in sorted({(one.host, one.endpoint_id) for one in chosen if one.parcel in moved}):
        _follow(tx, endpoint_id, was, host_of(known[endpoint_id].url))
    chosen = [one for one in chosen if one.parcel not in moved]
    alone = [one.id for one in chosen if one.group_id is None and one.company is None]
    groups = sorted({one.group_id for one in chosen if one.group_id is not None})
    # Groups that others hold are passed over by their first row: only who has locked it may touch the others.
    firsts = sa.select(sa.func.min(_row.id)).where(_row.group_id.is_not(None), among(_row.group_id, groups), OPEN)
    first = tx.execute(firsts.group_by(_row.group_id)).scalars().all() if groups else ()
    locked = sa.select(_row.id, _row.group_id).where(among(_row.id, [*alone, *first]), *DUE).order_by(_row.id)
    mine = tx.execute(locked.with_for_update(skip_locked=True)).all()
    rows = _take(tx, hold, among(_row.id, [row.id for row in mine if row.group_id is None]), _row.group_id.is_(None))
    mine_too = [row.group_id for row in mine if row.group_id is not None and row.id in set(first)]
    if mine_too:
        rows += _take(tx, hold, _row.group_id.is_not(None), among(_row.group_id, mine_too))
    rows += _group(tx, {one.company for one in chosen if one.company is not None}, hold)
    return _parcels(rows, known)


def _moved(one: Due, endpoint: AnyRow | None) -> bool:
    return endpoint is not None and host_of(endpoint.url) != one.host


def _follow(tx: sa.Connection, endpoint_id: str, was: str, host: str) -> None:
    """Give what is due of an endpoint its present host, so many at once: the next looks find it there."""
    # As a stretch of the index of hosts, as in `owed.due_of`.
    ends = sa.tuple_(_row.host, _row.next_at) <= sa.tuple_(sa.bindparam("was", was), now())
    stretch = sa.select(_row.id).where(OPEN, _row.host >= was, ends, _row.endpoint_id == endpoint_id)
    some = stretch.order_by(_row.host, _row.next_at).limit(MOST_TOGETHER).with_for_update(skip_locked=True)
    ids = tx.execute(some).scalars().all()
    tx.execute(sa.update(table).where(among(_row.id, ids)).values(host=host))


_CLAIMED = (*table.c, _row["try"].label("attempt"))


def _take(tx: sa.Connection, hold: float, *where: sa.ColumnElement[bool], **more: Any) -> list[AnyRow]:
    values = {"state": "sending", "try": _row["try"] + 1, "next_at": now() + hold, **more}
    return list(tx.execute(sa.update(table).where(*where, *DUE).values(values).returning(*_CLAIMED)))


def _group(tx: sa.Connection, companies: set[str], hold: float) -> list[AnyRow]:
    """Claim, of each of these endpoints, all that wait to be sent together, due or not: as a new group."""
    held = sa.select(_endpoint.id).where(among(_endpoint.id, companies))
    rows: list[AnyRow] = []
    if companies:
        # One sender at a time, so that what one began is not made two.
        free = held.order_by(_endpoint.id).with_for_update(skip_locked=True)
        for endpoint_id in tx.execute(free).scalars().all():
            ids = _company(tx, endpoint_id)
            # One that found no company goes as itself.
            together = new_id("msg") if len(ids) > 1 else None
            values = {"state": "sending", "try": _row["try"] + 1, "next_at": now() + hold, "group_id": together}
            mine = (among(_row.id, ids), *FRESH)
            rows += tx.execute(sa.update(table).where(*mine).values(values).returning(*_CLAIMED)) if ids else ()
    return rows


def _company(tx: sa.Connection, endpoint_id: str) -> list[str]:
    result = results.table.c
    length = sa.func.length if tx.dialect.name == "sqlite" else sa.func.octet_length
    body = sa.select(length(result.body)).where(result.job_id == _row.job_id).scalar_subquery()
    # As it was asked for when the job ended, whatever the endpoint says now.
    size = sa.case((_row.include_result, sa.func.coalesce(body, 0)), else_=0)
    fresh = sa.select(_row.id, size.label("size"))
    fresh = fresh.where(_row.endpoint_id == endpoint_id, *FRESH).order_by(_row.id).limit(MOST_TOGETHER)
    due = sa.select(sa.exists().where(_row.endpoint_id == endpoint_id, *FRESH, _row.next_at <= now()))
    if not tx.execute(due).scalar_one():
        return []
    ids: list[str] = []
    total = 0
    for row in tx.execute(fresh.with_for_update(skip_locked=True, of=table)):
        total += row.size
        if ids and total > MOST_BYTES:
            break
        ids.append(row.id)
    return ids


def _endpoints(tx: sa.Connection, ids: set[str]) -> dict[str, AnyRow]:
    if not ids:
        return {}
    old = sa.case((_endpoint.old_secret_until > now(), _endpoint.old_secret)).label("old")
    chosen = sa.select(_endpoint.id, _endpoint.url, _endpoint.secret, old, _endpoint.disabled_at)
    return {row.id: row for row in tx.execute(chosen.where(among(_endpoint.id, ids)))}


def _parcels(rows: Sequence[AnyRow], known: dict[str, AnyRow]) -> list[tuple[Delivery, ...]]:
    parcels: dict[str, list[Delivery]] = {}
    # The order of the ids is that of every try: the same events make the same bytes.
    for row in sorted(rows, key=lambda row: str(row.id)):
        made = _delivery(row, known.get(row.endpoint_id))
        parcels.setdefault(made.webhook_id, []).append(made)
    return [tuple(parcel) for parcel in parcels.values()]


def _delivery(row: AnyRow, endpoint: AnyRow | None) -> Delivery:
    url, secrets, dead = row.url, (row.secret,) if row.secret else (), None
    if endpoint is not None:
        # As it is now: a new URL or secret holds for what waits as well.
        url, secrets = endpoint.url, tuple(filter(None, (endpoint.secret, endpoint.old)))
        if endpoint.disabled_at is not None and not is_test(row.job_id):
            dead = "the endpoint is disabled"
    elif row.endpoint_id:
        dead = "the endpoint was deleted"
    told = (row.id, row.job_id, row.event, url, row.include_result, row.created_at, row.attempt)
    host = row.host if endpoint is None else host_of(url)
    return Delivery(*told, row.tries_before, row.endpoint_id, host, row.group_id, row.owner, secrets, dead)


@dataclass(frozen=True, slots=True)
class Ended:
    """How the try of one delivery ended; `retry_in` (seconds) or None when there is none to follow."""

    delivery: Delivery
    tried: Try
    retry_in: float | None


def record(tx: sa.Connection, ended: Sequence[Ended]) -> set[str]:
    """Store how tries ended, and keep those that failed. Returns the ids of the deliveries that were still ours."""
    if not ended:
        return set()
    in_turn = sorted(ended, key=lambda one: one.delivery.id)
    told = _as_rows(tx, json.dumps([_told(one) for one in in_turn]))
    mine = (_row.id == told.c.id, _row["try"] == told.c["try"], _row.state == literal("sending"))
    values = {name: told.c[name] for name in ("state", "status", "latency_ms", "error", "answer")}
    values |= {"next_at": now() + told.c.wait, "delivered_at": sa.case((told.c.state == "delivered", now()))}
    stored = set(tx.execute(sa.update(table).where(*mine).values(values).returning(_row.id)).scalars())
    failed = {one.delivery.webhook_id: one for one in in_turn if not one.tried.ok and one.delivery.id in stored}
    if failed:
        history = upsert(tx, tries).values(at=now()).on_conflict_do_nothing()
        tx.execute(history, [_failure(one) for one in failed.values()])
    return stored


def _told(one: Ended) -> dict[str, Any]:
    state = "delivered" if one.tried.ok else "failed" if one.retry_in is None else "pending"
    what = {"id": one.delivery.id, "try": one.delivery.attempt, "state": state, "wait": one.retry_in or 0.0}
    return {**what, **_outcome(one.tried), "answer": one.tried.answer}


def _outcome(tried: Try) -> dict[str, Any]:
    return {"status": tried.status, "latency_ms": round(tried.latency * 1000), "error": tried.error}


def _failure(one: Ended) -> dict[str, Any]:
    # A group's tries count from 1: its members may have been redelivered as often as they like before.
    number = one.delivery.count if one.delivery.group_id else one.delivery.attempt
    return {"delivery_id": one.delivery.webhook_id, "try": number, **_outcome(one.tried)}


_COLUMNS: dict[str, sa.types.TypeEngine[Any]] = {
    "id": sa.Text(),
    "try": sa.Integer(),
    "state": sa.Text(),
    "wait": sa.Double(),
    "status": sa.Integer(),
    "latency_ms": sa.Integer(),
    "error": sa.Text(),
    "answer": sa.Text(),
}


def _as_rows(tx: sa.Connection, told: str) -> Any:
    """Return a JSON list of objects as something to select from: one statement and one parameter, however many."""
    columns: list[sa.ColumnClause[Any]] = [sa.column(name, kind) for name, kind in _COLUMNS.items()]
    if tx.dialect.name == "postgresql":
        made = sa.func.json_to_recordset(sa.cast(sa.literal(told, sa.Text()), postgresql.JSON()))
        return made.table_valued(*columns).render_derived(name="told", with_types=True)
    each = sa.func.json_each(told).table_valued("value")
    parts = [sa.func.json_extract(each.c.value, f"$.{name}", type_=kind).label(name) for name, kind in _COLUMNS.items()]
    return sa.select(*parts).select_from(each).subquery("told")
