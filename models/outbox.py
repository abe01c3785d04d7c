"""The outbox: what an end is told to, in the transaction of that end. The job's own webhook, and the owner's endpoints.

An owner without endpoints costs one indexed query for all that ends in a transaction.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import msgspec
import sqlalchemy as sa

from models import deliveries, endpoints, event_types, jobs
from models.calls import RESPONSES
from models.db import AnyRow, among
from models.deliveries import NewDelivery
from models.endpoints import Subscriber
from models.results import NewResult

End = tuple[AnyRow, str, NewResult | None]
"""A job that has just ended: its row, its state, its result."""


class _Answer(msgspec.Struct):
    status: str | None = None


_answers = msgspec.json.Decoder(_Answer)


def tell_jobs(tx: sa.Connection, ended: Sequence[End]) -> None:
    """Tell of jobs that have just ended."""
    by_owner = _subscribers(tx, {row.owner for row, _, _ in ended})
    deliveries.enqueue(tx, [*_own_hooks(tx, ended), *_of_endpoints(ended, by_owner)])


def tell_bulk(tx: sa.Connection, row: AnyRow) -> None:
    """Tell of a bulk that has just ended; `row` is the whole row."""
    event = event_types.of_bulk(row.kind, row.state)
    new = [
        _to(subscriber, row.owner, row.id, event)
        for subscriber in endpoints.subscribers(tx, [row.owner])
        if event in subscriber.event_types
    ]
    if row.webhook_url is not None:
        new.append(NewDelivery(row.owner, row.id, event, row.webhook_url, row.webhook_secret))
    deliveries.enqueue(tx, new)


def _subscribers(tx: sa.Connection, owners: Iterable[str]) -> Mapping[str, list[Subscriber]]:
    found: dict[str, list[Subscriber]] = defaultdict(list)
    for subscriber in endpoints.subscribers(tx, owners):
        found[subscriber.owner].append(subscriber)
    return found


def _own_hooks(tx: sa.Connection, ended: Sequence[End]) -> list[NewDelivery]:
    """Return the deliveries to the webhooks that jobs brought along."""
    states = {row.id: state for row, state, _ in ended if row.notify}
    if not states:
        return []
    body = jobs.bodies.c
    hook = (body.webhook_url, body.webhook_secret, body.webhook_include_result)
    chosen = sa.select(body.job_id, jobs.table.c.owner, *hook).join(jobs.table, jobs.table.c.id == body.job_id)
    found = tx.execute(chosen.where(among(body.job_id, states))).all()
    return [
        NewDelivery(owner, job_id, event_types.of_job(states[job_id]), url, secret, include_result)
        for job_id, owner, url, secret, include_result in found
    ]


def _of_endpoints(ended: Iterable[End], by_owner: Mapping[str, list[Subscriber]]) -> list[NewDelivery]:
    return [
        _to(subscriber, row.owner, row.id, event)
        for row, state, result in ended
        if row.owner in by_owner
        for event in _events(row, state, result)
        for subscriber in by_owner[row.owner]
        if event in subscriber.event_types
    ]


def _events(row: AnyRow, state: str, result: NewResult | None) -> list[str]:
    """Return what a job's end is called: a response has two names."""
    events = [event_types.of_job(state)]
    if row.endpoint == RESPONSES:
        events.append(event_types.of_response(state, _status(result) if state == "succeeded" else None))
    return events


def _status(result: NewResult | None) -> str | None:
    try:
        return None if result is None or result.body is None else _answers.decode(result.body).status
    except (msgspec.MsgspecError, RecursionError):
        return None  # an engine's answer of another shape; it is told of as completed


def _to(subscriber: Subscriber, owner: str, subject: str, event: str) -> NewDelivery:
    return NewDelivery(
        owner,
        subject,
        event,
        subscriber.url,
        include_result=subscriber.include_result,
        endpoint_id=subscriber.id,
        delay=subscriber.coalesce or 0.0,
    )
