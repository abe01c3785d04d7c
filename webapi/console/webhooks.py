"""`/dashboard/webhooks`: an owner's webhook endpoints, made, changed, tested, given another secret and deleted."""

from __future__ import annotations

import json
import time
from http import HTTPStatus
from typing import Any, TypeVar

from flask import Response, g, make_response, redirect, request
from pydantic import BaseModel

from models import endpoints, event_types
from models.db import AnyRow, is_id
from models.errors import NotFound, TooManyEndpoints
from webapi import endpoint_tests, webhook_endpoints
from webapi.console import door, fields
from webapi.console.fields import Fields
from webapi.context import here, writing
from webapi.errors import Problem, WebhookUnknown
from webapi.webhook_endpoints import PREFIX
from webapi.webhook_schemas import LEAST_WAIT, MOST_WAIT, EndpointChange, EndpointRequest

T = TypeVar("T", bound=BaseModel)

pages = door.pages("webhooks")

PATH = f"{door.HOME}/webhooks"
BOTH = ("submit", "read")
"""No change by who may not read: an endpoint shows its owner's events to whoever made it."""
_GROUPS = (
    ("Jobs", event_types.JOBS),
    ("Bulks", event_types.BULKS),
    ("Responses", event_types.RESPONSES),
)
"""How the events stand in a form."""
_TOLD = {
    "saved": "The endpoint is changed.",
    "enabled": "The endpoint is enabled: events are sent to it again.",
    "disabled": "The endpoint is disabled: events are no longer sent to it.",
    "deleted": "The endpoint is deleted.",
}
"""What a page says after a change, by the word in its address."""


@pages.get("/webhooks", strict_slashes=False)
def index() -> Response:
    """List the endpoints, with a form for one more."""
    door.need("read")
    return _list()


def _list(problem: Problem | None = None) -> Response:
    with here().database.reading() as tx:
        rows, _ = endpoints.page(tx, g.owner, limit=endpoints.MOST)
    wrong = {} if problem is None else fields.wrong(problem)
    shown = door.render(
        "webhooks.html",
        "webhooks",
        endpoints=[_shown(row) for row in rows],
        told=_TOLD.get(request.args.get("told", "")),
        **_form(request.form.to_dict() if wrong else {}, request.form.getlist("event_types"), wrong),
    )
    shown.status_code = problem.status if problem else HTTPStatus.OK
    return shown


@pages.post("/webhooks")
def create() -> Response:
    """Make an endpoint, and show its secret."""
    door.need(*BOTH)
    form = Fields(request.form)
    try:
        form.require("name", "url")
        made, _ = webhook_endpoints.make(lambda: _asked(form, EndpointRequest), form.once("endpoint"))
    except (Problem, TooManyEndpoints) as error:
        return _list(_problem(error))
    document = json.loads(made)
    return _one(_find(document["id"]), secret=document["signing_secret"], is_new=True)


@pages.get("/webhooks/<endpoint_id>")
def show(endpoint_id: str) -> Response:
    """Show an endpoint."""
    door.need("read")
    return _one(_find(endpoint_id))


def _one(row: AnyRow, problem: Problem | None = None, **more: Any) -> Response:
    wrong = {} if problem is None else fields.wrong(problem)
    stored = {
        "name": row.name,
        "url": row.url,
        "coalesce": "" if row.coalesce is None else f"{row.coalesce:g}",
        "include_result": row.include_result,
    }
    values = request.form.to_dict() if wrong else stored
    chosen = request.form.getlist("event_types") if wrong else row.event_types
    told = _TOLD.get(request.args.get("told", ""))
    form = _form(values, chosen, wrong)
    page = door.render("webhook.html", "webhooks", row.name, endpoint=_shown(row), told=told, **form, **more)
    page.status_code = problem.status if problem else HTTPStatus.OK
    return page


@pages.post("/webhooks/<endpoint_id>")
def change(endpoint_id: str) -> Response:
    """Change an endpoint."""
    door.need(*BOTH)
    row, form = _find(endpoint_id), Fields(request.form)
    try:
        form.require("name", "url")
        webhook_endpoints.change(row.id, _asked(form, EndpointChange))
    except (Problem, TooManyEndpoints) as error:
        return _one(row, _problem(error))
    return _back(f"{row.id}?told=saved")


@pages.post("/webhooks/<endpoint_id>/<any(enable, disable):what>")
def switch(endpoint_id: str, what: str) -> Response:
    """Let an endpoint be told of events, or not."""
    door.need(*BOTH)
    row = _find(endpoint_id)
    webhook_endpoints.change(row.id, EndpointChange(enabled=what == "enable"))
    return _back(f"{row.id}?told={what}d")


@pages.post("/webhooks/<endpoint_id>/secret")
def rotate(endpoint_id: str) -> Response:
    """Give an endpoint another secret, and show it."""
    door.need(*BOTH)
    row, form = _find(endpoint_id), Fields(request.form)
    keep_old = form.text("old") == "keep"
    made = webhook_endpoints.renew_secret(row.id, keep_old=keep_old, once=form.once(f"secret {row.id}"))
    return _one(_find(row.id), secret=made["signing_secret"])


@pages.post("/webhooks/<endpoint_id>/test")
def test(endpoint_id: str) -> Response:
    """Send a sample event, and show what the receiver answered."""
    door.need(*BOTH)
    row, event = _find(endpoint_id), Fields(request.form).text("event_type")
    fine, words = _tested(row, event)
    told: dict[str, Any] = {"tested": words, "test_failed": not fine, "test_event": event}
    return door.fragment("webhook_tested.html", **told) if door.wants_fragment() else _one(_find(row.id), **told)


def _tested(row: AnyRow, event: str) -> tuple[bool, str]:
    """Send a sample event; return whether it was taken, and what became of it in words."""
    if event not in event_types.ALL:
        return False, "Choose an event to send."
    try:
        status = endpoint_tests.send(row, event)
    except Problem as problem:
        return False, problem.detail
    fine = status < HTTPStatus.MULTIPLE_CHOICES
    return fine, f"The receiver answered {event} with status {status}{'' if fine else ', which is no success'}."


@pages.post("/webhooks/<endpoint_id>/delete")
def delete(endpoint_id: str) -> Response:
    """Delete an endpoint."""
    door.need(*BOTH)
    row = _find(endpoint_id)
    with writing(WebhookUnknown) as tx:
        endpoints.delete(tx, g.owner, row.id)
    return _back("?told=deleted")


def _find(endpoint_id: str) -> AnyRow:
    if not is_id(PREFIX, endpoint_id):
        raise NotFound("webhook endpoint", endpoint_id[:80])
    with here().database.reading() as tx:
        return endpoints.get(tx, g.owner, endpoint_id)


def _asked(form: Fields, kind: type[T]) -> T:
    """Return what a form asks for. Raises Problem 422."""
    if not (chosen := form.texts("event_types")):
        raise fields.wrong_with([("event_types", "must be one at least")])
    asked = {
        "name": form.text("name"),
        "url": form.text("url"),
        "event_types": chosen,
        "include_result": form.text("include_result") == "yes",
        "coalesce": form.number("coalesce"),
    }
    return fields.checked(kind, asked)


def _problem(error: Problem | TooManyEndpoints) -> Problem:
    return error if isinstance(error, Problem) else Problem(HTTPStatus.UNPROCESSABLE_ENTITY, "too_many", str(error))


def _form(values: dict[str, Any], chosen: list[str], wrong: dict[str, str]) -> dict[str, Any]:
    """Return what the form of an endpoint is made of."""
    bounds = {"least_wait": LEAST_WAIT, "most_wait": MOST_WAIT}
    given = {"values": values, "chosen": chosen, "wrong": wrong, "once": fields.new_token()}
    return {"groups": _GROUPS, "event_types": event_types.ALL, **given, **bounds}


def _shown(row: AnyRow) -> dict[str, Any]:
    """Return an endpoint as the templates take it: what the API shows, and how it has fared."""
    until = row.old_secret_until
    more = {"failing_since": row.failing_since, "old_secret_until": until if (until or 0) > time.time() else None}
    return {**webhook_endpoints.document(row), **more}


def _back(where: str) -> Response:
    path = PATH + (where if where.startswith("?") else f"/{where}")
    return make_response(redirect(path, HTTPStatus.SEE_OTHER))
