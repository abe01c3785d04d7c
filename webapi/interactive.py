"""A request whose client waits for the answer: a job in the realtime lane, and the connection held until it ends.

What can still be a status is one: until the first token (or the end) comes nothing is sent. From then on an error is
the stream's last event. A client that hangs up takes its job with it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
import sqlalchemy as sa
import structlog
from flask import Response

from models import ends, views
from models.calls import RESPONSES
from models.errors import AlreadyFinished, DatabaseUnavailable, NotFound
from models.jobs import NewJob
from models.states import JOB
from webapi import answers, sse, whole_streams
from webapi.context import Context
from webapi.errors import Problem
from webapi.following import Follower, Lost, Restart, Step, Token
from webapi.keyed import KEYLESS, Once
from webapi.waiters import Waiter

log = structlog.get_logger("stoker.web")

TICK = 5.0  # seconds between looks at the clock; whatever else matters wakes who waits
LATE = 3.0
"""Seconds that the last tokens of a job may come after its end."""
MOST_RETRY_AFTER = 10.0


@dataclass(frozen=True, slots=True)
class Wish:
    """What a client asked for: the job, and the form of the answer."""

    job: NewJob
    streamed: bool = False
    with_usage: bool = False
    once: Once = KEYLESS


class Interactive:
    """One such request, from its job on."""

    def __init__(  # a request has so many parts
        self, context: Context, owner: str, wish: Wish, job_id: str, waiter: Waiter, after: int | None = None
    ) -> None:
        """Begin; of a response only the events behind the `sequence_number` `after` are streamed."""
        self._context = context
        self._owner = owner
        self._wish = wish
        self._job_id = job_id
        self._waiter = waiter
        self._follower = Follower(context.waiters, context.recorded, waiter, job_id)
        self._until = time.monotonic() + context.settings.wait_for + context.settings.request_timeout
        self._after = after
        self._sequence = -1
        self._incomplete = False
        self._beaten = time.monotonic()
        self._leave = False
        """Whether the job is to go on, or has ended, when the client is let go."""

    def first(self, *, give_up: bool = True) -> list[Step] | sa.Row[Any]:
        """Wait for the first tokens, or for the end of the job. Raises Problem when neither can be waited for.

        With `give_up` a job that no engine begins within `wait_for` is withdrawn.
        """
        patience = time.monotonic() + self._context.settings.wait_for if give_up else math.inf
        while True:
            steps = self._follower.take()
            if (row := self._ended()) is not None:
                # What can still be a status is one.
                return (self._first_tokens(steps) or self._rest() or row) if self._may_stream(row) else row
            if steps := self._first_tokens(steps):
                return steps
            self._check()
            if time.monotonic() > patience:
                patience = self._give_up_unless_started()
            self._waiter.wait(min(TICK, patience - time.monotonic()))

    def _may_stream(self, row: sa.Row[Any]) -> bool:
        return self._wish.streamed and not self._incomplete and row.state == "succeeded"

    def _rest(self) -> list[Step]:
        return self._first_tokens(self._follower.take(look=True))

    def _first_tokens(self, steps: list[Step]) -> list[Step]:
        """Return the first tokens, without what matters to nobody who has got nothing yet.

        When the very first ones are lost, the answer comes whole in the end.
        """
        restarts = [at for at, step in enumerate(steps) if isinstance(step, Restart)]
        if restarts:
            # Whoever comes back has heard one attempt or another; the rest of this one may not fit.
            steps, self._incomplete = steps[restarts[-1] + 1 :], self._after is not None
        self._incomplete = self._incomplete or any(isinstance(step, Lost) for step in steps)
        return [] if self._incomplete else steps

    def whole(self, row: sa.Row[Any]) -> Response:
        """Return the answer, or the error, of a job that has ended."""
        headers = {"X_Stoker_Job": self._job_id}
        if row.body is not None and row.state in {"succeeded", "failed"}:
            body = row.body
            if self._wish.job.endpoint == RESPONSES and row.state == "succeeded":
                body = whole_streams.written({**whole_streams.read(body), "id": self._job_id.replace("job_", "resp_")})
            return answers.respond(body, row.status or 200, **headers)
        problem = answers.failure(row)
        problem.headers.update({"X-Stoker-Job": self._job_id})
        raise problem

    def events(self, first: list[Step] | sa.Row[Any]) -> Iterator[bytes]:
        """Yield the stream; it ends with `[DONE]` after the result is stored, or with an error."""
        try:
            yield from self._tokens(first)
            yield from self._last()
        except Problem as problem:
            yield self._error(problem)

    def _tokens(self, first: list[Step] | sa.Row[Any]) -> Iterator[bytes]:
        steps = self._as_steps(first) if isinstance(first, sa.Row) else first
        while True:
            for step in steps:
                if not isinstance(step, Token):
                    raise self._broken(step)
                if data := self._write(step.event):
                    self._beaten = time.monotonic()
                    yield data
            if self._follower.whole or isinstance(first, sa.Row):
                return
            steps = self._follower.take() or self._wait()
            yield from self._beat()

    def _beat(self) -> Iterator[bytes]:
        """Say that the stream lives on, if it has said nothing for a while."""
        if time.monotonic() - self._beaten > sse.KEEP_ALIVE_EVERY:
            self._beaten = time.monotonic()
            yield sse.KEEP_ALIVE

    def _wait(self) -> list[Step]:
        """Wait for more. Raises Problem when there is none."""
        if (lost := self._follower.deaf()) is not None:
            raise self._broken(lost)
        row = self._ended()
        if row is None:
            self._check()
            self._waiter.wait(TICK)
            return self._follower.take()
        until = time.monotonic() + LATE
        while not (steps := self._follower.take(look=True)) and not self._follower.whole:
            if row.state != "succeeded":
                raise answers.failure(row)
            if time.monotonic() > until:
                raise self._broken(Lost("the last tokens were lost on their way"))
            self._waiter.wait(0.2)
        return steps

    def _last(self) -> Iterator[bytes]:
        """Wait until what was streamed is stored; a worker whose lease is lost may have streamed in vain."""
        while (row := self._ended()) is None:
            if steps := self._follower.take():
                raise self._broken(steps[0])
            self._check()
            self._waiter.wait(TICK)
            yield from self._beat()
        if row.state != "succeeded":
            raise answers.failure(row)
        if self._wish.job.endpoint != RESPONSES:
            yield sse.event("[DONE]")

    def _ended(self) -> sa.Row[Any] | None:
        """Return the job if it has ended."""
        if not self._waiter.may_have_ended:
            return None
        self._waiter.may_have_ended = False
        try:
            with self._context.waiters.turn(), self._context.reserve.reading() as tx:
                row = views.get(tx, self._owner, self._job_id)
        except DatabaseUnavailable as error:
            # The engine works on meanwhile: it is looked again.
            log.warning("cannot look at a job that is waited for", reason=str(error))
            self._waiter.may_have_ended = True
            return None
        if row.state not in JOB.final:
            return None
        self._leave = self._waiter.may_have_ended = True
        return row

    def _check(self) -> None:
        """Raise Problem when there is nobody to wait for, or nothing more to wait for."""
        if self._waiter.gone:
            raise Problem(499, "client_closed_request", "The client has gone.")
        if self._context.waiters.stopping:
            raise Problem(503, "stopping", "This server is stopping; try again.", headers={"Retry-After": "1"})
        if time.monotonic() > self._until:
            raise Problem(504, "timeout", "The answer did not come in time.")

    def _give_up_unless_started(self) -> float:
        """Withdraw a job that no engine has begun, and raise Problem; otherwise return when to ask again."""
        try:
            with self._context.waiters.turn(), self._context.reserve.transaction() as tx:
                withdrawn = ends.withdraw(tx, self._job_id)
                if withdrawn:
                    self._wish.once.release(tx, self._owner, self._job_id)
        except DatabaseUnavailable as error:
            log.warning("cannot give up a job that is waited for", reason=str(error))
            return time.monotonic() + TICK
        if not withdrawn:
            return math.inf
        self._leave = True
        seconds = self._context.settings.wait_for
        after = str(math.ceil(min(seconds, MOST_RETRY_AFTER)))
        detail = f"No engine had room for this request within {seconds:g} s (STOKER_WAIT_FOR); try again later."
        raise Problem(503, "engines_busy", detail, headers={"Retry-After": after})

    def _as_steps(self, row: sa.Row[Any]) -> list[Step]:
        endpoint, usage = self._wish.job.endpoint, self._wish.with_usage
        made = whole_streams.events(endpoint, row.body, with_usage=usage, number=self._next())
        position = self._follower.position
        return [Token(position, event) for event in made]

    def _write(self, event: str) -> bytes:
        if self._wish.job.endpoint != RESPONSES:
            return sse.event(event)
        try:
            said = whole_streams.read(event)
        except ValueError:
            return sse.event(event)  # the client may make of it what it can
        number = said.get("sequence_number")
        self._sequence = number if isinstance(number, int) else self._sequence + 1
        if self._after is not None and self._sequence <= self._after:
            return b""
        if isinstance(said.get("response"), dict):
            # Known by the job's id, whatever its engine calls it.
            said["response"]["id"] = self._job_id.replace("job_", "resp_")
            event = whole_streams.written(said)
        return sse.event(event, kind=str(said.get("type", "")))

    def _next(self) -> int:
        return max(self._sequence, -1 if self._after is None else self._after) + 1

    def _broken(self, step: Step) -> Problem:
        """Return the error with which a stream ends that has lost its thread."""
        if not isinstance(step, Lost):
            return Problem(502, "stream_interrupted", "The engine failed in the middle of the answer.")
        self._leave = True  # only the tokens are lost
        why = f"{step.why[:1].upper()}{step.why[1:]}; the result will be at /v1/jobs/{self._job_id}."
        return Problem(502, "stream_interrupted", why)

    def _error(self, problem: Problem) -> bytes:
        if self._wish.job.endpoint == RESPONSES:
            error = {"type": "error", "code": problem.code, "message": problem.detail, "param": None}
            numbered = {**error, "sequence_number": self._next()}
            return sse.event(msgspec.json.encode(numbered).decode(), kind="error")
        error = {"message": problem.detail, "type": "server_error", "param": None, "code": problem.code}
        return sse.event(msgspec.json.encode({"error": error}).decode())

    def abandon(self) -> None:
        """Cancel the job of a client that has gone before it ended."""
        if self._leave:
            return
        try:
            # In turn: when a proxy dies, all its clients go at once.
            with self._context.waiters.turn(), self._context.reserve.transaction() as tx:
                ends.cancel(tx, self._owner, self._job_id)
                self._wish.once.release(tx, self._owner, self._job_id)
        except (AlreadyFinished, NotFound):
            return
        except DatabaseUnavailable as error:
            log.warning("the job of a client that has gone runs on", reason=str(error))
            return
        self._context.pager.stopped(self._job_id)
