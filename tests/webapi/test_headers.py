"""What every answer tells browsers, and which sites' pages may call the service."""

from __future__ import annotations

import hashlib
import re
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from flask import Flask
from flask.testing import FlaskClient

from models import keys
from models.db import Database
from stoker.settings import Settings
from webapi.app import create_app
from webapi.context import EXTENSION

SITE = "https://app.example.com"
ASKED = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization, content-type"}

HARDENED = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


@contextmanager
def running(settings: Settings, sites: str) -> Iterator[Flask]:
    """Run the application with pages of these sites allowed."""
    app = create_app(settings.model_copy(update={"cors_origins": sites}))
    try:
        yield app
    finally:
        app.extensions[EXTENSION].close()


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/jobs", 200),
        ("GET", "/v1/jobs/job_none", 404),
        ("POST", "/v1/jobs", 415),
        ("DELETE", "/v1/jobs", 405),
        ("GET", "/nothing", 404),
        ("GET", "/v1/files/none", 404),
        ("GET", "/livez", 200),
        ("GET", "/openapi.json", 200),
        ("GET", "/docs", 302),
        ("GET", "/docs/swagger", 200),
        ("GET", "/dashboard", 200),
        ("GET", "/static/0/console/console.css", 200),
        ("OPTIONS", "/v1/jobs", 200),
    ],
)
def test_every_answer_is_hardened(client: FlaskClient, method: str, path: str, status: int) -> None:
    """Answers, errors and pages alike: not guessed at, not framed, not embedded, and with a policy for scripts."""
    answer = client.open(path, method=method, buffered=True)
    assert answer.status_code == status
    assert {name: answer.headers.get(name) for name in HARDENED} == HARDENED
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    # A browser that must name no referrer sends `Origin: null` with the forms of our own pages.
    assert answer.headers["Referrer-Policy"] == ("same-origin" if path == "/dashboard" else "no-referrer")
    assert "camera=()" in answer.headers["Permissions-Policy"]


def test_nobody_between_keeps_what_owners_store(client: FlaskClient) -> None:
    """Answers of the API, errors too, are not to be stored."""
    for path in ("/v1/jobs", "/v1/jobs/job_none", "/v1/models", "/dashboard"):
        assert client.get(path).headers["Cache-Control"] == "no-store"


def test_an_answer_of_the_api_may_do_nothing_as_a_page(client: FlaskClient) -> None:
    """Whatever somebody makes a browser show: no script, style, image or form of it works."""
    policy = client.get("/v1/jobs").headers["Content-Security-Policy"]
    assert policy == "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


def test_the_page_of_the_api_works_and_no_other_script_does(client: FlaskClient) -> None:
    """Its own few lines are named by their hash; nothing else inline is run, and nothing comes from elsewhere."""
    page = client.get("/docs/swagger")
    policy = page.headers["Content-Security-Policy"]
    (script,) = re.findall(r"<script>(.*?)</script>", page.text, re.DOTALL)
    digest = b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'self' 'sha256-{digest}';" in policy
    assert not re.search(r"https?:|\*|unsafe", policy)
    for source in re.findall(r'(?:src|href)="(swagger/[^"]+)"', page.text):
        assert client.get(f"/docs/{source}", buffered=True).status_code == 200


def test_no_page_of_another_site_may_call_by_default(client: FlaskClient) -> None:
    """Whatever the origin, an answer has no word of CORS, and neither has that to a preflight."""
    for origin in (SITE, "null", "http://localhost:3000", "*"):
        for answer in (
            client.get("/livez", headers={"Origin": origin}),
            client.options("/v1/jobs", headers={"Origin": origin, **ASKED}),
        ):
            assert [name for name in answer.headers.keys() if name.lower().startswith("access-control")] == []  # noqa: SIM118


def test_pages_of_allowed_sites_may_call(settings: Settings, database: Database) -> None:
    """A preflight needs no key and says what may be sent; the answer tells the limits; cookies are never let in."""
    with database.transaction() as tx:
        secret = keys.create(tx, "me").secret
    with running(settings, f"{SITE}, http://[::1]:3000") as app:
        client = app.test_client()
        for site in (SITE, "http://[::1]:3000"):
            asked = client.options("/v1/jobs", headers={"Origin": site, **ASKED})
            assert asked.status_code == 200
            assert asked.headers["Access-Control-Allow-Origin"] == site
            assert "POST" in asked.headers["Access-Control-Allow-Methods"]
            assert asked.headers["Access-Control-Allow-Headers"].lower() == "authorization, content-type"
            sent = {"Origin": site, "Authorization": f"Bearer {secret}"}
            answer = client.post("/v1/jobs", json={"prompt": "hi"}, headers=sent)
            assert answer.status_code == 202
            assert answer.headers["Access-Control-Allow-Origin"] == site
            assert "Origin" in answer.headers["Vary"]
            exposed = answer.headers["Access-Control-Expose-Headers"].lower()
            for name in ("x-request-id", "retry-after", "location", "x-ratelimit-remaining-requests"):
                assert name in exposed
            assert "Access-Control-Allow-Credentials" not in answer.headers
        refused = client.get("/v1/jobs", headers={"Origin": SITE})
        assert (refused.status_code, refused.headers["Access-Control-Allow-Origin"]) == (401, SITE)


@pytest.mark.parametrize(
    "origin",
    [
        "https://app.example.com.evil.test",
        "https://evil-app.example.com",
        "http://app.example.com",
        "https://app.example.com:444",
        "https://appxexample.com",
        "https://app.example.com/",
        "https://app.example.com\t",
        "null",
        "",
        "*",
    ],
)
def test_allowed_sites_are_exact(settings: Settings, origin: str) -> None:
    """What only looks like an allowed site is none."""
    with running(settings, SITE) as app:
        client = app.test_client()
        for answer in (
            client.get("/v1/models", headers={"Origin": origin}),
            client.options("/v1/jobs", headers={"Origin": origin, **ASKED}),
        ):
            assert "Access-Control-Allow-Origin" not in answer.headers


def test_the_dashboard_is_nobody_elses(settings: Settings) -> None:
    """An allowed site may call the API with a key of its own, and never reads pages that a cookie opens."""
    with running(settings, SITE) as app:
        answer = app.test_client().get("/dashboard", headers={"Origin": SITE})
        assert "Access-Control-Allow-Origin" not in answer.headers
