"""What a client does, step by step, without doing any of it: which request comes next, and when.

Each procedure is a generator that yields a `Call` (it is sent back the answer, or the error that came instead) or a
`Pause`. Client and AsyncClient perform the steps, each in its way; what is decided is written here, once.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import httpx

from stoker.api_errors import StokerAPIError, refusal, unreachable
from stoker.resources import Batch, Bulk, Job
from stoker.transfers import Download, Upload

T = TypeVar("T")
B = TypeVar("B", Bulk, Batch)

TRIES = 5
PATIENCE = 60.0
"""Seconds that a wait goes on while the service is away."""
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 8.0
LONGEST_RETRY_AFTER = 60.0
LONGEST_WAIT = 30.0
EARLY_PAUSE = 0.2
SLOWEST_LOOK = 2.0


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """A request, and what its answer is read as."""

    method: str
    path: str
    read: Callable[[httpx.Response], T]
    options: Mapping[str, Any] = field(default_factory=dict)
    repeatable: bool = False
    upload: Upload | None = None
    download: Download | None = None


@dataclass(frozen=True, slots=True)
class Pause:
    """Nothing, for so many seconds; `why` is what went wrong, where a request is to be sent again after it."""

    seconds: float
    why: StokerAPIError | None = None


def rest(pause: Pause) -> None:
    """Let a pause pass."""
    time.sleep(pause.seconds)


@dataclass(frozen=True, slots=True)
class Lost:
    """What came instead of an answer."""

    base_url: object
    error: Exception


Outcome = httpx.Response | Lost | None
Steps = Generator[Call[Any] | Pause, Outcome, T]


def answered(call: Call[T], tries: int = TRIES) -> Steps[T]:
    """Send a request, again where that is safe and may help; return what its answer says."""
    for tried in range(tries):
        outcome = yield call
        if isinstance(outcome, httpx.Response) and outcome.is_success:
            return _read(call, outcome)
        error = _error(outcome)
        pause = _pause(error, tried)
        if tried + 1 == tries or not error.temporary or not _is_safe(call, outcome) or pause > LONGEST_RETRY_AFTER:
            raise error
        yield Pause(pause, error)
    raise AssertionError  # the last try returns or raises


def patiently(call: Call[T], patience: float) -> Steps[T]:
    """Do the same, and go on for as long as `patience` seconds while the service is away."""
    until = time.monotonic() + patience
    while True:
        try:
            return (yield from answered(call))
        except StokerAPIError as error:
            if not error.temporary or time.monotonic() >= until:
                raise
            why = error
        yield Pause(_jittered(SLOWEST_LOOK), why)


def wait_job(look: Callable[[float], Call[Job]], job_id: str, timeout: float) -> Steps[Job]:
    """Hold on to a job until it has ended; `look` is the request that the service holds for so many seconds."""
    until = time.monotonic() + timeout
    while True:
        asked = time.monotonic()
        seconds = round(min(LONGEST_WAIT, max(0.0, until - asked)), 3)
        job = yield from patiently(look(seconds), min(PATIENCE, until - asked))
        if job.ended:
            return job
        if time.monotonic() >= until:
            raise TimeoutError(f"job {job_id} is still {job.state} after {timeout:g} s")
        if time.monotonic() - asked < seconds:
            yield Pause(EARLY_PAUSE)  # the service is stopping and holds nobody; another one may follow


def wait_ended(
    call: Call[B], timeout: float | None, told: Callable[[B], object] | None, patience: float = PATIENCE
) -> Steps[B]:
    """Look at a bulk or batch until it has ended, ever more slowly; `told` hears of each look."""
    began = time.monotonic()
    while True:
        found = yield from patiently(call, patience)
        if told:
            told(found)
        if found.ended:
            return found
        waited = time.monotonic() - began
        if timeout is not None and waited >= timeout:
            raise TimeoutError(f"{found.id} has not ended after {timeout:g} s")
        left = SLOWEST_LOOK if timeout is None else timeout - waited
        yield Pause(max(0.0, min(left, SLOWEST_LOOK, EARLY_PAUSE + waited / 4)))


def pause_before(outcome: Outcome, tried: int) -> Pause:
    """Return the pause before a stream is asked for again; `tried` is how often it was in a row.

    An answer that is none of refusal ended too soon. Raises StokerAPIError where asking again does not help.
    """
    if isinstance(outcome, httpx.Response) and outcome.is_success:
        cut = StokerAPIError(f"{outcome.url.host} ended the stream too soon", temporary=True)
        return Pause(_jittered(min(LONGEST_PAUSE, FIRST_PAUSE * 2**tried)), cut)
    error = _error(outcome)
    pause = _pause(error, tried)
    if not error.temporary or pause > LONGEST_RETRY_AFTER:
        raise error
    return Pause(pause, error)


def _read(call: Call[T], answer: httpx.Response) -> T:
    try:
        return call.read(answer)
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        # Some other server, or a page of a proxy's.
        raise StokerAPIError(f"{answer.url.host} does not answer as stoker does", status=answer.status_code) from error


def _error(outcome: Outcome) -> StokerAPIError:
    if isinstance(outcome, Lost):
        error = unreachable(outcome.base_url, outcome.error)
        error.__cause__ = outcome.error
        return error
    if outcome is None:
        raise TypeError("the call was not performed")
    return refusal(outcome)


def _is_safe(call: Call[Any], outcome: Outcome) -> bool:
    """Tell whether a request may be sent again: it does no harm twice, or never went out."""
    never_sent = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
    if isinstance(outcome, Lost) and isinstance(outcome.error, never_sent):
        return True
    return call.repeatable and (call.upload is None or call.upload.repeatable)


def _pause(error: StokerAPIError, tried: int) -> float:
    if error.retry_after is not None:
        # Not a moment sooner than asked, and not all at the same one.
        return error.retry_after * random.uniform(1.0, 1.1)  # noqa: S311  # no secret
    return _jittered(min(LONGEST_PAUSE, FIRST_PAUSE * 2**tried))


def _jittered(seconds: float) -> float:
    return seconds * random.uniform(0.5, 1.0)  # noqa: S311  # no secret
