"""`/dashboard/jobs`: the caller's jobs, and one of them from its submission to its webhook."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import msgspec
from flask import Response, g, request
from werkzeug.wrappers import Response as Answer

from models import delivery_log, engines, timeline, views
from models.jobs import NewJob
from models.states import JOB
from stoker.settings import LANES
from webapi import answers, bulk_submission, deliveries, jobs, json_body, paging
from webapi import timeline as timelines
from webapi.console import bars, door, excerpts, fields, searches
from webapi.console.fields import Fields
from webapi.context import here
from webapi.schemas import ListQuery, State
from webapi.submission import job_of

pages = door.pages("jobs")

PATH = "/dashboard/jobs"
A_PAGE = 50
STATES = get_args(State)
ASKED = ("state", "lane", "model", "bulk_id")
"""The fields above the list, besides those of every search."""


@pages.get("/jobs")
def index() -> Answer:
    """List jobs, newest first; whoever looks for an id is led to what has it."""
    door.need("read")
    search = searches.of_request(PATH, *ASKED)
    if (found := search.led_to()) is not None:
        return found
    query = fields.checked(ListQuery, search.query(*ASKED))
    begins = next(iter(search.begins("job")), None)
    filters, after = replace(paging.filters_of(query), begins=begins), paging.after_of(query)
    rows, more = here().lists.read(lambda tx: views.page(tx, g.owner, filters, after=after, limit=A_PAGE))
    models = [] if door.wants_fragment() else sorted(here().lists.read(engines.known))
    shown: dict[str, Any] = {
        "jobs": [answers.job(row, None, with_result=False) for row in rows],
        "asked": search.asked,
        "newest": search.address(),
        "older": search.address(after=rows[-1].id) if more else None,
        "behind": after,
    }
    if door.wants_fragment():
        answer = door.fragment("jobs_list.html", **shown)
        answer.headers["HX-Replace-Url"] = search.address(after=after)
        return answer
    return door.render("jobs.html", "jobs", lanes=LANES, states=STATES, models=models, **shown)


@pages.get("/jobs/<job_id>")
def show(job_id: str) -> Response:
    """Show a job; without what it asks for, where only what changes is wanted."""
    door.need("read")
    told = _told(job_id)
    if door.wants_fragment():
        return door.fragment("job_now.html", **told)
    with here().database.reading() as tx:
        body = views.body(tx, job_id)
    return door.render("job.html", "jobs", f"Job {job_id}", body=excerpts.of_json(body), **told)


def _told(job_id: str) -> dict[str, Any]:
    context = here()
    with context.database.reading() as tx:
        row = views.get(tx, g.owner, jobs.checked(job_id))
        found = timeline.of(tx, g.owner, job_id, context.settings.engine_gone_after, context.settings.start_timeout)
        tries = [(one, delivery_log.history(tx, one)) for one in found.deliveries]
    told = [{**deliveries.document(one), "tries": deliveries.tries(one, history)} for one, history in tries]
    is_open = row.state in JOB.open
    way = timelines.document(found)
    parts = bars.of_steps(way["steps"], found.clock if is_open else None)
    return {
        "job": answers.job(row, None, with_result=False),
        "engine": row.engine_id,
        "way": way,
        "parts": parts,
        "sums": bars.sums(parts),
        "deliveries": told,
        "open": is_open,
        "live": is_open or any(one["state"] not in delivery_log.ENDED for one in told),
        "said": excerpts.said(row.body) if row.body and row.state == "succeeded" else None,
        "result": excerpts.of_json(row.body) if row.body else None,
        "once": fields.new_token(),
    }


@pages.get("/jobs/<job_id>/request")
def body(job_id: str) -> Response:
    """Give what a job asks its engine for, as a file."""
    door.need("read")
    with here().database.reading() as tx:
        row = views.sent(tx, g.owner, jobs.checked(job_id))
    return answers.respond(row.body, Content_Disposition=f'attachment; filename="{row.id}-request.json"')


@pages.post("/jobs/<job_id>/cancel")
def cancel(job_id: str) -> Answer:
    """Cancel a job that has not ended."""
    door.need("submit")
    jobs.stop(job_id)
    return door.lead_to(f"{PATH}/{job_id}")


@pages.post("/jobs/<job_id>/again")
def again(job_id: str) -> Answer:
    """Submit a job that asks and tells for the same, as a new one; the same form sent twice makes one."""
    door.need("read", "submit")
    form = Fields(request.form)
    form.require(fields.ONCE)
    answer, _ = jobs.store(form.once(f"again {job_id}"), lambda: _same(job_id))
    return door.lead_to(f"{PATH}/{msgspec.json.decode(answer)['id']}")


def _same(job_id: str) -> NewJob:
    context = here()
    with context.database.reading() as tx:
        row = views.sent(tx, g.owner, jobs.checked(job_id))
    asked: dict[str, Any] = {
        "endpoint": row.endpoint,
        # The line of a paused bulk is in no lane that a job could be put in.
        "lane": row.lane if row.lane in LANES else bulk_submission.LANE,
        "metadata": row.metadata,
        "body": msgspec.Raw(row.body.encode()),
    }
    if row.expires_at is not None:
        asked["expires_in"] = max(1.0, round(row.expires_at - row.created_at, 3))
    if row.webhook_url is not None:
        asked["webhook"] = {"url": row.webhook_url, "include_result": row.webhook_include_result}
    new = job_of(json_body.parse(msgspec.json.encode(asked)), g.owner, context.settings, context.known, context.seal)
    # It is sealed already, and stays so.
    return replace(new, webhook=new.webhook and replace(new.webhook, secret=row.webhook_secret or ""))
