"""`/dashboard/webhooks/deliveries`: what became of each webhook event, and how to have it sent once more."""

from __future__ import annotations

from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, get_args

from flask import Response, g, make_response, redirect, request

from models import delivery_log, endpoints, event_types
from models.db import is_id
from models.delivery_log import ENDED, Filters
from models.owed import is_test
from webapi import deliveries
from webapi.console import door
from webapi.console.fields import Fields
from webapi.context import here
from webapi.deliveries import PREFIX
from webapi.errors import invalid
from webapi.webhook_schemas import DeliveryState

pages = door.pages("deliveries")

PATH = f"{door.HOME}/webhooks/deliveries"
A_PAGE = 50
LONGEST_ID = 64
_NAMES = ("state", "event", "endpoint_id", "job_id", "since", "until")


@pages.get("/webhooks/deliveries", strict_slashes=False)
def index() -> Response:
    """List deliveries, newest first, those that the address asks for."""
    door.need("read")
    return _list(Fields(request.args))


def _list(given: Fields, **more: Any) -> Response:
    filters, after = _filters(given), _after(given)
    rows, others = here().lists.read(lambda tx: delivery_log.page(tx, g.owner, filters, after=after, limit=A_PAGE))
    with here().database.reading() as tx:
        known, _ = endpoints.page(tx, g.owner, limit=endpoints.MOST)
    return door.render(
        "webhooks_deliveries.html",
        "webhooks",
        "Deliveries",
        deliveries=[deliveries.document(row) for row in rows],
        next_after=rows[-1].id if others else None,
        after=after,
        endpoints={row.id: row.name for row in known},
        asked=_asked(filters),
        states=get_args(DeliveryState),
        ended=ENDED,
        event_types=event_types.ALL,
        **more,
    )


@pages.get("/webhooks/deliveries/<delivery_id>")
def show(delivery_id: str) -> Response:
    """Show a delivery and its tries."""
    door.need("read")
    found = deliveries.with_tries(delivery_id)
    with here().database.reading() as tx:
        known, _ = endpoints.page(tx, g.owner, limit=endpoints.MOST)
    return door.render(
        "webhook_delivery.html",
        "webhooks",
        found["event"],
        delivery=found,
        endpoint=next((row for row in known if row.id == found["endpoint_id"]), None),
        may_go_again=found["state"] in ENDED and not is_test(found["job_id"]),
        is_test=is_test(found["job_id"]),
        told="It is sent again, with the same id." if request.args.get("told") == "again" else None,
    )


@pages.post("/webhooks/deliveries/<delivery_id>/redeliver")
def redeliver(delivery_id: str) -> Response:
    """Send a delivery that has ended once more."""
    door.need("submit", "read")
    row = deliveries.send_again(delivery_id)
    return make_response(redirect(f"{PATH}/{row.id}?told=again", HTTPStatus.SEE_OTHER))


@pages.post("/webhooks/deliveries/redeliver")
def redeliver_many() -> Response:
    """Send once more what has ended of the deliveries that the form asks for, and say how many."""
    door.need("submit", "read")
    given = Fields(request.form)
    filters = _filters(given)
    if filters.state not in ENDED:
        raise invalid("state", f"must be one of {', '.join(ENDED)}: others are still on their way")
    if filters.job_id is not None:
        raise invalid("job_id", "does not narrow down what is sent again")
    sent = deliveries.send_many_again(filters, _after(given))
    # The list is shown from its beginning, wherever the sending went on.
    rest = request.form.copy()
    rest.poplist("after")
    return _list(Fields(rest), sent=sent)


def _filters(given: Fields) -> Filters:
    """Return which deliveries are meant. Raises Problem 422."""
    texts = {name: given.text(name) or None for name in ("state", "event", "endpoint_id", "job_id")}
    for name, text in texts.items():
        if text is not None and len(text) > LONGEST_ID:
            raise invalid(name, f"must be at most {LONGEST_ID} characters long")
    return Filters(**texts, since=given.moment("since"), until=given.moment("until"))


def _after(given: Fields) -> str | None:
    after = given.text("after") or None
    if after is not None and not is_id(PREFIX, after):
        raise invalid("after", "must be the id of a delivery")
    return after


def _asked(filters: Filters) -> dict[str, str]:
    """Return the filters as an address and a form say them, those that are set."""
    written = {name: getattr(filters, name) for name in _NAMES}
    for name in ("since", "until"):
        if written[name] is not None:
            written[name] = datetime.fromtimestamp(written[name], UTC).strftime("%Y-%m-%dT%H:%M")
    return {name: str(value) for name, value in written.items() if value is not None}
