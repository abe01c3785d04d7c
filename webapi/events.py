"""`/v1/jobs/{id}/events`: what happens to a job, as it happens: states, tokens of a streamed one, and its end.

Any number of clients may follow a job, and come back with `Last-Event-ID`: the tokens are kept for a while. Leaving
does nothing to the job.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import msgspec
import sqlalchemy as sa
import structlog
from flask import Response, g, request
from flask_openapi.blueprint import APIBlueprint
from flask_openapi.models.tag import Tag

from models import calls, views
from models.db import is_id
from models.errors import DatabaseUnavailable, NotFound
from models.states import JOB
from models.streams import EventId, event_id
from webapi import access, answers, interactive, sse
from webapi.context import Context, here
from webapi.errors import invalid
from webapi.following import Follower, Lost, Restart, Step, Token
from webapi.hangups import CONNECTION
from webapi.openapi import problems
from webapi.schemas import JobPath
from webapi.waiters import Waiter

log = structlog.get_logger("stoker.web")

api = APIBlueprint(
    "events",
    __name__,
    abp_tags=[Tag(name="jobs")],
    abp_security=[{"key": []}],
    abp_responses=problems(401, 403, 422, 500, 503),
)


api.before_request(access.admit)


@api.get(
    "/v1/jobs/<job_id>/events",
    operation_id="followJob",
    responses={200: sse.CONTENT, **problems(404)},
)
def follow(path: JobPath) -> Response:
    """Follow a job: `state`, `chunk` (the endpoint's own events, with ids to resume by), `restart`, `lost`, `end`."""
    context = here()
    after = _resume_from(request.headers.get("Last-Event-ID", ""))
    if not is_id("job", path.job_id):
        raise NotFound("job", path.job_id[:80])
    connection = request.environ.get(CONNECTION)
    with ExitStack() as held:
        waiter = held.enter_context(context.waiters.place(Waiter(tokens=True, states=True), connection))
        held.enter_context(context.waiters.following(waiter, path.job_id))
        followed = Followed(context, g.owner, path.job_id, waiter, after)
        row = followed.look()
        if after is not None and after.attempt > row.attempts:
            raise invalid("Last-Event-ID", "is not the id of an event of this stream")
        rest = held.pop_all()
    return sse.respond(followed.events(row), rest, connection, context.settings.stream_stall)


def _resume_from(text: str) -> EventId | None:
    if not text:
        return None
    if (found := event_id(text)) is None:
        raise invalid("Last-Event-ID", "must be the id of an event of this stream, like 1-17")
    return found


class Followed:
    """A job that one client follows."""

    def __init__(self, context: Context, owner: str, job_id: str, waiter: Waiter, after: EventId | None) -> None:
        self._context = context
        self._owner = owner
        self._job_id = job_id
        self._waiter = waiter
        self._follower = Follower(context.waiters, context.recorded, waiter, job_id, after)
        self._told = ""
        self._told_lost = False

    def look(self) -> sa.Row[Any]:
        """Return the job as it is. Raises NotFound."""
        with self._context.waiters.turn(), self._context.reserve.reading() as tx:
            return views.get(tx, self._owner, self._job_id)

    def events(self, row: sa.Row[Any]) -> Iterator[bytes]:
        """Yield what has happened since the client's last event, and what happens, to the end."""
        beaten = time.monotonic()
        yield from self._state(row.state)
        steps = self._follower.take(look=True)
        followed = row.state in JOB.open
        while True:
            yield from self._told_of(steps)
            if row.state in JOB.final:
                yield from self._late_steps(row, followed=followed)
                yield from self._state(row.state)
                yield sse.event(answers.encode(answers.job(row, None)).decode(), kind="end")
                return
            self._waiter.wait(interactive.TICK)
            if self._waiter.gone or self._context.waiters.stopping:
                return
            if self._waiter.may_have_ended:
                row = self._look_again(row)
            if row.state in JOB.open:
                yield from self._state(self._waiter.state)
            steps = self._follower.take()
            if steps:
                beaten = time.monotonic()
            elif time.monotonic() - beaten > sse.KEEP_ALIVE_EVERY:
                beaten = time.monotonic()
                yield sse.KEEP_ALIVE

    def _look_again(self, row: sa.Row[Any]) -> sa.Row[Any]:
        """Return the job as it is now, or as it was while the database is away."""
        self._waiter.may_have_ended = False
        try:
            row = self.look()
        except DatabaseUnavailable as error:
            log.warning("cannot look at a job that is followed", reason=str(error))
            self._waiter.may_have_ended = True
        except NotFound:
            self._waiter.gone = True  # deleted meanwhile: there is nothing left to follow
        else:
            self._waiter.know(row.state)
        return row

    def _state(self, state: str) -> Iterator[bytes]:
        if state not in {"", self._told}:
            self._told = state
            yield sse.event(msgspec.json.encode({"id": self._job_id, "state": state}).decode(), kind="state")

    def _told_of(self, steps: list[Step]) -> Iterator[bytes]:
        for step in steps:
            if isinstance(step, Lost):
                if self._told_lost or not self._has_tokens():
                    continue  # said already, or of a job that has none to lose
            elif self._told not in JOB.final:
                # Tokens are heard at once, states looked for once a second.
                self._waiter.know("running")
                yield from self._state("running")
            self._told_lost = isinstance(step, Lost)
            yield _event(step)

    def _late_steps(self, row: sa.Row[Any], *, followed: bool) -> Iterator[bytes]:
        """Yield the tokens that are behind their job's end, if it is one that has tokens."""
        until = time.monotonic() + interactive.LATE
        streamed = row.state == "succeeded" and followed and self._is_streamed()
        while True:
            steps = self._follower.take(look=True)
            yield from self._told_of(steps)
            # What is lost at the very end is not followed by anything: Redis is away.
            away = bool(steps) and isinstance(steps[-1], Lost)
            if self._follower.whole or away or (row.state != "succeeded" and not steps):
                return
            if not steps and not streamed and self._follower.position.seq == 0:
                return
            if not steps and time.monotonic() > until:
                yield from self._told_of([Lost("the last tokens were lost on their way")])
                return
            if not steps:
                self._waiter.wait(0.1)

    def _has_tokens(self) -> bool:
        return self._follower.position.seq > 0 or self._is_streamed()

    def _is_streamed(self) -> bool:
        try:
            with self._context.waiters.turn(), self._context.reserve.reading() as tx:
                return calls.is_streamed(views.body(tx, self._job_id))
        except DatabaseUnavailable:
            return False


def _event(step: Step) -> bytes:
    if isinstance(step, Token):
        return sse.event(step.event, kind="chunk", ident=str(step.id))
    if isinstance(step, Restart):
        return sse.event(msgspec.json.encode({"attempt": step.attempt}).decode(), kind="restart")
    assert isinstance(step, Lost)  # noqa: S101  # for mypy: there are no others
    return sse.event(msgspec.json.encode({"message": step.why}).decode(), kind="lost")
