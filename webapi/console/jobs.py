"""`/dashboard/jobs`: the caller's jobs, and one of them from its submission to its webhook."""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import replace
from typing import Any, get_args
from urllib.parse import urlencode

import msgspec
from flask import Response, g, request
from pydantic import ValidationError
from werkzeug.wrappers import Response as Answer

from models import delivery_log, engines, timeline, views
from models.bulks import BATCH_KIND, BULK_KIND
from models.db import is_id
from models.jobs import NewJob
from models.states import JOB
from models.views import Filters
from stoker.settings import Lane
from webapi import answers, bulk_submission, deliveries, jobs, json_body, keyed, paging
from webapi import timeline as timelines
from webapi.console import bars, door, excerpts
from webapi.context import here
from webapi.errors import found_by, from_pydantic, invalid
from webapi.keyed import Once
from webapi.schemas import ListQuery, State
from webapi.submission import job_of

pages = door.pages("jobs")

PATH = "/dashboard/jobs"
A_PAGE = 50
LANES, STATES = get_args(Lane), get_args(State)
ASKED = ("q", "state", "lane", "model", "tag", "bulk_id")
"""The fields above the list. `q`: an id, or how one begins; `tag`: one pair of the metadata, as key=value."""

_BEGINS = re.compile(r"(?:job_)?([0-9a-f]{1,32})")
_FOUND = {"job": PATH, BULK_KIND: "/dashboard/bulks", BATCH_KIND: "/dashboard/bulks"}


@pages.get("/jobs")
def index() -> Answer:
    """List jobs, newest first; whoever looks for an id is led to what has it."""
    door.need("read")
    asked = {name: text for name in ASKED if (text := request.args.get(name, "").strip())}
    for kind, path in _FOUND.items():
        if is_id(kind, asked.get("q", "").lower()):
            return door.lead_to(f"{path}/{asked['q'].lower()}")
    query = _query(asked, request.args.get("after") or None)
    filters, after = _filters(query, asked), paging.after_of(query)
    rows, more = here().lists.read(lambda tx: views.page(tx, g.owner, filters, after=after, limit=A_PAGE))
    models = [] if door.wants_fragment() else sorted(here().lists.read(engines.known))
    shown: dict[str, Any] = {
        "jobs": [answers.job(row, None, with_result=False) for row in rows],
        "asked": asked,
        "newest": _address(asked),
        "older": _address(asked | {"after": rows[-1].id}) if more else None,
        "behind": after,
    }
    if door.wants_fragment():
        answer = door.fragment("jobs_list.html", **shown)
        answer.headers["HX-Replace-Url"] = _address(asked | ({"after": after} if after else {}))
        return answer
    return door.render("jobs.html", "jobs", lanes=LANES, states=STATES, models=models, **shown)


def _query(asked: dict[str, str], after: str | None) -> ListQuery:
    given: dict[str, str | None] = {name: asked.get(name) for name in ("state", "lane", "model", "bulk_id")}
    if (tag := asked.get("tag")) is not None:
        key, sign, value = tag.partition("=")
        if not key.strip() or not sign:
            raise invalid("tag", "write key=value, one pair of the metadata that jobs were submitted with")
        given[f"{paging.PREFIX}{key.strip()}"] = value.strip()
    try:
        return ListQuery.model_validate({**given, "after": after})
    except ValidationError as error:
        raise from_pydantic(found_by(error)) from None


def _filters(query: ListQuery, asked: dict[str, str]) -> Filters:
    found, sought = paging.filters_of(query), asked.get("q")
    if sought is None:
        return found
    if (match := _BEGINS.fullmatch(sought.lower())) is None:
        raise invalid("q", "must be an id, or how a job's id begins: job_ and hex digits")
    return Filters(found.state, found.lane, found.model, found.bulk_id, found.metadata, begins=f"job_{match[1]}")


def _address(asked: dict[str, str]) -> str:
    return f"{PATH}?{urlencode(asked)}" if asked else PATH


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
        "once": secrets.token_hex(16),
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
    door.need("read")
    door.need("submit")
    once = Once(_key(), hashlib.sha256(f"again {job_id}".encode()).hexdigest())
    answer, _ = jobs.store(once, lambda: _same(job_id))
    return door.lead_to(f"{PATH}/{msgspec.json.decode(answer)['id']}")


def _key() -> str:
    """Return what tells a form from any other that was sent; it must not meet a key that a program made."""
    return f"console-{keyed.checked(request.form.get('once', ''), 'once')}"


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
