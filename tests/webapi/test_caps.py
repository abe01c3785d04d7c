"""Caps on what comes in, on every route that the OpenAPI document names: depth, sizes, counts, lengths."""

from __future__ import annotations

import gzip
import http.client
import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from flask.testing import FlaskClient

from models import bulks, jobs
from models.json_text import MOST_DEPTH
from stoker.settings import Settings
from tests.models import given
from tests.webapi.bulk_kit import Service, jsonl
from tests.webapi.routes import Route, routes
from tests.webapi.test_files import FORM, form
from tests.webapi.test_gunicorn import Web
from webapi.app import create_app
from webapi.context import EXTENSION, Context

BULK = "bulk_0198f0f0f0f07f0f8f0f0f0f0f0f0f0f"
HOOK = {"name": "hook", "url": "https://example.com/hook", "event_types": ["job.succeeded"]}
TAKING = [route for route in routes() if route.takes_json]
NAMING = [route for route in routes() if route.parameters]
READING = [route for route in routes() if route.method == "GET" and not route.parameters]

HOSTILE = [
    "x" * 5000,
    "%00",
    "%0a",
    quote("ü" * 200),
    "..%2f..%2fetc",
    "%25",
    "'%20OR%201=1--",
    "-1",
    "%f0%9f%92%a9",
    "%ff",
]


@pytest.fixture
def database_url(sqlite_url: str) -> str:
    """Return an empty database of one kind: what is refused here never comes to it."""
    return sqlite_url


def deep(levels: int) -> bytes:
    """Return JSON that is nested so deep."""
    return b'{"prompt":"hi","a":' + b"[" * (levels - 1) + b"]" * (levels - 1) + b"}"


def at(client: FlaskClient, route: Route) -> str:
    """Return the path of a route that takes JSON, with the id of something whose body is read."""
    if "webhook_endpoint_id" in route.parameters:
        return route.at(webhook_endpoint_id=client.post("/v1/webhook_endpoints", json=HOOK).json["id"])
    assert set(route.parameters) <= {"bulk_id"}, "how is such a thing made?"
    return route.at(**dict.fromkeys(route.parameters, BULK))


@pytest.mark.parametrize("route", TAKING, ids=str)
def test_json_that_is_too_deep_is_refused(client: FlaskClient, context: Context, route: Route) -> None:
    """Everywhere, also where it would make a parser recurse; as is what is no JSON object."""
    path, headers = at(client, route), {"Content-Type": "application/json"}
    for body in (deep(MOST_DEPTH + 1), deep(100_000), b"[" * 1_000_000):
        answer = client.open(path, method=route.method, data=body, headers=headers)
        assert answer.status_code in {400, 422}, answer.text
        assert "nested_too_deep" in answer.text or "malformed_json" in answer.text
        assert len(answer.data) < 2000
    for body in (b"[]", b"1", b'"a"', b"nul", b"\xff\xfe{}", b'{"a":' + b"9" * 5000 + b"}", b'{"a":1e999}'):
        answer = client.open(path, method=route.method, data=body, headers=headers)
        assert 400 <= answer.status_code < 500, (body[:20], answer.text)
    assert given.rows(context.database, jobs.table) == given.rows(context.database, bulks.table) == []


@pytest.mark.parametrize("route", TAKING, ids=str)
def test_json_that_is_too_large_is_refused(settings: Settings, route: Route) -> None:
    """A body above STOKER_MAX_BODY_BYTES, with or without its length."""
    app = create_app(settings.model_copy(update={"max_body_bytes": 10_000}))
    try:
        client = app.test_client()
        body = json.dumps({"prompt": "x" * 10_000}).encode()
        answer = client.open(at(client, route), method=route.method, data=body, content_type="application/json")
        assert (answer.status_code, "body_too_large" in answer.text) == (413, True)
    finally:
        app.extensions[EXTENSION].close()


@pytest.mark.parametrize("route", NAMING, ids=str)
def test_hostile_ids_are_not_found(client: FlaskClient, route: Route) -> None:
    """Long, odd or crafted: a 4xx in few words, never an error of the server."""
    for hostile in HOSTILE:
        path = route.at(**dict.fromkeys(route.parameters, hostile))
        answer = client.open(path, method=route.method, **({"json": {}} if route.takes_json else {}))
        assert 400 <= answer.status_code < 500, (hostile[:20], answer.text)
        assert len(answer.data) < 2000


@pytest.mark.parametrize("route", READING, ids=str)
def test_hostile_queries_are_no_error(client: FlaskClient, route: Route) -> None:
    """Hundreds of parameters, long ones, NUL and bad UTF-8: taken or refused, never an error of the server."""
    many = "&".join(f"p{n}=1" for n in range(1000))
    twice = "&".join("limit=1" for _ in range(1000))
    for query in (
        many,
        twice,
        "after=" + "x" * 7000,
        "limit=" + "9" * 5000,
        "after=%00",
        "a=%ff",
        "%00=%00",
        "limit=1e9",
    ):
        answer = client.get(f"{route.path}?{query}")
        answer.close()
        assert answer.status_code < 500, (query[:20], answer.text)


def test_a_list_takes_as_many_tags_as_a_job_has(client: FlaskClient) -> None:
    """16, each of which is a condition of a query; hundreds would be a query that no database likes."""
    for path in ("/v1/jobs", "/v1/bulks"):
        tags = [f"metadata.k{n}=v" for n in range(17)]
        assert client.get(f"{path}?{'&'.join(tags[:16])}").status_code == 200
        refused = client.get(f"{path}?{'&'.join(tags)}")
        assert (refused.status_code, refused.json["code"]) == (422, "too_long")
        assert "at most 16" in refused.json["detail"]


def test_lines_that_are_too_deep_or_too_long_fail_alone(service: Service) -> None:
    """In each way in which lines come; the others run."""
    long = {"prompt": "x" * service.context.settings.max_line_bytes}
    bulk_id = service.begin(jsonl(deep(MOST_DEPTH + 1), deep(MOST_DEPTH), long, deep(100_000), {"prompt": "hi"}))
    assert [job.line_no for job in service.jobs(bulk_id)] == [2, 5]
    codes = {line["line"]: line["error"]["code"] for line in service.lines(bulk_id, "errors")}
    assert codes == {1: "nested_too_deep", 3: "line_too_large", 4: "nested_too_deep"}


@pytest.mark.parametrize(
    ("body", "what"),
    [
        (form(purpose="batch", file=("a.jsonl", b"{}"), **{f"p{n}": "x" for n in range(100)}), "parts"),
        (form(purpose="x" * 1_100_000, file=("a.jsonl", b"{}")), "a field"),
        (form(**{f"p{n}": "x" * 60_000 for n in range(20)}, file=("a.jsonl", b"{}")), "fields together"),
        (b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\nA: ' + b"x" * 1_100_000, "a header"),
        (b"x" * 1_100_000 + form(file=("a.jsonl", b"{}")), "what comes before the parts"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("path", ["/v1/files", "/v1/bulks"])
def test_forms_are_bounded(client: FlaskClient, path: str, body: bytes, what: str) -> None:
    """The number of parts, their headers and their fields; nothing is kept of one that is refused."""
    answer = client.post(path, data=body, content_type=FORM)
    assert answer.status_code == 400, what
    assert "malformed_body" in answer.text
    assert client.get("/v1/files").json["data"] == []


# gzip


def bomb(lines: int) -> bytes:
    """Return like lines of 10 kB, packed to a thousandth."""
    return gzip.compress(jsonl({"prompt": "x" * 10_000}) * lines, 9)


def test_a_gzip_bomb_fails_its_bulk_early(service: Service, settings: Settings) -> None:
    """With a code that says so, and after a few of its lines; nothing of the rest is unpacked."""
    packed = bomb(20_000)
    assert 200_000_000 / len(packed) > settings.max_gzip_ratio
    bulk_id = service.begin(packed, "application/gzip")
    read = service.jobs(bulk_id)
    assert len(read) < 400
    document = service.run(bulk_id)
    assert document["state"] == "failed"
    assert [error["code"] for error in document["errors"]] == ["gzip_ratio"]
    assert "STOKER_MAX_GZIP_RATIO" in document["errors"][0]["message"]


def test_like_lines_that_are_few_are_no_bomb(service: Service) -> None:
    """The first megabyte is taken whatever its ratio."""
    bulk_id = service.begin(bomb(99), "application/gzip")
    assert len(service.jobs(bulk_id)) == 99
    assert service.run(bulk_id)["state"] == "completed"


# The server's own


@pytest.fixture
def web(sqlite_url: str, redis_url: str, tmp_path: Path) -> Any:
    """Return a running web server."""
    made = Web(sqlite_url, redis_url, tmp_path)
    try:
        yield made.ready()
    finally:
        made.end()


@pytest.mark.journey
def test_lines_and_headers_of_a_request_are_bounded(web: Web) -> None:
    """Before anything of ours sees them: the request line, a header, the number of headers. The server goes on."""

    def status(path: str = "/livez", **headers: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", web.port, timeout=60)
        try:
            connection.request("GET", path, headers=headers)
            return connection.getresponse().status
        finally:
            connection.close()

    assert status(**{"X-Long": "x" * 8000}, **{f"X-{n}": "x" for n in range(50)}) == 200
    assert status("/livez?" + "x" * 8000) == 200
    assert 400 <= status("/livez?" + "x" * 8190) < 500
    assert 400 <= status(**{"X-Long": "x" * 9000}) < 500
    assert 400 <= status(**{f"X-{n}": "x" for n in range(70)}) < 500
    assert status() == 200
