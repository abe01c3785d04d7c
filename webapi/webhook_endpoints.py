"""`/v1/webhook_endpoints`: where an owner wants to be told of events, as OpenAI's API has it."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
from flask import Response, g, request
from flask_openapi.blueprint import APIBlueprint
from flask_openapi.models.tag import Tag
from pydantic import BaseModel, ValidationError

from models import addresses, endpoints, event_types
from models.db import AnyRow, is_id
from models.endpoints import NewEndpoint
from models.errors import NotFound
from models.secrets import secret_of
from webapi import access, answers, endpoint_tests, json_body, keyed
from webapi.context import here, writing
from webapi.errors import Problem, WebhookUnknown, found_by, from_pydantic, invalid
from webapi.keyed import KEYLESS, Once
from webapi.openai import openai_list, openai_problems
from webapi.openapi import body_of
from webapi.webhook_schemas import (
    DeletedEndpoint,
    Endpoint,
    EndpointChange,
    EndpointList,
    EndpointPath,
    EndpointQuery,
    EndpointRequest,
    EndpointWithSecret,
    EventTypeList,
    RotateRequest,
    TestRequest,
    TestResult,
)

T = TypeVar("T", bound=BaseModel)

api = APIBlueprint(
    "webhook_endpoints",
    __name__,
    abp_tags=[Tag(name="webhooks", description="Where to tell of events, and what became of that.")],
    abp_security=[{"key": []}],
    abp_responses=openai_problems(400, 401, 403, 500, 503),
)
api.before_request(access.admit)

PATH = "/v1/webhook_endpoints"
ONE = f"{PATH}/<webhook_endpoint_id>"
PREFIX = "whe"
KEY_BYTES = 32
_SENT = openai_problems(408, 409, 413, 415, 429)


@api.get("/v1/webhook_event_types", operation_id="listWebhookEventTypes", responses={200: EventTypeList})
def types() -> Response:
    """List the events that an endpoint can be told of."""
    return answers.respond(answers.encode({"object": "list", "data": event_types.ALL}))


@api.post(
    PATH,
    operation_id="createWebhookEndpoint",
    request_body=body_of(EndpointRequest),
    responses={200: EndpointWithSecret, **_SENT},
)
def create() -> Response:
    """Make an endpoint; the answer alone has its signing secret. With an `Idempotency-Key` once."""
    raw = json_body.read(request, here().settings.max_body_bytes)
    made, replayed = make(lambda: _checked(EndpointRequest, raw), keyed.once(raw, "webhook_endpoint"))
    return answers.respond(made, 200, **({"Idempotency_Replayed": "true"} if replayed else {}))


def make(ask: Callable[[], EndpointRequest], once: Once) -> tuple[str, bool]:
    """Make an endpoint once; return its document, with its secret, as JSON, and whether that was told before.

    Raises what `ask` does, Problem 422 for its URL, TooManyEndpoints, NoSecretKey.
    """
    secret, seal = secret_of(secrets.token_bytes(KEY_BYTES)), here().seal
    try:
        new = _new(ask(), secret)
    except Problem:
        # What was made once is answered again, even if its URL is no longer allowed.
        if (before := once.before()) is None:
            raise
        return seal.open(before), True
    with writing(WebhookUnknown) as tx:
        # The answer that is kept for the key has the secret in it: no more of it lies open than of the secret itself.
        made, replayed = once.answer(
            tx, lambda: seal.close(answers.encode(_with_secret(endpoints.create(tx, new), secret)).decode())
        )
    return seal.open(made), replayed


def _new(asked: EndpointRequest, secret: str) -> NewEndpoint:
    _check_url(asked.url)
    return NewEndpoint(
        g.owner,
        asked.name,
        asked.url,
        _distinct(asked.event_types),
        here().seal.close(secret),
        hint_of(secret),
        asked.include_result,
        asked.coalesce,
        asked.enabled,
    )


@api.get(PATH, operation_id="listWebhookEndpoints", responses={200: EndpointList})
def index(query: EndpointQuery) -> Response:
    """List endpoints, newest first."""
    if query.after is not None and not is_id(PREFIX, query.after):
        raise invalid("after", "must be the id of a webhook endpoint, the last one of the page before")
    with here().database.reading() as tx:
        rows, more = endpoints.page(tx, g.owner, after=query.after, limit=query.limit)
    return answers.respond(answers.encode(openai_list([document(row) for row in rows], more=more)))


@api.get(ONE, operation_id="getWebhookEndpoint", responses={200: Endpoint, **openai_problems(404)})
def show(path: EndpointPath) -> Response:
    """Look at an endpoint."""
    return answers.respond(answers.encode(document(_find(path))))


@api.post(
    ONE,
    operation_id="updateWebhookEndpoint",
    request_body=body_of(EndpointChange),
    responses={200: Endpoint, **openai_problems(404), **_SENT},
)
def update(path: EndpointPath) -> Response:
    """Change an endpoint; what is left out stays. `enabled: true` lets one that was disabled try again."""
    asked = _checked(EndpointChange, json_body.read(request, here().settings.max_body_bytes))
    return answers.respond(answers.encode(document(change(_id(path), asked))))


def change(endpoint_id: str, asked: EndpointChange) -> AnyRow:
    """Change an endpoint of this owner, and return it. Raises Problem 422, NotFound, TooManyEndpoints."""
    changes = asked.model_dump(exclude_unset=True)
    if "url" in changes:
        _check_url(changes["url"])
    if "event_types" in changes:
        changes["event_types"] = _distinct(changes["event_types"])
    with writing(WebhookUnknown) as tx:
        return endpoints.update(tx, g.owner, endpoint_id, **changes)


@api.delete(ONE, operation_id="deleteWebhookEndpoint", responses={200: DeletedEndpoint, **openai_problems(404)})
def delete(path: EndpointPath) -> Response:
    """Delete an endpoint; what is still on its way to it is not sent any more."""
    endpoint_id = _id(path)
    with writing(WebhookUnknown) as tx:
        endpoints.delete(tx, g.owner, endpoint_id)
    gone = {"id": endpoint_id, "object": "webhook_endpoint.deleted", "deleted": True}
    return answers.respond(answers.encode(gone))


@api.post(
    f"{ONE}/rotate_secret",
    operation_id="rotateWebhookEndpointSecret",
    request_body=body_of(RotateRequest),
    responses={200: EndpointWithSecret, **openai_problems(404), **_SENT},
)
def rotate(path: EndpointPath) -> Response:
    """Change the signing secret: at once, or with a day in which both sign."""
    asked = _checked(RotateRequest, json_body.read(request, here().settings.max_body_bytes))
    made = renew_secret(_id(path), keep_old=asked.keep_old_secret_active_for_24_hours)
    return answers.respond(answers.encode(made))


def renew_secret(endpoint_id: str, *, keep_old: bool, once: Once = KEYLESS) -> dict[str, Any]:
    """Give an endpoint another secret; return its document with it. Raises NotFound and NoSecretKey."""
    secret, seal = secret_of(secrets.token_bytes(KEY_BYTES)), here().seal
    sealed, hint = seal.close(secret), hint_of(secret)

    def make() -> str:
        row = endpoints.rotate(tx, g.owner, endpoint_id, sealed, hint, keep_old=keep_old)
        return seal.close(answers.encode(_with_secret(row, secret)).decode())

    with writing(WebhookUnknown) as tx:
        made, _ = once.answer(tx, make)
    document: dict[str, Any] = msgspec.json.decode(seal.open(made))
    return document


@api.post(
    f"{ONE}/test",
    operation_id="testWebhookEndpoint",
    request_body=body_of(TestRequest),
    responses={200: TestResult, **openai_problems(404, 502), **_SENT},
)
def test(path: EndpointPath) -> Response:
    """Send a sample event of any type, once, and tell what the receiver answered; one that is disabled gets it too."""
    endpoint_id = _id(path)
    asked = _checked(TestRequest, json_body.read(request, here().settings.max_body_bytes))
    status = endpoint_tests.send(_find(path), asked.event_type)
    result = {
        "event_type": asked.event_type,
        "object": "webhook_endpoint.test",
        "status_code": status,
        "success": True,
        "webhook_endpoint_id": endpoint_id,
    }
    return answers.respond(answers.encode(result))


def hint_of(secret: str) -> str:
    """Return what may be shown of a secret; pure."""
    return f"whsec_...{secret.rstrip('=')[-4:]}"


def document(row: AnyRow) -> dict[str, Any]:
    """Return an endpoint as its owner sees it."""
    return {
        "id": row.id,
        "object": "webhook_endpoint",
        "created_at": int(row.created_at),
        "updated_at": int(row.updated_at),
        "name": row.name,
        "url": row.url,
        "event_types": row.event_types,
        "signing_secret_hint": row.secret_hint,
        "include_result": row.include_result,
        "coalesce": row.coalesce,
        "enabled": row.disabled_at is None,
        "disabled_at": None if row.disabled_at is None else int(row.disabled_at),
        "disabled_reason": row.disabled_why,
    }


def _with_secret(row: AnyRow, secret: str) -> dict[str, Any]:
    return {**document(row), "signing_secret": secret}


def _checked(kind: type[T], raw: bytes) -> T:
    try:
        return kind.model_validate(json_body.parse(raw).values)
    except ValidationError as error:
        raise from_pydantic(found_by(error)) from None


def _distinct(types_: list[str]) -> list[str]:
    return list(dict.fromkeys(types_))


def _check_url(url: str) -> None:
    settings = here().settings
    if (why := addresses.refusal(url, settings.webhook_networks, settings.webhook_port_ranges)) is not None:
        raise invalid("url", why)


def _id(path: EndpointPath) -> str:
    if not is_id(PREFIX, path.webhook_endpoint_id):
        raise NotFound("webhook endpoint", path.webhook_endpoint_id[:80])
    return path.webhook_endpoint_id


def _find(path: EndpointPath) -> AnyRow:
    with here().database.reading() as tx:
        return endpoints.get(tx, g.owner, _id(path))
