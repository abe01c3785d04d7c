"""A sample event for a webhook endpoint: written as any other, sent by a worker, and waited for."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from models import deliveries, delivery_log
from models.db import AnyRow, new_id
from models.deliveries import NewDelivery
from models.errors import DatabaseUnavailable
from models.owed import TEST
from webapi.context import here, writing
from webapi.errors import Problem, WebhookUnknown
from webapi.openai import openai_problem

AT_ONCE = 8
"""Tests that a web process waits for: each keeps a thread."""
OF_AN_OWNER = 2
"""Of those: whose receivers hang is not to keep the others from testing theirs."""
SLACK = 5.0
"""Seconds beyond the time of one try, for a worker to come to it."""
FIRST_PAUSE, LONGEST_PAUSE = 0.02, 0.25
FINAL = {"X-Should-Retry": "false"}

_lock = threading.Lock()
_tests: Counter[str] = Counter()
"""By owner; an owner without a test is not in it."""


def send(endpoint: AnyRow, event: str) -> int:
    """Send a sample event to an endpoint, and return the receiver's status.

    Raises Problem 502 without an answer, and 503 where so many are waited for already.
    """
    with _place(endpoint.owner):
        row = _ended(_written(endpoint, event), here().settings.webhook_timeout + SLACK)
    if row is None:
        raise _failed("No worker has sent it in time; it is not sent any more.")
    if row.state not in delivery_log.ENDED:
        raise _failed("The receiver has not answered in time.")
    if row.status is None:
        raise _failed(f"The receiver did not answer: {row.error or 'no reason is known'}.")
    return int(row.status)


@contextmanager
def _place(owner: str) -> Iterator[None]:
    with _lock:
        if _tests[owner] >= OF_AN_OWNER:
            raise _too_many(f"{OF_AN_OWNER} tests of your webhook endpoints")
        if _tests.total() >= AT_ONCE:
            raise _too_many(f"{AT_ONCE} tests of webhook endpoints")
        _tests[owner] += 1
    try:
        yield
    finally:
        with _lock:
            _tests[owner] -= 1
            if not _tests[owner]:
                del _tests[owner]


def _too_many(tests: str) -> Problem:
    detail = f"This process waits for {tests} already; try again soon."
    return Problem(503, "too_many_tests", detail, headers={"Retry-After": "2"})


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
