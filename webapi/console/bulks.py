"""`/dashboard/bulks`: the caller's bulks and batches, how far each is, what failed in it, and how it is steered."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, get_args

import msgspec
import sqlalchemy as sa
from flask import Response, g, request
from werkzeug.wrappers import Response as Answer

from models import bulk_results, bulk_views, views
from models import bulks as stored
from models.bulk_views import Seen
from models.db import AnyRow
from models.states import BULK
from webapi import bulk_answers, bulks, json_body, paging
from webapi.bulk_schemas import BulkQuery, BulkState, ResultsQuery
from webapi.console import bars, door, fields, searches
from webapi.console.fields import Fields
from webapi.context import here, writing
from webapi.errors import BulkUnknown, invalid

pages = door.pages("bulks")

PATH = "/dashboard/bulks"
A_PAGE, FAILED_LINES = 25, 100
STATES, KINDS = get_args(BulkState), ("bulk", "batch")
STEERABLE = frozenset({"validating", "running"})

_STEPS: Mapping[str, Callable[[sa.Connection, str], AnyRow]] = {
    "pause": lambda tx, bulk_id: stored.steer(tx, g.owner, bulk_id, paused=True),
    "resume": lambda tx, bulk_id: stored.steer(tx, g.owner, bulk_id, paused=False),
    "cancel": lambda tx, bulk_id: stored.cancel(tx, g.owner, bulk_id),
}


@pages.get("/bulks")
def index() -> Answer:
    """List bulks and batches, newest first; whoever looks for an id is led to what has it."""
    door.need("read")
    search = searches.of_request(PATH, "state", "kind")
    if (found := search.led_to()) is not None:
        return found
    query = fields.checked(BulkQuery, search.query("state", "kind"))
    if query.after is not None:
        bulks.check_id(query.after, lambda: invalid("after", "must be the id of a bulk (the last of the page before)"))
    page: dict[str, Any] = {"kind": query.kind, "state": query.state, "after": query.after, "limit": A_PAGE}
    page |= {"tags": paging.tags_of(query), "begins": search.begins(*KINDS)}
    seen, more = here().lists.read(lambda tx: bulk_views.page(tx, g.owner, **page))
    shown: dict[str, Any] = {
        "bulks": [_shown(one) for one in seen],
        "asked": search.asked,
        "live": any(one.row.state in BULK.open for one in seen),
        "this": search.address(after=query.after),
        "newest": search.address(),
        "older": search.address(after=seen[-1].row.id) if more else None,
        "behind": query.after,
    }
    if door.wants_fragment():
        answer = door.fragment("bulks_list.html", **shown)
        answer.headers["HX-Replace-Url"] = search.address(after=query.after)
        return answer
    return door.render("bulks.html", "bulks", states=STATES, kinds=KINDS, **shown)


def _shown(seen: Seen) -> dict[str, Any]:
    told = bulk_answers.bulk(seen)
    counts = told["counts"]
    return told | {
        "done": counts["total"] - counts["queued"] - counts["running"],
        "parts": bars.of_counts(counts),
        "open": told["state"] in BULK.open,
    }


@pages.get("/bulks/<bulk_id>")
def show(bulk_id: str) -> Response:
    """Show a bulk; only what changes, where a part of the page is wanted."""
    door.need("read")
    bulks.check_id(bulk_id)
    with here().database.reading() as tx:
        row = stored.get(tx, g.owner, bulk_id)
        bulk = _shown(bulk_views.of(tx, row))
    told = {
        "bulk": bulk,
        "steerable": bulk["state"] in STEERABLE,
        "output": row.output_file_id,
        "once": fields.new_token(),
        "waits": _waits(bulk),
    }
    if door.wants_fragment():
        return door.fragment("bulk_now.html", **told)
    return door.render("bulk.html", "bulks", f"{bulk['kind'].title()} {bulk_id}", **told)


def _waits(bulk: Mapping[str, Any]) -> str:
    """Return in words what goes on with a bulk that has not ended; an empty text when it has."""
    if bulk["paused"] and bulk["state"] in STEERABLE:
        return "It is paused: the lines that wait stay where they are until it is resumed."
    return {
        "validating": "Its lines are being read. The first ones run while the later ones are still read.",
        "running": "" if bulk["counted"] else "Its lines are still being read: the total grows.",
        "finalizing": "All lines have ended. The results are being written.",
        "cancelling": "It is being cancelled: what has ended stays.",
    }.get(bulk["state"], "")


@pages.get("/bulks/<bulk_id>/errors")
def errors(bulk_id: str) -> Response:
    """List the lines of a bulk that did not succeed, in the order in which they ended."""
    door.need("read")
    bulks.check_id(bulk_id)
    query = fields.checked(ResultsQuery, {"after": request.args.get("after") or 0})
    with here().database.reading() as tx:
        row = stored.get(tx, g.owner, bulk_id)
        # One more than is shown tells whether more follow; of long ones fewer are read.
        many, last = bulk_results.fitting(tx, bulk_id, ok=False, after=query.after, limit=FAILED_LINES + 1)
        shown = min(many, FAILED_LINES)
        lines = bulk_results.page(tx, bulk_id, ok=False, after=query.after, limit=shown) if shown else ()
        states = views.states(tx, [line.job_id for line in lines])
    return door.render(
        "bulk_errors.html",
        "bulks",
        f"What failed in {bulk_id}",
        bulk_id=bulk_id,
        lines=lines,
        states=states,
        behind=query.after,
        more=not last,
        open=row.state in BULK.open,
    )


@pages.post("/bulks/<bulk_id>/<any(pause, resume, cancel):step>")
def change(bulk_id: str, step: str) -> Answer:
    """Pause a bulk, let it go on, or cancel it."""
    door.need("submit")
    bulks.check_id(bulk_id)
    with writing(BulkUnknown) as tx:
        _STEPS[step](tx, bulk_id)
    here().doorbell.ring_bulk(bulk_id)
    return door.lead_to(f"{PATH}/{bulk_id}")


@pages.post("/bulks/<bulk_id>/retry")
def retry(bulk_id: str) -> Answer:
    """Run the lines that did not succeed again, as a new bulk; the same form sent twice makes one."""
    door.need("read", "submit")
    bulks.check_id(bulk_id)
    form = Fields(request.form)
    form.require(fields.ONCE)
    once = form.once(f"retry {bulk_id}")
    answer, _ = bulks.again(bulk_id, once.key, json_body.parse(b"{}"))
    made = msgspec.json.decode(answer)["id"]
    here().doorbell.ring_bulk(made)
    return door.lead_to(f"{PATH}/{made}")
