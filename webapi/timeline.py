"""`/v1/jobs/{id}/timeline`: a job's way from its submission to its webhooks, and what it waits for."""

from __future__ import annotations

from typing import Any

from flask import Response, g
from flask_openapi.blueprint import APIBlueprint
from flask_openapi.models.tag import Tag
from pydantic import BaseModel

from models import timeline
from models.db import is_id
from models.errors import NotFound
from models.states import JOB
from models.timeline import Timeline
from webapi import access, answers, deliveries, reasons
from webapi.context import here
from webapi.openapi import problems
from webapi.schemas import JobPath
from webapi.webhook_schemas import Delivery

api = APIBlueprint(
    "timeline",
    __name__,
    url_prefix="/v1/jobs",
    abp_tags=[Tag(name="jobs")],
    abp_security=[{"key": []}],
    abp_responses=problems(401, 403, 422, 500, 503),
)
api.before_request(access.admit)


class Step(BaseModel):
    """Something that happened to a job: submitted, batched, started, how an attempt or it ended, told.

    `seconds`: since the step before.
    """

    name: str
    at: float
    seconds: float | None


class Attempt(BaseModel):
    """One batch that the job was in. `jobs` is how many it had, null where that is no longer known.

    `outcome`: running, the job's end, or crashed, lost, returned, deferred.
    """

    number: int
    outcome: str
    batch: str
    engine: str | None
    jobs: int | None
    reason: str | None
    started_at: float | None
    ended_at: float | None


class JobTimeline(BaseModel):
    """A job's way so far. `waiting` says in words what it waits for; `attempts` are the last ones.

    `mates` are jobs of yours in its batch, of those that were submitted shortly before and after it.
    """

    object: str
    id: str
    state: str
    waiting: str
    steps: list[Step]
    attempts: list[Attempt]
    mates: list[str]
    deliveries: list[Delivery]


@api.get("/<job_id>/timeline", operation_id="getJobTimeline", responses={200: JobTimeline, **problems(404)})
def show(path: JobPath) -> Response:
    """Look at what happened to a job, step by step, and at what it waits for."""
    if not is_id("job", path.job_id):
        raise NotFound("job", path.job_id[:80])
    context = here()
    with context.database.reading() as tx:
        found = timeline.of(
            tx, g.owner, path.job_id, context.settings.engine_gone_after, context.settings.start_timeout
        )
    return answers.respond(answers.encode(document(found)))


def document(found: Timeline) -> dict[str, Any]:
    """Return the timeline as its owner sees it; pure."""
    return {
        "object": "job.timeline",
        "id": found.job.id,
        "state": found.job.state,
        "waiting": reasons.why(found),
        "steps": _steps(found),
        "attempts": _attempts(found),
        "mates": list(found.mates),
        "deliveries": [deliveries.document(row) for row in found.deliveries],
    }


def _steps(found: Timeline) -> list[dict[str, Any]]:
    job, batch = found.job, found.batch
    happened = [("submitted", job.created_at)]
    for past in found.past:
        began = (("batched", past.batched_at), ("started", past.started_at))
        happened += [(name, at) for name, at in (*began, (past.outcome, past.ended_at)) if at is not None]
    if batch is not None:
        happened.append(("batched", batch.created_at))
    if job.started_at is not None and job.state in JOB.final | {"running"}:
        happened.append(("started", job.started_at))
    if job.finished_at is not None:
        happened.append((job.state, job.finished_at))
    happened += [("told", row.delivered_at) for row in found.deliveries if row.delivered_at is not None]
    steps: list[dict[str, Any]] = []
    before: float | None = None
    for name, at in sorted(happened, key=lambda step: step[1]):
        seconds = None if before is None else round(at - before, 3)
        steps.append({"name": name, "at": round(at, 3), "seconds": seconds})
        before = at
    return steps


def _attempts(found: Timeline) -> list[dict[str, Any]]:
    told = [_attempt(row.attempt, row.outcome, row.batch_id, row, (row.started_at, row.ended_at)) for row in found.past]
    job, batch = found.job, found.batch
    if batch is not None and job.started_at is not None and job.state in JOB.final | {"running"}:
        times = (job.started_at, job.finished_at)
        told.append(_attempt(job.attempts, job.state, batch.id, batch, times))
    return told


def _attempt(
    number: int, outcome: str, batch: str, row: Any, times: tuple[float | None, float | None]
) -> dict[str, Any]:
    started, ended = (None if at is None else round(at, 3) for at in times)
    told = {"number": number, "outcome": outcome, "batch": batch, "engine": row.engine_id, "jobs": row.size}
    return told | {"reason": row.reason, "started_at": started, "ended_at": ended}
