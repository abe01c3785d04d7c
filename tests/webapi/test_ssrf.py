"""URLs that lead inside, through every call that takes one: refused at the door, and nothing is stored."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient

from models import bulks, deliveries, endpoints, jobs
from stoker.settings import Settings
from tests import spellings
from webapi.app import create_app
from webapi.context import EXTENSION, Context

URLS = [url.format(port=8443) for url in spellings.urls() if url]
OTHER_PORTS = [f"https://hooks.example.com:{port}/" for port in (22, 25, 81, 1023)]
PUBLIC = [
    "https://hooks.example.com/a?b=c",
    "http://8.8.8.8:8080/",
    "https://[2606:4700::1111]/",
    "HTTP://A.EXAMPLE.COM.",
]
LINE = b'{"prompt": "hi"}\n'
STORED = (jobs.table, bulks.table, deliveries.table, endpoints.table)
ENDPOINT = {"name": "mine", "event_types": ["job.failed"]}
BODIES = [
    ("/v1/jobs", {"prompt": "hi", "webhook_url": "URL"}, 422),
    ("/v1/jobs", {"prompt": "hi", "webhook": {"url": "URL"}}, 422),
    ("/v1/bulks", {"requests": [{"prompt": "hi"}], "webhook_url": "URL"}, 422),
    ("/v1/bulks", {"requests": [{"prompt": "hi"}], "webhook": {"url": "URL"}}, 422),
    ("/v1/bulks", {"input_url": "URL"}, 422),
    ("/v1/webhook_endpoints", {**ENDPOINT, "url": "URL"}, 400),
]


# What is refused comes to no database: one kind of it is enough for hundreds of URLs.
pytestmark = pytest.mark.parametrize("database_url", [pytest.param("sqlite", marks=pytest.mark.sqlite)], indirect=True)


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Return settings with a place that bulks may read from."""
    return settings.model_copy(update={"input_urls": "s3://bucket/in/,file:///srv/in/"})


@pytest.fixture
def opened(settings: Settings) -> Iterator[FlaskClient]:
    """Return a client of a service whose operator opened networks, in odd spellings."""
    changed = {"webhook_allow_cidrs": "::ffff:127.0.0.1/128, 10.1.2.3/16", "webhook_ports": "8443"}
    app = create_app(settings.model_copy(update=changed))
    yield app.test_client()
    app.extensions[EXTENSION].close()


def stored(app: Flask) -> int:
    """Return how many things are in the database."""
    context: Context = app.extensions[EXTENSION]
    with context.database.reading() as tx:
        return sum(tx.execute(sa.select(sa.func.count()).select_from(table)).scalar_one() for table in STORED)


def filled(body: dict[str, object], url: str) -> bytes:
    """Return a body with its URL."""
    return json.dumps(body).replace('"URL"', json.dumps(url)).encode()


@pytest.mark.parametrize(("path", "body", "status"), BODIES)
def test_no_body_takes_a_url_that_leads_inside(
    app: Flask, client: FlaskClient, path: str, body: dict[str, object], status: int
) -> None:
    """All spellings, wherever a body names a place: the field is named, nothing is stored."""
    for url in [*URLS, *OTHER_PORTS]:
        answer = client.post(path, data=filled(body, url), content_type="application/json")
        assert answer.status_code == status, (url, answer.text)
        assert "url" in answer.text or "nul_character" in answer.text, (url, answer.text)
    assert stored(app) == 0


def test_no_upload_takes_a_url_that_leads_inside(app: Flask, client: FlaskClient) -> None:
    """Nor does a parameter beside the lines of a bulk, in the URL or in a form."""
    for url in [*URLS, *OTHER_PORTS]:
        query = {"webhook_url": url}
        answer = client.post("/v1/bulks", data=LINE, content_type="application/x-ndjson", query_string=query)
        assert answer.status_code == 422, (url, answer.text)
        answer = client.post("/v1/bulks", data={"webhook_url": url, "file": (io.BytesIO(LINE), "in.jsonl")})
        assert answer.status_code == 422, (url, answer.text)
    assert stored(app) == 0


def test_an_endpoint_is_not_moved_inside(client: FlaskClient) -> None:
    """Its URL is judged when it changes, too."""
    made = client.post("/v1/webhook_endpoints", json={**ENDPOINT, "url": PUBLIC[0]}).json
    path = f"/v1/webhook_endpoints/{made['id']}"
    for url in URLS:
        assert client.post(path, json={"url": url}).status_code == 400, url
    assert client.get(path).json["url"] == PUBLIC[0]


@pytest.mark.parametrize(("path", "body", "status"), [one for one in BODIES if "input_url" not in one[1]])
def test_public_urls_are_taken(client: FlaskClient, path: str, body: dict[str, object], status: int) -> None:
    """The control: what leads to the internet is not refused."""
    for url in PUBLIC:
        answer = client.post(path, data=filled(body, url), content_type="application/json")
        assert answer.status_code in {200, 202}, (url, answer.text)


def test_what_the_operator_opened_is_taken(opened: FlaskClient) -> None:
    """In the networks and at the ports that they named, and nowhere else."""
    for host in ("127.0.0.1", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "10.1.255.255", "localhost", "receiver"):
        for port, status in ((8443, 202), (8444, 422), (80, 422)):
            answer = opened.post("/v1/jobs", json={"prompt": "hi", "webhook_url": f"http://{host}:{port}/"})
            assert answer.status_code == status, (host, port, answer.text)
    for host in ("127.0.0.2", "[::1]", "10.2.0.1", "169.254.169.254", "0x7f.1", "[::ffff:10.2.0.1]"):
        answer = opened.post("/v1/jobs", json={"prompt": "hi", "webhook_url": f"http://{host}:8443/"})
        assert answer.status_code == 422, (host, answer.text)
