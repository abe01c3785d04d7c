"""`/v1/jobs`: submit, look at, wait for, list and cancel jobs."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import msgspec
import sqlalchemy as sa
from flask import Response, g, request
from flask_openapi.blueprint import APIBlueprint
from flask_openapi.models.tag import Tag

from models import ends, jobs, views
from models.db import is_id
from models.errors import NotFound, QueueFull
from models.jobs import NewJob
from models.states import JOB
from webapi import access, answers, json_body, keyed, limits, paging
from webapi.context import here, writing
from webapi.errors import CancelUnknown, OutcomeUnknown, Problem
from webapi.hangups import CONNECTION
from webapi.keyed import Once
from webapi.openapi import body_of, problems
from webapi.schemas import Job, JobList, JobPath, JobRequest, ListQuery, WaitQuery
from webapi.submission import job_of
from webapi.waiters import TooManyWaiters

api = APIBlueprint(
    "jobs",
    __name__,
    url_prefix="/v1/jobs",
    abp_tags=[Tag(name="jobs", description="One request to one model each.")],
    abp_security=[{"key": []}],
    abp_responses=problems(401, 403, 422, 500, 503),
)


api.before_request(access.admit)


@api.post(
    "",
    operation_id="createJob",
    request_body=body_of(JobRequest),
    responses={202: Job, **problems(400, 408, 409, 413, 415, 429)},
)
def create() -> Response:
    """Submit a job.

    Answered once it is stored. With an `Idempotency-Key` header the same request can be sent again without making a
    second job: it gets the same answer.
    """
    context = here()
    raw = json_body.read(request, context.settings.max_body_bytes)
    once = Once(keyed.key(), hashlib.sha256(raw).hexdigest())
    answer, replayed = store(
        once, lambda: job_of(json_body.parse(raw), g.owner, context.settings, context.known, context.seal)
    )
    return _accepted(answer, replayed=replayed)


def store(once: Once, make: Callable[[], NewJob]) -> tuple[str, bool]:
    """Store the job that `make` returns, once, and ring for it; return its document, and whether it was told before.

    Raises what `make` raises, Problem 429 and QueueFull where there is no room, OutcomeUnknown.
    """
    with ExitStack() as room:
        try:
            new = make()
            room.enter_context(limits.place(new.tokens))
        except (Problem, QueueFull):
            # What was taken once is answered again, even if its model is gone by now or the queue is full.
            if (before := once.before()) is None:
                raise
            return before, True
        with writing(OutcomeUnknown) as tx:
            told = once.answer(tx, lambda: answers.encode(answers.accepted(new, jobs.submit(tx, new))).decode())
    here().ring(new.model, new.lane)
    return told


def _accepted(answer: str, *, replayed: bool) -> Response:
    headers = {"Location": f"/v1/jobs/{msgspec.json.decode(answer)['id']}"}
    return answers.respond(answer, 202, **headers, **({"Idempotency_Replayed": "true"} if replayed else {}))


@api.get("/<job_id>", operation_id="getJob", responses={200: Job, **problems(404)})
def show(path: JobPath, query: WaitQuery) -> Response:
    """Look at a job; with `wait`, as soon as it has ended or the seconds have passed."""
    row, position = _wait(path.job_id, query.wait) if query.wait else _ended(path.job_id) or _look(path.job_id)
    return answers.respond(answers.encode(answers.job(row, position)))


def _ended(job_id: str) -> tuple[sa.Row[Any], None] | None:
    """Return a job that has ended, by a replica; None where the primary is to be asked."""
    found = here().lists.if_ended(
        lambda tx: views.get(tx, g.owner, checked(job_id)), lambda row: row.state in JOB.final
    )
    return found and (found[1], None)


def _look(job_id: str, *, placed: bool = True) -> tuple[sa.Row[Any], int | None]:
    """Return a job and, with `placed`, its place in the queue, which is counted."""
    # In turn: a crowd that comes at once leaves connections to whoever submits.
    with here().waiters.turn(), here().reserve.reading() as tx:
        row = views.get(tx, g.owner, checked(job_id))
        return row, views.queue_position(tx, row) if placed else None


def checked(job_id: str) -> str:
    """Return an id that a job may have. Raises NotFound."""
    if not is_id("job", job_id):
        raise NotFound("job", job_id[:80])
    return job_id


def _wait(job_id: str, seconds: float) -> tuple[sa.Row[Any], int | None]:
    waiters = here().waiters
    until = time.monotonic() + seconds
    try:
        with waiters.registered(checked(job_id), request.environ.get(CONNECTION)) as waiter:
            while True:
                # Looked at after registering: an end in between would wake nobody.
                last = time.monotonic() >= until or waiters.stopping
                row, position = _look(job_id, placed=last)
                if last or row.state in JOB.final:
                    return row, position
                waiter.wait(until - time.monotonic())
                if waiter.gone:
                    return row, position  # to nobody: a crowd that goes at once is not to look once more each
    except TooManyWaiters:
        row, position = _look(job_id, placed=False)
        if row.state in JOB.final:
            return row, position
        raise


@api.get(
    "/<job_id>/result",
    operation_id="getJobResult",
    responses={200: {"content": {"application/json": {}}}, **problems(404)},
)
def result(path: JobPath) -> Response:
    """Get the engine's answer alone, as the endpoint itself would have given it."""
    row, _ = _look(path.job_id, placed=False)
    if row.state == "succeeded" and row.body is not None:
        return answers.respond(row.body)
    why = f" ({row.error_code})" if row.state == "failed" else ""
    raise Problem(404, "no_result", f"Job {row.id} has no result: it is {row.state}{why}.")


@api.get("", operation_id="listJobs", responses={200: JobList})
def index(query: ListQuery) -> Response:
    """List jobs, newest first, without their results."""
    filters, after = paging.filters_of(query), paging.after_of(query)
    rows, more = here().lists.read(lambda tx: views.page(tx, g.owner, filters, after=after, limit=query.limit))
    data = [answers.job(row, None, with_result=False) for row in rows]
    following = rows[-1].id if more else None
    return answers.respond(answers.encode({"object": "list", "data": data, "has_more": more, "next_after": following}))


@api.post("/<job_id>/cancel", operation_id="cancelJob", responses={200: Job, **problems(404, 409)})
def cancel(path: JobPath) -> Response:
    """Cancel a job that has not ended; 409 if it has."""
    return answers.respond(answers.encode(answers.job(stop(path.job_id), None)))


def stop(job_id: str) -> sa.Row[Any]:
    """Cancel a job and let its engine know; return it. Raises NotFound, AlreadyFinished, CancelUnknown."""
    with writing(CancelUnknown) as tx:
        ends.cancel(tx, g.owner, checked(job_id))
        row = views.get(tx, g.owner, job_id)
    here().pager.stopped(job_id)
    here().doorbell.ring_deliver()
    return row
