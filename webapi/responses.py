"""`/v1/responses`: answered at once or in the background, as OpenAI's API has it.

A response is a job of that endpoint: `resp_...` is `job_...` under another name, so that nothing has to be remembered.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import msgspec
import sqlalchemy as sa
from flask import Response, g, request
from flask_openapi.blueprint import APIBlueprint
from flask_openapi.models.tag import Tag
from pydantic import BaseModel, ConfigDict, Field

from models import ends, jobs, views
from models.calls import RESPONSES
from models.db import is_id
from models.errors import AlreadyFinished
from models.states import JOB
from webapi import access, answers, exchange, json_body, keyed, limits, sse, whole_streams
from webapi.context import here, writing
from webapi.engine_bodies import ResponseBody
from webapi.errors import CancelUnknown, OutcomeUnknown
from webapi.exchange import Asked
from webapi.hangups import CONNECTION
from webapi.interactive import Interactive, Wish
from webapi.json_body import JsonObject
from webapi.keyed import REPLAYED
from webapi.openai import openai_problem, openai_problems
from webapi.openapi import body_of
from webapi.schemas import Parameters
from webapi.waiters import Waiter
from webapi.wishes import again, in_background, wish_of

api = APIBlueprint(
    "responses",
    __name__,
    abp_tags=[Tag(name="responses", description="OpenAI's Responses, answered at once or in the background.")],
    abp_security=[{"key": []}],
    abp_responses=openai_problems(400, 401, 403, 404, 408, 413, 415, 429, 500, 502, 503, 504),
)

_ANSWER: dict[Any, Any] = {200: {"content": {"application/json": {}, **sse.CONTENT["content"]}}}
_STATUS = {
    "queued": "queued",
    "delayed": "queued",
    "batched": "queued",
    "running": "in_progress",
    "succeeded": "completed",
    "failed": "failed",
    "expired": "failed",
    "cancelled": "cancelled",
}
_ECHOED = ("instructions", "max_output_tokens", "metadata", "temperature", "tool_choice", "tools", "top_p", "text")
MOST_ID = 64


class ResponsePath(BaseModel):
    """Which response."""

    response_id: str


class ResponseQuery(Parameters):
    """How to look at a response."""

    model_config = ConfigDict(extra="ignore")

    stream: bool = Field(default=False, description="Its events from the beginning, and on as they come.")
    starting_after: int | None = Field(None, ge=0, description="Only events behind this sequence_number.")


api.before_request(access.admit)


@api.post(RESPONSES, operation_id="createResponse", request_body=body_of(ResponseBody), responses=_ANSWER)
def create() -> Response:
    """Respond to an input; with `background`, later: poll it."""
    raw = json_body.read(request, here().settings.max_body_bytes)
    sent, once = json_body.parse(raw, nul=True), keyed.once(raw, RESPONSES)
    if not in_background(sent):
        return exchange.answer(sent, RESPONSES, once)
    if (before := exchange.earlier(once)) is not None:
        return _again(before, sent)
    context = here()
    wish = wish_of(sent, RESPONSES, g.owner, context.settings, context.known, once)
    if wish.streamed:
        with _place() as (held, waiter):
            asked = _submit(wish)
            if asked.row is None:
                return _follow(asked.job_id, wish, held, waiter)
    else:
        asked = _submit(wish)
    if asked.row is not None:
        return _again(asked.row, sent)
    return answers.respond(answers.encode(_open(asked.job_id, asked.created_at, "queued", wish.job.body)))


def _submit(wish: Wish) -> Asked:
    with limits.place(wish.job.tokens), writing(OutcomeUnknown) as tx:
        # Nobody holds a connection for it: it may wait as long as it takes.
        asked = exchange.stored(tx, wish.once, replace(wish.job, expires_in=None))
    here().pager.realtime(wish.job.model)
    return asked


def _again(row: sa.Row[Any], sent: JsonObject) -> Response:
    """Answer as before: with a response that is queued, or with all its events."""
    wish = again(sent, row)
    if wish.streamed:
        with _place() as (held, waiter):
            response = _follow(row.id, wish, held, waiter)
    else:
        with here().database.reading() as tx:
            body = views.body(tx, row.id)
        response = answers.respond(answers.encode(_open(row.id, row.created_at, "queued", body)))
    response.headers.update(REPLAYED)
    return response


@api.get(f"{RESPONSES}/<response_id>", operation_id="getResponse", responses=_ANSWER)
def show(path: ResponsePath, query: ResponseQuery) -> Response:
    """Look at a response; with `stream`, follow it."""
    row, body = _find(path.response_id)
    if query.stream:
        job = jobs.NewJob(row.owner, row.model, row.endpoint, body)
        with _place() as (held, waiter):
            return _follow(row.id, Wish(job, streamed=True), held, waiter, query.starting_after)
    return answers.respond(whole_streams.written(_document(row, body)))


@api.post(f"{RESPONSES}/<response_id>/cancel", operation_id="cancelResponse", responses=_ANSWER)
def cancel(path: ResponsePath) -> Response:
    """Cancel a response that has not ended; one that has stays as it is, and is shown to who may read."""
    row, _ = _find(path.response_id)
    try:
        with writing(CancelUnknown) as tx:
            ends.cancel(tx, g.owner, row.id)
    except AlreadyFinished:
        pass  # as OpenAI's: what has ended is shown
    else:
        here().pager.stopped(row.id)
        here().doorbell.ring_deliver()
    row, body = _find(path.response_id)
    # The scope to cancel is not the one to look: without that no more is told than what became of it.
    shown = _document(row, body) if g.caller.may("read") else _bare(row)
    return answers.respond(whole_streams.written(shown))


@contextmanager
def _place() -> Iterator[tuple[ExitStack, Waiter]]:
    """Take a place for one who waits: before there is a job, for whoever is refused must have left none behind."""
    with ExitStack() as held:
        connection = request.environ.get(CONNECTION)
        yield held, held.enter_context(here().waiters.place(Waiter(tokens=True), connection))


def _follow(job_id: str, wish: Wish, held: ExitStack, waiter: Waiter, starting_after: int | None = None) -> Response:
    """Answer with the events of a response that goes on when its client leaves; what is held is let go at the end."""
    context = here()
    held.enter_context(context.waiters.following(waiter, job_id))
    waiter.miss()
    waiter.end()
    call = Interactive(context, g.owner, wish, job_id, waiter, starting_after)
    first = call.first(give_up=False)
    if isinstance(first, sa.Row) and first.state != "succeeded":
        return call.whole(first)
    connection = request.environ.get(CONNECTION)
    stall = context.settings.stream_stall
    return sse.respond(call.events(first), held.pop_all(), connection, stall, X_Stoker_Job=job_id)


def _find(response_id: str) -> tuple[sa.Row[Any], str]:
    head, _, tail = response_id.partition("_")
    job_id = f"job_{tail}"
    if head == "resp" and is_id("job", job_id):
        with here().database.reading() as tx:
            found = views.find(tx, g.owner, job_id)
            if found is not None and found.endpoint == RESPONSES:
                return found, views.body(tx, job_id)
    raise openai_problem(404, "not_found", f"Response with id '{response_id[:MOST_ID]}' not found.", "response_id")


def _document(row: sa.Row[Any], body: str) -> dict[str, Any]:
    """Return a response as it is now."""
    if row.state == "succeeded" and row.body is not None:
        return {**whole_streams.read(row.body), "id": _id(row.id)}
    error = None
    if row.state in JOB.final and row.state != "cancelled":
        error = {"code": "server_error", "message": row.error_message or f"The response is {row.state}."}
    return {**_open(row.id, row.created_at, row.state, body), "error": error}


def _bare(row: sa.Row[Any]) -> dict[str, Any]:
    """Return a response without what went into it and what came out."""
    return _open(row.id, row.created_at, row.state, msgspec.json.encode({"model": row.model}))


def _id(job_id: str) -> str:
    return f"resp_{job_id.removeprefix('job_')}"


def _open(job_id: str, created_at: float, state: str, body: str | bytes) -> dict[str, Any]:
    """Return a response that has no answer."""
    asked = msgspec.json.decode(body)
    return {
        "id": _id(job_id),
        "object": "response",
        "created_at": int(created_at),
        "status": _STATUS[state],
        "background": True,
        "error": None,
        "incomplete_details": None,
        "model": asked["model"],
        "output": [],
        "parallel_tool_calls": asked.get("parallel_tool_calls", True),
        "tool_choice": "auto",
        "tools": [],
        "usage": None,
        **{name: asked[name] for name in _ECHOED if asked.get(name) is not None},
    }
