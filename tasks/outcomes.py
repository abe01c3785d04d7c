"""From a job to what an engine is asked, and from its outcome to what is stored: pure but for the jitter."""

from __future__ import annotations

import random

from models import calls
from models.batches import ClaimedJob
from models.ends import Settled
from models.results import NewResult
from stoker.settings import Settings
from tasks.backoff import delay
from tasks.engines.base import Completion, Deferred, Outcome, Rejection, Request
from tasks.engines.refusals import TIMED_OUT
from tasks.flights import Flight
from tasks.tokens import Tokens

_LATE = 10.0
"""Seconds after a job's expiry at which its engine gives it up."""


def requests(flight: Flight, settings: Settings, tokens: Tokens) -> list[Request]:
    """Return what the engine is asked for each job of a batch; streams are opened for those that want them."""
    return [_request(job, flight, settings, tokens) for job in flight.batch.jobs]


def _request(job: ClaimedJob, flight: Flight, settings: Settings, tokens: Tokens) -> Request:
    timeout = _expiry(job) if _expires(job, settings) else settings.request_timeout
    emit = None
    if calls.is_streamed(job.body):
        flight.streams[job.id] = stream = tokens.open(job.id, job.attempts, flight.holds)
        emit = stream.emit
    return Request(job.id, job.endpoint, job.body, flight.batch.lane, timeout, flight.batch.model, emit, job.trace)


def _expiry(job: ClaimedJob) -> float:
    # The sweeper ends a job that expires in the engine; only where it cannot, the engine's own limit comes to it.
    return (job.left or 0.0) + _LATE


def _expires(job: ClaimedJob, settings: Settings) -> bool:
    """Tell whether it is the job's expiry that limits its time in the engine."""
    return job.left is not None and _expiry(job) < settings.request_timeout


def is_final(outcome: Outcome) -> bool:
    """Tell whether an outcome ends its job."""
    return not isinstance(outcome, Deferred)


def settled(outcome: Outcome, job: ClaimedJob, settings: Settings) -> Settled:
    """Return a job's next state and result."""
    if isinstance(outcome, Completion):
        usage = outcome.usage
        result = NewResult(
            outcome.status,
            outcome.body,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            cached_tokens=usage.cached_tokens,
            reasoning_tokens=usage.reasoning_tokens,
        )
        return Settled(outcome.id, "succeeded", result)
    if isinstance(outcome, Rejection):
        if outcome.code == TIMED_OUT and _expires(job, settings):
            return Settled(outcome.id, "expired")
        failed = NewResult(outcome.status, outcome.body or None, outcome.code, outcome.message)
        return Settled(outcome.id, "failed", failed)
    return _put_off(outcome, job.deferrals, settings)


def _put_off(outcome: Deferred, deferrals: int, settings: Settings) -> Settled:
    if deferrals + 1 >= settings.max_deferrals:
        message = f"Put off {settings.max_deferrals} times, last because: {outcome.reason}"
        return Settled(outcome.id, "failed", NewResult(503, code="upstream_unavailable", message=message))
    backoff = delay(deferrals + 1, jitter=random.random(), base=1.0, most=300.0)  # noqa: S311  # not a secret
    return Settled(outcome.id, "delayed", run_in=max(backoff, outcome.retry_after or 0.0))
