"""The dashboard and its headers as they are deployed: gunicorn with two processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from models import keys
from models.db import Database
from tests.conftest import SECRET_KEY
from tests.webapi.test_gunicorn import Web

pytestmark = pytest.mark.journey


@pytest.fixture
def web(sqlite_url: str, redis_url: str, tmp_path: Path) -> Iterator[Web]:
    """Return a running web server with two processes and a secret key."""
    made = Web(sqlite_url, redis_url, tmp_path, STOKER_WEB_WORKERS="2", STOKER_SECRET_KEY=SECRET_KEY)
    try:
        yield made.ready()
    finally:
        made.end()


def test_every_process_knows_a_login(web: Web, sqlite_database: Database) -> None:
    """Form, login and requests may each be served by another process; a stranger's form logs nobody in."""
    with sqlite_database.transaction() as tx:
        secret = keys.create(tx, "alice").secret
    for _ in range(5):
        with httpx.Client(base_url=web.url, timeout=60) as browser:
            page = browser.get("/dashboard").text
            token = page.split('name="csrf" value="')[1].split('"')[0]
            form = {"key": secret, "csrf": token}
            # Each connection anew, so that either process may get it.
            close = {"Connection": "close"}
            assert browser.post("/dashboard/login", data=form, headers=close).status_code == 303
            for _ in range(5):
                assert browser.get("/v1/jobs", headers=close).status_code == 200
    assert httpx.post(f"{web.url}/dashboard/login", data=form).status_code == 403


def test_no_answer_tells_a_version(web: Web) -> None:
    """Not of the server, nor of what it is written in, whatever is asked."""
    for path in ("/livez", "/nothing", "/docs", "/dashboard", "/static/dashboard.css", "/v1/jobs?limit=x"):
        answer = httpx.get(f"{web.url}{path}")
        assert answer.headers["server"] == "gunicorn"
        assert "x-powered-by" not in answer.headers
        assert answer.headers["x-frame-options"] == "DENY"


def test_a_proxy_that_ends_tls_makes_cookies_secure(web: Web, sqlite_database: Database) -> None:
    """A proxy of this machine says that the browser came by https; the cookies are then for https alone."""
    with sqlite_database.transaction() as tx:
        keys.create(tx, "alice")
    plain = httpx.get(f"{web.url}/dashboard").headers["set-cookie"]
    proxied = httpx.get(f"{web.url}/dashboard", headers={"X-Forwarded-Proto": "https"}).headers["set-cookie"]
    assert ("Secure" in plain, "Secure" in proxied) == (False, True)
