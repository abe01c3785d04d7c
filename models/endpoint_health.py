"""The health of webhook endpoints: since when one only fails, and how it is disabled. Written by the sender."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import sqlalchemy as sa

from models import deliveries
from models.db import AnyRow, among, in_order, new_id, now
from models.endpoints import table

DAY = 86_400.0
SILENCE = 2.0
"""Days without a failure after which a series of them begins anew, at least: the tries of one event are a day apart."""
STEP = 60.0
"""Seconds that the time of the last failure may lag behind: not every failed try writes a row."""
NOTE = "endpoint.disabled"
"""The event of the note in the delivery log: a row that nobody sends (its state is `noted`)."""

_endpoint = table.c

Tried = tuple[str, str]
"""An endpoint's id, and the URL of the try."""


@dataclass(frozen=True, slots=True)
class News:
    """What a sender found out: endpoints of which a try succeeded, failed, or was answered with 410.

    Each with the URL that was tried: what is true of an old URL says nothing of the one that has taken its place.
    """

    worked: frozenset[Tried] = frozenset()
    failed: frozenset[Tried] = frozenset()
    gone: frozenset[Tried] = frozenset()


def tell(tx: sa.Connection, news: News, days: float) -> dict[str, str]:
    """Note what was found out; disable those that are gone, or that only failed for so many days.

    Returns why, by the id of each that was disabled.
    """
    if news.worked:
        _set(tx, news.worked, _endpoint.failing_since.is_not(None), failing_since=None)
    disabled = _disable(tx, news.gone, "the receiver answered 410: it is gone for good") if news.gone else []
    failed = news.failed - news.worked - news.gone
    if failed:
        _note_failures(tx, failed, days)
        too_long = _endpoint.failing_since < now() - days * DAY
        disabled += _disable(tx, failed, f"every try has failed for {days:g} days", too_long)
    if disabled:
        tx.execute(sa.insert(deliveries.table).values(next_at=now(), created_at=now()), [*map(_note, disabled)])
    return {row.id: row.disabled_why for row in disabled}


def _note_failures(tx: sa.Connection, tried: Iterable[Tried], days: float) -> None:
    """Note that tries failed just now; while nothing was sent for long, nothing failed: the series begins anew."""
    last = sa.func.coalesce(_endpoint.last_failed_at, _endpoint.failing_since)
    first = sa.or_(_endpoint.failing_since.is_(None), last < now() - max(days, SILENCE) * DAY)
    news = sa.or_(_endpoint.failing_since.is_(None), last < now() - STEP)
    since = sa.case((first, now()), else_=_endpoint.failing_since)
    _set(tx, tried, news, failing_since=since, last_failed_at=now())


def _disable(tx: sa.Connection, tried: Iterable[Tried], why: str, *where: sa.ColumnElement[bool]) -> list[AnyRow]:
    enabled = _endpoint.disabled_at.is_(None)
    return _set(tx, tried, enabled, *where, disabled_at=now(), disabled_why=why, updated_at=now())


def _set(tx: sa.Connection, tried: Iterable[Tried], *where: sa.ColumnElement[bool], **values: object) -> list[AnyRow]:
    listed = sorted(tried)
    still = among(_endpoint.id + " " + _endpoint.url, [f"{ident} {url}" for ident, url in listed])
    chosen = in_order(tx, table, among(_endpoint.id, {ident for ident, _ in listed}), still, *where)
    returned = (_endpoint.id, _endpoint.owner, _endpoint.url, _endpoint.disabled_why)
    return list(tx.execute(sa.update(table).where(chosen).values(values).returning(*returned)))


def _note(row: AnyRow) -> Mapping[str, object]:
    ident = new_id("msg")
    what = {"id": ident, "owner": row.owner, "event": NOTE, "url": row.url, "endpoint_id": row.id, "state": "noted"}
    # An endpoint may be disabled more than once: what it is told of is not the endpoint alone.
    about = f"{row.id}.{ident[-16:]}"
    return {**what, "job_id": about, "include_result": False, "try": 0, "host": "", "error": row.disabled_why}
