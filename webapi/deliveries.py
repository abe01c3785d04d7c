"""`/v1/deliveries`: what became of each webhook event, and how to have it sent once more."""

from __future__ import annotations

from typing import Any

from flask import Response, g, request
from flask_openapi.blueprint import APIBlueprint
from flask_openapi.models.tag import Tag
from pydantic import ValidationError

from models import delivery_log
from models.db import AnyRow, is_id
from models.delivery_log import Filters
from models.errors import NotFound
from webapi import access, answers, json_body
from webapi.context import here, writing
from webapi.errors import WebhookUnknown, found_by, from_pydantic, invalid
from webapi.openapi import body_of, problems
from webapi.webhook_schemas import (
    Delivery,
    DeliveryList,
    DeliveryPath,
    DeliveryQuery,
    DeliveryWithTries,
    Redelivered,
    RedeliverRequest,
)

api = APIBlueprint(
    "deliveries",
    __name__,
    url_prefix="/v1/deliveries",
    abp_tags=[Tag(name="webhooks", description="Where to tell of events, and what became of that.")],
    abp_security=[{"key": []}],
    abp_responses=problems(401, 403, 422, 500, 503),
)
api.before_request(access.admit)

PREFIX = "msg"
MOST_AGAIN, SLICE = 10_000, 500
"""Deliveries that one call sends once more, and in one transaction."""


@api.get("", operation_id="listDeliveries", responses={200: DeliveryList})
def index(query: DeliveryQuery) -> Response:
    """List deliveries, newest first."""
    _check_after(query.after)
    for name in ("event", "endpoint_id", "job_id"):
        if "\x00" in (getattr(query, name) or ""):
            raise invalid(name, "must not have a NUL character")
    filters = Filters(query.state, query.event, query.endpoint_id, query.job_id)
    rows, more = here().lists.read(
        lambda tx: delivery_log.page(tx, g.owner, filters, after=query.after, limit=query.limit)
    )
    page = {
        "object": "list",
        "data": [document(row) for row in rows],
        "has_more": more,
        "next_after": rows[-1].id if more else None,
    }
    return answers.respond(answers.encode(page))


@api.get("/<delivery_id>", operation_id="getDelivery", responses={200: DeliveryWithTries, **problems(404)})
def show(path: DeliveryPath) -> Response:
    """Look at a delivery and its tries."""
    return answers.respond(answers.encode(with_tries(path.delivery_id)))


def with_tries(delivery_id: str) -> dict[str, Any]:
    """Return a delivery of this owner, and its tries. Raises NotFound."""
    with here().database.reading() as tx:
        row = delivery_log.get(tx, g.owner, _checked(delivery_id))
        history = delivery_log.history(tx, row)
    return {**document(row), "tries": tries(row, history)}


@api.post("/<delivery_id>/redeliver", operation_id="redeliver", responses={202: Delivery, **problems(404, 409)})
def redeliver(path: DeliveryPath) -> Response:
    """Send a delivery that has ended once more: the same id and body, and the schedule from its beginning."""
    return answers.respond(answers.encode(document(send_again(path.delivery_id))), 202)


def send_again(delivery_id: str) -> AnyRow:
    """Send a delivery of this owner once more. Raises NotFound, NotEnded, TestOnly, TriedTooOften."""
    with writing(WebhookUnknown) as tx:
        row = delivery_log.redeliver(tx, g.owner, _checked(delivery_id))
    here().doorbell.ring_deliver()
    return row


@api.post(
    "/redeliver",
    operation_id="redeliverMany",
    request_body=body_of(RedeliverRequest),
    responses={202: Redelivered, **problems(400, 408, 413, 415)},
)
def redeliver_many() -> Response:
    """Send many deliveries that have ended once more, oldest first: at most 10,000 a call."""
    try:
        raw = json_body.read(request, here().settings.max_body_bytes)
        asked = RedeliverRequest.model_validate(json_body.parse(raw).values)
    except ValidationError as error:
        raise from_pydantic(found_by(error)) from None
    _check_after(asked.after)
    filters = Filters(
        asked.state, asked.event, asked.endpoint_id, since=asked.created_after, until=asked.created_before
    )
    return answers.respond(answers.encode(send_many_again(filters, asked.after)), 202)


def send_many_again(filters: Filters, after: str | None = None) -> dict[str, Any]:
    """Send what has ended of an owner's deliveries once more; return how many, and where to go on."""
    many, more = 0, True
    while more and many + SLICE <= MOST_AGAIN:
        with writing(WebhookUnknown) as tx:
            these, behind = delivery_log.redeliver_some(tx, g.owner, filters, after=after, limit=SLICE)
        many, more, after = many + these, behind is not None, behind or after
        if these:
            here().doorbell.ring_deliver()
    return {
        "object": "deliveries.redelivered",
        "redelivered": many,
        "has_more": more,
        "next_after": after if more else None,
    }


def document(row: AnyRow) -> dict[str, Any]:
    """Return a delivery as its owner sees it."""
    return {
        "id": row.id,
        "object": "delivery",
        "state": row.state,
        "event": row.event,
        "job_id": row.job_id,
        "endpoint_id": row.endpoint_id or None,
        "url": row.url,
        "group_id": row.group_id,
        "attempts": row._mapping["try"],  # noqa: SLF001  # SQLAlchemy's name for it: `try` is no attribute
        "created_at": round(row.created_at, 3),
        "delivered_at": None if row.delivered_at is None else round(row.delivered_at, 3),
        "next_attempt_at": round(row.next_at, 3) if row.state == "pending" else None,
        "status_code": row.status,
        "latency_ms": row.latency_ms,
        "error": row.error,
        "answer": row.answer,
    }


def tries(row: AnyRow, history: Any) -> list[dict[str, Any]]:
    """Return the tries of a delivery, the last among them; pure."""
    found = [
        {
            "attempt": one.nth,
            "at": round(one.at, 3),
            "status_code": one.status,
            "latency_ms": one.latency_ms,
            "error": one.error,
        }
        for one in history
    ]
    last = row._mapping["try"]  # noqa: SLF001  # as above
    if row.state in delivery_log.ENDED and last and last not in {one["attempt"] for one in found}:
        at = None if row.delivered_at is None else round(row.delivered_at, 3)
        outcome = {"status_code": row.status, "latency_ms": row.latency_ms, "error": row.error}
        found.append({"attempt": last, "at": at, **outcome})
    return found


def _checked(delivery_id: str) -> str:
    if not is_id(PREFIX, delivery_id):
        raise NotFound("delivery", delivery_id[:80])
    return delivery_id


def _check_after(after: str | None) -> None:
    if after is not None and not is_id(PREFIX, after):
        raise invalid("after", "must be the id of a delivery (the last one of the page before)")
