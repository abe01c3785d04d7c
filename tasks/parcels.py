"""One request of the sender: made of claimed deliveries, signed, sent, and judged by its answer."""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import structlog

from models.db import made_at
from models.events import Ending
from models.failpoints import failpoint
from models.owed import is_test
from models.sealing import NoSecretKey, Seal
from models.sending import Delivery, Ended, Try
from stoker.settings import Settings
from tasks import backoff, egress, payloads, signature, tracing

log = structlog.get_logger(__name__)

SLACK = 15.0
"""Seconds that a claim outlives the time limit of its request: for whatever the database takes before and after."""
_MOST_STORED = 1024
_GONE = 410


@dataclass(frozen=True, slots=True)
class Parcel:
    """Deliveries that are ours from `at` (monotonic seconds) on; one without an ending has lost its job."""

    deliveries: tuple[Delivery, ...]
    endings: Mapping[str, Ending]
    at: float

    @property
    def first(self) -> Delivery:
        """Return the delivery that stands for all."""
        return self.deliveries[0]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the try of a parcel ended, when the next is due (seconds, None: never), and the metric's label.

    `tells`: whether it says something of the receiver, and not only of us.
    """

    deliveries: tuple[Delivery, ...]
    tried: Try
    retry_in: float | None
    label: str
    tells: bool = True

    def ended(self) -> Sequence[Ended]:
        """Return what is stored."""
        return [Ended(delivery, self.tried, self.retry_in) for delivery in self.deliveries]


class Post:
    """Sends parcels, any number at once."""

    def __init__(self, settings: Settings, seal: Seal, way: egress.Egress) -> None:
        """Take what signs, what opens secrets, and the way out."""
        self._settings = settings
        self._seal = seal
        self._way = way

    async def send(self, parcel: Parcel) -> list[Outcome]:
        """Make one try; return how it ended, nothing when it may not be made any more."""
        if time.monotonic() - parcel.at > SLACK:
            # This process was frozen: the claim may run out while we send, and another would send at the same time.
            return []
        told = tuple(one for one in parcel.deliveries if one.job_id in parcel.endings)
        lost = tuple(one for one in parcel.deliveries if one.job_id not in parcel.endings)
        outcomes = [_unsent(lost, "the job is no longer stored")] if lost else []
        if told:
            outcomes.append(await self._try(told, parcel.endings))
        return outcomes

    async def _try(self, told: tuple[Delivery, ...], endings: Mapping[str, Ending]) -> Outcome:
        first = told[0]
        why = first.dead or _given_up(first, len(self._settings.webhook_delays))
        if why is not None:
            return _unsent(told, why)
        try:
            secret = " ".join(map(self._seal.open, first.secrets)) or self._settings.webhook_secret
        except NoSecretKey as error:
            log.error("a webhook's secret cannot be opened", delivery=first.id, error=str(error))  # noqa: TRY400  # said
            return self.failed(told, _untried(f"the signing secret cannot be opened: {error}"), tells=False)
        if not secret:
            # Not the end of it: whoever runs the service can still set one.
            return self.failed(told, _untried("there is no STOKER_WEBHOOK_SECRET to sign with"), tells=False)
        if not signature.usable(secret):
            return _unsent(told, "the signing secret is not valid: whsec_ and the base64 of 24 to 64 bytes")
        # A group's jobs have a trace each, and a request can continue but one.
        trace = None if first.group_id else endings[first.job_id].trace
        with tracing.delivering(trace, first) as span:
            outcome = await self._post(told, endings, secret, span.header)
            span.tried(outcome.tried)
        return outcome

    async def _post(
        self, told: tuple[Delivery, ...], endings: Mapping[str, Ending], secret: str, more: Mapping[str, str]
    ) -> Outcome:
        started, first = time.perf_counter(), told[0]
        try:
            events = [payloads.one(delivery, endings[delivery.job_id]) for delivery in told]
            together = first.group_id is not None
            body = payloads.many(first.webhook_id, made_at(first.webhook_id), events) if together else events[0]
            headers = {**signature.sign(secret, first.webhook_id, int(time.time()), body), **more}
            answer = await self._way.post(first.url, headers, body, self._settings.webhook_timeout)
            failpoint("webhook.sent")
        except (egress.Refused, egress.Unreachable) as error:
            tried = Try(ok=False, status=None, latency=time.perf_counter() - started, error=str(error))
            if isinstance(error, egress.Refused):
                return Outcome(told, tried, None, "refused")
            return self.failed(told, tried)
        return self._judge(told, answer, time.perf_counter() - started)

    def _judge(self, told: tuple[Delivery, ...], answer: egress.Answer, latency: float) -> Outcome:
        ok = 200 <= answer.status < 300  # noqa: PLR2004  # what HTTP calls success
        why = None if ok else f"the receiver answered {answer.status}"
        if 300 <= answer.status < 400:  # noqa: PLR2004  # what HTTP calls redirection
            why = f"{why}: redirects are not followed"
        # A database takes no NUL, and a cut may have split a character.
        text = answer.body[:_MOST_STORED].decode("utf-8", "replace").replace("\0", "\ufffd")
        tried = Try(ok=ok, status=answer.status, latency=latency, error=why, answer=text)
        if ok:
            return Outcome(told, tried, None, "delivered")
        if answer.status == _GONE:
            return Outcome(told, tried, None, "gone")
        return self.failed(told, tried, backoff.retry_after(answer.retry_after, time.time()))

    def failed(
        self, told: tuple[Delivery, ...], tried: Try, asked: float | None = None, *, tells: bool = True
    ) -> Outcome:
        """Return that a try failed: the next one follows the schedule; a test that somebody waits for has none."""
        first, delays = told[0], self._settings.webhook_delays
        retry_in = backoff.webhook_delay(delays, first.count, random.random(), asked)  # noqa: S311  # no secret
        if is_test(first.job_id):
            retry_in = None
        log.info("delivery failed", delivery=first.webhook_id, attempt=first.count, status=tried.status)
        return Outcome(told, tried, retry_in, "failed" if retry_in is None else "retry", tells)


def _untried(why: str) -> Try:
    return Try(ok=False, status=None, latency=0.0, error=why)


def _unsent(told: tuple[Delivery, ...], why: str) -> Outcome:
    return Outcome(told, _untried(why), None, "failed", tells=False)


def _given_up(delivery: Delivery, tries: int) -> str | None:
    if delivery.count > 2 * tries:
        return f"given up: {delivery.count} tries, most of which ended without a record"
    return None
