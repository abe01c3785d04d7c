"""An interactive request from its body to its answer: its job is stored once, waited for, and answered again.

The answer of its Idempotency-Key is the id of its job: nothing of prompt or answer is kept twice. A key whose job was
taken back, or is gone, is as good as new.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, NamedTuple

import sqlalchemy as sa
from flask import Response, g, request

from models import jobs, views
from models.errors import KeyBusy
from models.jobs import NewJob
from models.states import JOB
from webapi import limits, sse, wishes
from webapi.context import here, writing
from webapi.errors import OutcomeUnknown, Problem
from webapi.hangups import CONNECTION
from webapi.interactive import Interactive
from webapi.json_body import JsonObject
from webapi.keyed import REPLAYED, Once
from webapi.waiters import Waiter


class Asked(NamedTuple):
    """The job of a request; `row` is what became of it by now when the same request has come before."""

    job_id: str
    created_at: float
    row: sa.Row[Any] | None = None


def answer(sent: JsonObject, endpoint: str, once: Once) -> Response:
    """Store the job, wait for it, and answer as its endpoint would have; at once when that was done before."""
    if (before := earlier(once)) is not None:
        return _again(before, sent)
    context = here()
    wish = wishes.wish_of(sent, endpoint, g.owner, context.settings, context.known, once)
    connection = request.environ.get(CONNECTION)
    with ExitStack() as held:
        waiter = held.enter_context(context.waiters.place(Waiter(tokens=wish.streamed), connection))
        with limits.place(wish.job.tokens), context.waiters.turn(), writing(OutcomeUnknown) as tx:
            asked = stored(tx, once, wish.job)
        if asked.row is not None:
            return _again(asked.row, sent)
        held.enter_context(context.waiters.following(waiter, asked.job_id))
        call = Interactive(context, g.owner, wish, asked.job_id, waiter)
        held.callback(call.abandon)
        context.pager.realtime(wish.job.model)
        first = call.first()
        if isinstance(first, sa.Row) and not (wish.streamed and first.state == "succeeded"):
            return call.whole(first)
        events = call.events(first)
        rest = held.pop_all()
    return sse.respond(events, rest, connection, context.settings.stream_stall, X_Stoker_Job=asked.job_id)


def earlier(once: Once) -> sa.Row[Any] | None:
    """Return the job that the same request made before, as it is now; None when it is to make one."""
    if (job_id := once.before()) is None:
        return None
    with here().database.reading() as tx:
        return _still_there(tx, job_id)


def _still_there(tx: sa.Connection, job_id: str) -> sa.Row[Any] | None:
    row = views.find(tx, g.owner, job_id)
    # One that expired was given up for good, as one that is withdrawn: by a server that died, with nobody to answer.
    return None if row is None or row.state == "expired" else row


def stored(tx: sa.Connection, once: Once, new: NewJob) -> Asked:
    """Store a job, or find the one that the same request made. Raises KeyReused and KeyBusy."""
    made: list[jobs.Stored] = []

    def make() -> str:
        made.append(jobs.submit(tx, new))
        return made[0].id

    job_id, replayed = once.answer(tx, make)
    if replayed:
        if (row := _still_there(tx, job_id)) is not None:
            return Asked(row.id, row.created_at, row)
        once.anew(tx, job_id, make)
    return Asked(made[0].id, made[0].created_at)


def _again(row: sa.Row[Any], sent: JsonObject) -> Response:
    """Answer a request again from its job. Raises KeyBusy while that is open, and Problem when it has failed."""
    if row.state in JOB.open:
        raise KeyBusy
    context, waiter, wish = here(), Waiter(), wishes.again(sent, row)
    waiter.end()
    call = Interactive(context, g.owner, wish, row.id, waiter)
    if wish.streamed and row.state == "succeeded":
        connection, stall = request.environ.get(CONNECTION), context.settings.stream_stall
        response = sse.respond(call.events(row), ExitStack(), connection, stall, X_Stoker_Job=row.id)
    else:
        try:
            response = call.whole(row)
        except Problem as problem:
            problem.headers.update(REPLAYED)
            raise
    response.headers.update(REPLAYED)
    return response
