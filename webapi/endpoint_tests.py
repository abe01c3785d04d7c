"""A sample event for a webhook endpoint: written as any other, sent by a worker, and waited for."""

from __future__ import annotations

import time
from threading import BoundedSemaphore

from models import deliveries, delivery_log
from models.db import AnyRow, new_id
from models.deliveries import NewDelivery
from models.errors import DatabaseUnavailable
from models.events import TEST
from webapi.context import here, writing
from webapi.errors import Problem, WebhookUnknown
from webapi.openai import openai_problem

AT_ONCE = 8
"""Tests that a web process waits for: each keeps a thread."""
SLACK = 5.0
"""Seconds beyond the time of one try, for a worker to come to it."""
FIRST_PAUSE, LONGEST_PAUSE = 0.02, 0.25
FINAL = {"X-Should-Retry": "false"}

_places = BoundedSemaphore(AT_ONCE)


def send(endpoint: AnyRow, event: str) -> int:
    """Send a sample event to an endpoint, and return the receiver's status. Raises Problem 502 without an answer."""
    if not _places.acquire(blocking=False):
        detail = f"This process waits for {AT_ONCE} tests of webhook endpoints already; try again soon."
        raise Problem(503, "too_many_tests", detail, headers={"Retry-After": "2"})
    try:
        row = _ended(_written(endpoint, event), here().settings.webhook_timeout + SLACK)
    finally:
        _places.release()
    if row is None:
        raise _failed("No worker has sent it in time; it is not sent any more.")
    if row.state not in delivery_log.ENDED:
        raise _failed("The receiver has not answered in time.")
    if row.status is None:
        raise _failed(f"The receiver did not answer: {row.error or 'no reason is known'}.")
    return int(row.status)


def _failed(why: str) -> Problem:
    return openai_problem(502, "webhook_test_failed", why, headers=FINAL)


def _written(endpoint: AnyRow, event: str) -> AnyRow:
    new = NewDelivery(endpoint.owner, new_id(TEST), event, endpoint.url, endpoint_id=endpoint.id)
    with writing(WebhookUnknown) as tx:
        (delivery_id,) = deliveries.enqueue(tx, [new])
        row = delivery_log.get(tx, endpoint.owner, delivery_id)
    here().doorbell.ring_deliver()
    return row


def _ended(row: AnyRow, within: float) -> AnyRow | None:
    """Look at a delivery until it has ended, or so many seconds have passed; None: nobody took it, it is given up."""
    until, pause = time.monotonic() + within, FIRST_PAUSE
    while row.state not in delivery_log.ENDED and time.monotonic() < until:
        time.sleep(pause)
        pause = min(pause * 1.5, LONGEST_PAUSE)
        try:
            with here().reserve.reading() as tx:
                row = delivery_log.of_id(tx, row.id)
        except DatabaseUnavailable:
            continue  # it may be back in time
    return None if row.state == "pending" and _given_up(row) else row


def _given_up(row: AnyRow) -> bool:
    with writing(WebhookUnknown) as tx:
        return delivery_log.give_up(tx, row.id, "no worker took it in time")
