"""Webhooks: send the deliveries that are due, and record how each try ended.

At most `AT_ONCE` at once, each with its own time limit; as one ends another is claimed, so a receiver that hangs costs
its own place and nobody else's. A crash at any line leaves claims that run out: those deliveries are sent again, with
the same id and the same bytes.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
import structlog
from celery import signals
from prometheus_client import Counter

from models import deliveries, events
from models.db import Database
from models.deliveries import Delivery, Try
from models.errors import DatabaseUnavailable
from models.events import Ending
from models.failpoints import failpoint
from stoker.settings import Settings
from tasks import backoff, egress, signature, tracing
from tasks.app import app, context

log = structlog.get_logger(__name__)

sent = Counter("stoker_deliveries_total", "Tries of webhook deliveries, by how they ended.", ["outcome"])

_SLACK = 15.0
"""Seconds that a claim outlives the time limit of its request: for whatever the database takes before and after."""
_LOOK_AGAIN = 1.0
"""Seconds after which a sender whose requests all hang looks whether more is due."""
_MOST_STORED = 1024
_GONE = 410

_stopping = threading.Event()


@app.task(name="tasks.webhook.deliver")
def deliver() -> None:
    """Send the deliveries that are due, until none is."""
    here = context()
    deliver_due(here.database, here.settings)


@signals.worker_shutting_down.connect
def stop(**_: object) -> None:
    """Let every sender of this process finish what is on its way, and claim no more: it shuts down."""
    _stopping.set()


def deliver_due(
    database: Database,
    settings: Settings,
    *,
    look: egress.Lookup = egress.lookup,
    stopping: threading.Event = _stopping,
) -> int:
    """Send the deliveries that are due, until none is; return the number of tries made. Any number may run at once.

    `look` resolves names. Raises DatabaseUnavailable when the database stays away; claims then run out by themselves.
    """
    return asyncio.run(_Sender(database, settings, stopping).run(look))


@dataclass(frozen=True, slots=True)
class _Claim:
    """A delivery that is ours from `at` (monotonic seconds) on; without an ending its job is gone."""

    delivery: Delivery
    ending: Ending | None
    at: float


@dataclass(frozen=True, slots=True)
class _Ended:
    """How a try ended: what is stored, when the next is due (seconds, None: never), the metric's label."""

    delivery: Delivery
    tried: Try
    retry_in: float | None
    outcome: str


def payload(delivery: Delivery, ending: Ending) -> bytes:
    """Return the body of an event: made only of what never changes, so that each try sends the same bytes."""
    moment = datetime.fromtimestamp(delivery.created_at, UTC).isoformat(timespec="milliseconds")
    error = {"code": ending.code, "message": ending.message} if ending.code or ending.message else None
    event: dict[str, Any] = {
        "type": delivery.event,
        "id": delivery.id,
        "object": "event",
        "created_at": int(delivery.created_at),
        "timestamp": moment.replace("+00:00", "Z"),
        "data": {
            "id": ending.job_id,
            "state": ending.state,
            "model": ending.model,
            "metadata": ending.metadata,
            "error": error,
        },
    }
    if ending.counts is not None:
        event["data"] |= {"counts": ending.counts}
    text = json.dumps(event, separators=(",", ":"))
    if delivery.include_result:
        # The answer is JSON already. Reading and writing 5 MB again would cost time, and change numbers and escapes.
        text = f'{text[:-2]},"result":{ending.answer or "null"}}}}}'
    return text.encode()


class _Sender:
    """One run: keeps up to `AT_ONCE` tries on their way until nothing is due."""

    def __init__(self, database: Database, settings: Settings, stopping: threading.Event) -> None:
        self._database = database
        self._settings = settings
        self._stopping = stopping
        self._on_way: dict[asyncio.Task[_Ended | None], Delivery] = {}
        self._fault: BaseException | None = None

    async def run(self, look: egress.Lookup) -> int:
        """Send until nothing is due; return the number of tries."""
        tries = 0
        ended: list[_Ended] = []
        async with egress.opened(self._settings.webhook_networks, look) as way:
            while True:
                room = 0 if self._stopping.is_set() else egress.AT_ONCE - len(self._on_way)
                for claim in await asyncio.to_thread(self._turn, ended, room):
                    self._on_way[asyncio.create_task(self._send(way, claim))] = claim.delivery
                    tries += 1
                if not self._on_way:
                    break
                done, _ = await asyncio.wait(self._on_way, timeout=_LOOK_AGAIN, return_when=asyncio.FIRST_COMPLETED)
                ended = [one for task in done if (one := self._collect(task)) is not None]
        if self._fault is not None:
            raise self._fault
        return tries

    def _turn(self, ended: Sequence[_Ended], room: int) -> list[_Claim]:
        """Record what ended and claim as much as there is room for, in one commit; again while the database is away."""
        gives_up = time.monotonic() + _SLACK
        for attempt in itertools.count(1):
            try:
                return self._record_and_claim(ended, room)
            except DatabaseUnavailable:
                if time.monotonic() > gives_up:
                    raise
            time.sleep(backoff.delay(attempt, jitter=random.random(), base=0.1, most=2.0))  # noqa: S311  # no secret
        raise AssertionError  # the loop returns or raises

    def _record_and_claim(self, ended: Sequence[_Ended], room: int) -> list[_Claim]:
        if not ended and not (room and self._any_due()):
            return []
        claimed_at = time.monotonic()
        lost, claimed = self._database.retrying(lambda tx: self._commit(tx, ended, room))
        for one in ended:
            sent.labels("lost" if one.delivery.id in lost else one.outcome).inc()
        if not claimed:
            return []
        failpoint("webhook.claimed")
        with self._database.reading() as tx:
            ends = events.endings(tx, claimed, traced=tracing.wanted())
        return [_Claim(delivery, ends.get(delivery.job_id), claimed_at) for delivery in claimed]

    def _any_due(self) -> bool:
        with self._database.reading() as tx:
            return deliveries.any_due(tx)

    def _commit(self, tx: sa.Connection, ended: Sequence[_Ended], room: int) -> tuple[set[str], Sequence[Delivery]]:
        lost = {
            one.delivery.id
            # In the order of their ids, as everybody locks rows.
            for one in sorted(ended, key=lambda one: one.delivery.id)
            if not deliveries.record(tx, one.delivery, one.tried, one.retry_in)
        }
        hold = self._settings.webhook_timeout + _SLACK
        return lost, deliveries.claim(tx, room, hold) if room else []

    async def _send(self, way: egress.Egress, claim: _Claim) -> _Ended | None:
        if time.monotonic() - claim.at > _SLACK:
            # This process was frozen: the claim may run out while we send, and another would send at the same time.
            return None
        secret = claim.delivery.secret or self._settings.webhook_secret
        if not secret:
            # Not the end of it: whoever runs the service can still set one.
            unsigned = Try(ok=False, status=None, latency=0.0, error="there is no STOKER_WEBHOOK_SECRET to sign with")
            return self._failed(claim.delivery, unsigned)
        why = _unsendable(claim, secret, len(self._settings.webhook_delays))
        if why is not None or claim.ending is None:
            return _Ended(claim.delivery, Try(ok=False, status=None, latency=0.0, error=why), None, "failed")
        with tracing.delivering(claim.ending.trace, claim.delivery) as span:
            ended = await self._post(way, claim.delivery, claim.ending, secret, span.header)
            span.tried(ended.tried)
        return ended

    async def _post(
        self, way: egress.Egress, delivery: Delivery, ending: Ending, secret: str, more: Mapping[str, str]
    ) -> _Ended:
        started = time.perf_counter()
        try:
            body = payload(delivery, ending)
            headers = {**signature.sign(secret, delivery.id, int(time.time()), body), **more}
            answer = await way.post(delivery.url, headers, body, self._settings.webhook_timeout)
            failpoint("webhook.sent")
        except (egress.Refused, egress.Unreachable) as error:
            tried = Try(ok=False, status=None, latency=time.perf_counter() - started, error=str(error))
            if isinstance(error, egress.Refused):
                return _Ended(delivery, tried, None, "refused")
            return self._failed(delivery, tried)
        return self._judge(delivery, answer, time.perf_counter() - started)

    def _judge(self, delivery: Delivery, answer: egress.Answer, latency: float) -> _Ended:
        ok = 200 <= answer.status < 300  # noqa: PLR2004  # what HTTP calls success
        why = None if ok else f"the receiver answered {answer.status}"
        if 300 <= answer.status < 400:  # noqa: PLR2004  # what HTTP calls redirection
            why = f"{why}: redirects are not followed"
        # A database takes no NUL, and a cut may have split a character.
        text = answer.body[:_MOST_STORED].decode("utf-8", "replace").replace("\0", "\ufffd")
        tried = Try(ok=ok, status=answer.status, latency=latency, error=why, answer=text)
        if ok:
            return _Ended(delivery, tried, None, "delivered")
        if answer.status == _GONE:
            return _Ended(delivery, tried, None, "gone")
        return self._failed(delivery, tried, backoff.retry_after(answer.retry_after, time.time()))

    def _failed(self, delivery: Delivery, tried: Try, asked: float | None = None) -> _Ended:
        delays = self._settings.webhook_delays
        retry_in = backoff.webhook_delay(delays, delivery.attempt, random.random(), asked)  # noqa: S311  # no secret
        log.info("delivery failed", delivery=delivery.id, attempt=delivery.attempt, status=tried.status)
        return _Ended(delivery, tried, retry_in, "failed" if retry_in is None else "retry")

    def _collect(self, task: asyncio.Task[_Ended | None]) -> _Ended | None:
        delivery = self._on_way.pop(task)
        error = task.exception()
        if error is None:
            return task.result()
        # Our own fault. It is recorded as a failed try, so that the others go on and this one does not come back at
        # once, again and again; `run` raises it in the end.
        self._fault = error
        log.error("delivery hit a fault", delivery=delivery.id, error=type(error).__name__)
        tried = Try(ok=False, status=None, latency=0.0, error=f"internal error: {type(error).__name__}")
        return self._failed(delivery, tried)


def _unsendable(claim: _Claim, secret: str, tries: int) -> str | None:
    if claim.ending is None:
        return "the job is no longer stored"
    if not signature.usable(secret):
        return "the signing secret is not valid: whsec_ and the base64 of 24 to 64 bytes"
    if claim.delivery.attempt > 2 * tries:
        return f"given up: {claim.delivery.attempt} tries, most of which ended without a record"
    return None
