"""The requests about webhooks: what each is sent as, and what its answer is read as. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx

from stoker.calls import given, keyed, many, nothing, one, part
from stoker.steps import Call
from stoker.webhook_resources import Delivery, Redelivered, WebhookEndpoint

ENDPOINTS, DELIVERIES = "/v1/webhook_endpoints", "/v1/deliveries"
TEST_TIMEOUT = 90.0
"""Seconds that the service may take for a test: one try of a delivery, and until a worker comes to it."""


def create(params: Mapping[str, Any], key: str | None) -> Call[WebhookEndpoint]:
    """Make an endpoint."""
    return Call(
        "POST", ENDPOINTS, one(WebhookEndpoint), {"json": given(params), "headers": keyed(key)}, repeatable=True
    )


def endpoint(endpoint_id: str) -> Call[WebhookEndpoint]:
    """Look at an endpoint."""
    return Call("GET", _one(endpoint_id), one(WebhookEndpoint), repeatable=True)


def endpoints(filters: Mapping[str, Any]) -> Call[list[WebhookEndpoint]]:
    """List endpoints."""
    return Call("GET", ENDPOINTS, many(WebhookEndpoint), {"params": given(filters)}, repeatable=True)


def event_types() -> Call[list[str]]:
    """List the events that an endpoint can be told of."""
    return Call("GET", "/v1/webhook_event_types", _names, repeatable=True)


def update(endpoint_id: str, changes: Mapping[str, Any]) -> Call[WebhookEndpoint]:
    """Change an endpoint: the same twice is the same once."""
    return Call("POST", _one(endpoint_id), one(WebhookEndpoint), {"json": changes}, repeatable=True)


def delete(endpoint_id: str) -> Call[None]:
    """Delete an endpoint."""
    return Call("DELETE", _one(endpoint_id), nothing)


def rotate(endpoint_id: str, *, keep_old: bool) -> Call[WebhookEndpoint]:
    """Change the signing secret. Not repeatable: the second one would drive out the first."""
    body = {"keep_old_secret_active_for_24_hours": keep_old}
    return Call("POST", f"{_one(endpoint_id)}/rotate_secret", one(WebhookEndpoint), {"json": body})


def test(endpoint_id: str, event_type: str) -> Call[int]:
    """Send a sample event; the answer is the receiver's status."""
    options = {"json": {"event_type": event_type}, "timeout": TEST_TIMEOUT}
    return Call("POST", f"{_one(endpoint_id)}/test", _status, options)


def delivery(delivery_id: str) -> Call[Delivery]:
    """Look at a delivery and its tries."""
    return Call("GET", f"{DELIVERIES}/{part(delivery_id)}", one(Delivery), repeatable=True)


def deliveries(filters: Mapping[str, Any]) -> Call[list[Delivery]]:
    """List deliveries."""
    return Call("GET", DELIVERIES, many(Delivery), {"params": given(filters)}, repeatable=True)


def redeliver(delivery_id: str) -> Call[Delivery]:
    """Send a delivery once more."""
    return Call("POST", f"{DELIVERIES}/{part(delivery_id)}/redeliver", one(Delivery))


def redeliver_many(filters: Mapping[str, Any]) -> Call[Redelivered]:
    """Send many deliveries once more."""
    return Call("POST", f"{DELIVERIES}/redeliver", one(Redelivered), {"json": given(filters)})


def _one(endpoint_id: str) -> str:
    return f"{ENDPOINTS}/{part(endpoint_id)}"


def _names(answer: httpx.Response) -> list[str]:
    return [str(name) for name in answer.json()["data"]]


def _status(answer: httpx.Response) -> int:
    return int(answer.json()["status_code"])
