"""Everything belongs to one owner: for any other it is not there, on every route that the OpenAPI document names."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any, cast

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from models import bulks, deliveries
from models.db import new_id
from tasks.bulks import tend_bulk
from tasks.doorbell import Doorbell
from tests.models import given
from tests.tasks.inprocess import Bell
from tests.webapi.bulk_kit import CHAT, LINES, Service, prompts, requests
from tests.webapi.conftest import End
from tests.webapi.routes import Route, routes
from tests.webapi.test_auth import bearer, expire_memory, made_key
from webapi.context import Context

SECRET = "only-for-ada"
NOBODYS = frozenset({"model"})
"""Parameters that name what belongs to nobody: models are the service's."""

BODIES: dict[str, dict[str, Any]] = {
    "changeBulk": {"lane": "realtime"},
    "retryBulk": {},
    "updateWebhookEndpoint": {"url": "https://example.com/other"},
    "rotateWebhookEndpointSecret": {},
    "testWebhookEndpoint": {"event_type": "job.succeeded"},
}
"""What is sent to routes that take a body: all that take JSON must be here."""

LISTS = frozenset({"/v1/jobs", "/v1/bulks", "/v1/batches", "/v1/files", "/v1/webhook_endpoints", "/v1/deliveries"})
OTHERS = frozenset(
    {
        *("/v1/models", "/v1/usage", "/v1/overview", "/v1/webhook_event_types"),
        *("/livez", "/readyz", "/metrics", "/dashboard"),
    }
)
"""What is read without an id and is no list of what owners have; usage is looked at by itself."""

SENDING = frozenset({"testWebhookEndpoint"})
"""What would send something to the address of the thing, if it is there; its own tests do, on loopback."""

Headers = Mapping[str, str]


class Owners:
    """Two owners of one service; ada has one of each thing."""

    def __init__(self, client: FlaskClient, context: Context, end: End) -> None:
        self.client, self.database, self._end = client, context.database, end
        self.ada, self.bob = (bearer(made_key(self.database, name)) for name in ("ada", "bob"))
        expire_memory(context)
        self.things = {**self._jobs(), **self._bulks(), **self._hooks()}

    def ask(self, who: Headers, method: str, path: str, **options: Any) -> TestResponse:
        """Send one request as somebody."""
        return self.client.open(path, method=method, headers={**who, **options.pop("headers", {})}, **options)

    def made(self, path: str, **options: Any) -> Any:
        """Make something as ada."""
        answer = self.ask(self.ada, "POST", path, **options)
        assert answer.status_code in {200, 201, 202}, answer.text
        return answer.json

    def _jobs(self) -> dict[str, str]:
        hook = {"url": "https://example.com/ada"}
        job_id = self.made("/v1/jobs", json={"prompt": SECRET, "metadata": {"a": SECRET}, "webhook": hook})["id"]
        self._end(job_id)
        later = {"model": "fake", "input": SECRET, "background": True}
        response_id = self.made("/v1/responses", json=later)["id"]
        (delivery,) = given.rows(self.database, deliveries.table)
        return {"job_id": job_id, "response_id": response_id, "delivery_id": delivery.id}

    def _bulks(self) -> dict[str, str]:
        bulk_id = self.made("/v1/bulks", data=prompts(2, a=SECRET), content_type=LINES)["id"]
        form = {"purpose": "batch", "file": (io.BytesIO(requests(1)), f"{SECRET}.jsonl")}
        file_id = self.made("/v1/files", data=form)["id"]
        batch = {"input_file_id": file_id, "endpoint": CHAT, "completion_window": "24h", "metadata": {"a": SECRET}}
        return {"bulk_id": bulk_id, "file_id": file_id, "batch_id": self.made("/v1/batches", json=batch)["id"]}

    def _hooks(self) -> dict[str, str]:
        if "/v1/webhook_endpoints" not in {route.path for route in routes()}:
            return {}
        hook = {"name": SECRET, "url": f"https://example.com/{SECRET}", "event_types": ["job.succeeded"]}
        return {"webhook_endpoint_id": self.made("/v1/webhook_endpoints", json=hook)["id"]}


@pytest.fixture
def owners(client: FlaskClient, context: Context, end: End) -> Owners:
    """Return two owners, one of whom has one of each thing."""
    return Owners(client, context, end)


def never(ident: str) -> str:
    """Return an id of the same kind that never was."""
    head = ident[: ident.index("-" if ident.startswith("file-") else "_")]
    return new_id(head, "-" if head == "file" else "_")


def said(answer: TestResponse, ident: str) -> Any:
    """Return an answer without what differs by nature: the id that was asked for, and the request's own."""
    document = json.loads(answer.text.replace(ident, "<id>"))
    document.pop("request_id", None)
    return answer.status_code, document, answer.headers["Content-Type"]


WITH_ID = [route for route in routes() if set(route.parameters) - NOBODYS]


def test_every_route_is_looked_at(owners: Owners) -> None:
    """A new kind of id, a new body, or a new list must be added here before it is left open."""
    assert {name for route in WITH_ID for name in route.parameters} <= owners.things.keys()
    assert {route.operation for route in WITH_ID if route.takes_json} <= BODIES.keys()
    reads = {route.path for route in routes() if route.method == "GET" and not route.parameters}
    assert reads <= LISTS | OTHERS, "is it a list of what owners have?"


@pytest.mark.parametrize("route", WITH_ID, ids=str)
def test_what_is_anothers_is_not_there(owners: Owners, route: Route) -> None:
    """404, word for word as for an id that never existed; for its owner, after that, it still is."""
    (name,) = route.parameters
    ident = owners.things[name]
    body = {"json": BODIES[route.operation]} if route.takes_json else {}
    theirs = owners.ask(owners.bob, route.method, route.at(**{name: ident}), **body)
    none = never(ident)
    nobodys = owners.ask(owners.bob, route.method, route.at(**{name: none}), **body)
    assert theirs.status_code == 404
    assert said(theirs, ident) == said(nobodys, none)
    assert SECRET not in theirs.text
    if route.operation not in SENDING:
        # The control: for its owner it is there, whatever else may be said against the request.
        answer = owners.ask(owners.ada, route.method, route.at(**{name: ident}), **body)
        answer.close()
        assert answer.status_code in {200, 202, 204, 409, 422}, answer.text


LIST_ROUTES = sorted({route.path for route in routes()} & LISTS)


@pytest.mark.parametrize("path", LIST_ROUTES)
def test_lists_show_ones_own(owners: Owners, path: str) -> None:
    """Another's list is empty, also behind one of our ids and by our tags."""
    mine = owners.ask(owners.ada, "GET", path).json["data"]
    assert mine
    for query in ("", f"?after={max(one['id'] for one in mine)}~", *(f"?after={one['id']}" for one in mine)):
        answer = owners.ask(owners.bob, "GET", path + query.replace("~", ""))
        assert answer.json["data"] == [], answer.text
        assert SECRET not in answer.text
    if path in {"/v1/jobs", "/v1/bulks"}:
        assert owners.ask(owners.bob, "GET", f"{path}?metadata.a={SECRET}").json["data"] == []
    if path == "/v1/jobs":
        assert owners.ask(owners.bob, "GET", f"{path}?bulk_id={owners.things['bulk_id']}").json["data"] == []


@pytest.mark.parametrize("path", LIST_ROUTES)
def test_a_cursor_of_anothers_tells_nothing(owners: Owners, path: str) -> None:
    """Behind another's id comes the same as behind one that never was, though it may be of the same time."""
    (theirs, *_) = [one["id"] for one in owners.ask(owners.ada, "GET", path).json["data"]]
    answers = [owners.ask(owners.bob, "GET", f"{path}?limit=1&after={ident}") for ident in (theirs, never(theirs))]
    assert said(answers[0], theirs) == said(answers[1], "~none~")


def test_anothers_file_makes_no_bulk(owners: Owners) -> None:
    """As an input it is no file, in the same words as one that never was."""
    file_id = owners.things["file_id"]
    answers = [owners.ask(owners.bob, "POST", "/v1/bulks", json={"file_id": one}) for one in (file_id, never(file_id))]
    assert answers[0].status_code == 422
    assert said(answers[0], file_id) == said(answers[1], "~none~")
    for one in (file_id, never(file_id)):
        batch = {"input_file_id": one, "endpoint": CHAT, "completion_window": "24h"}
        assert owners.ask(owners.bob, "POST", "/v1/batches", json=batch).status_code == 200
    theirs, none = [row.errors for row in given.rows(owners.database, bulks.table) if row.owner == "bob"]
    assert theirs == none
    assert theirs[0]["param"] == "file_id"


def test_anothers_job_is_no_place_in_a_bulk(owners: Owners, service: Service) -> None:
    """Behind another's line, which has a number, a bulk's jobs have no page, as behind a job that never was."""
    more = {"data": prompts(3), "content_type": LINES}
    bulk_id = owners.ask(owners.bob, "POST", "/v1/bulks", **more).json["id"]
    for one in (bulk_id, owners.things["bulk_id"]):
        tend_bulk(owners.database, service.context.settings, service.context.storage, cast("Doorbell", Bell()), one)
    (theirs, *_) = service.jobs(owners.things["bulk_id"])[1:]
    mine = service.jobs(bulk_id)[1].id
    pages = [
        owners.ask(owners.bob, "GET", f"/v1/jobs?bulk_id={bulk_id}&after={after}").json["data"]
        for after in (mine, theirs.id, never(theirs.id))
    ]
    assert [len(page) for page in pages] == [1, 0, 0]


def test_keys_of_two_owners_do_not_meet(owners: Owners) -> None:
    """The same Idempotency-Key of another owner is a new one, whatever was made with it."""
    once = {"headers": {"Idempotency-Key": "once"}}
    for path, body in (("/v1/jobs", {"prompt": "hi"}), ("/v1/bulks", {"requests": [{"prompt": "hi"}]})):
        mine = owners.made(path, json=body, headers={"Idempotency-Key": path})
        answer = owners.ask(owners.bob, "POST", path, json=body, headers={"Idempotency-Key": path})
        assert answer.status_code == 202
        assert answer.json["id"] != mine["id"]
    assert owners.made("/v1/jobs", json={"prompt": "a"}, **once)["id"]
    assert owners.ask(owners.bob, "POST", "/v1/jobs", json={"prompt": "b"}, **once).status_code == 202


def test_metrics_name_no_owner(owners: Owners) -> None:
    """Nor anything of what they sent."""
    text = owners.ask(owners.bob, "GET", "/metrics").text
    assert "ada" not in text.replace("adaptive", "").replace("metadata", "")
    assert SECRET not in text
    assert not any(ident in text for ident in owners.things.values())


def test_usage_is_ones_own(owners: Owners) -> None:
    """Another's is not counted, and not for the asking either."""
    assert owners.ask(owners.ada, "GET", "/v1/usage").json["data"]
    assert owners.ask(owners.bob, "GET", "/v1/usage").json["data"] == []
    asked = owners.ask(owners.bob, "GET", "/v1/usage?owner=ada")
    assert asked.status_code == 403
    assert "succeeded" not in asked.text
