"""The dashboard and its headers as they are deployed: gunicorn with two processes."""

from __future__ import annotations

import select
import socket
import time
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
    assert httpx.post(f"{web.url}/dashboard/login", data=form, timeout=60).status_code == 403


class Hasty(Web):
    """A web server that lets a form take a second."""

    python = (
        "-c",
        "import webapi.dashboard as pages; pages.FORM_WITHIN = 1.0; from gunicorn.app.wsgiapp import run; run()",
    )


@pytest.mark.parametrize("path", ["login", "logout"])
def test_a_form_that_trickles_is_cut_off(
    sqlite_url: str, sqlite_database: Database, redis_url: str, tmp_path: Path, path: str
) -> None:
    """With 408 when its time is up, whoever sends it."""
    with sqlite_database.transaction() as tx:
        secret = keys.create(tx, "alice").secret
    web = Hasty(sqlite_url, redis_url, tmp_path, STOKER_SECRET_KEY=SECRET_KEY)
    try:
        with httpx.Client(base_url=web.ready().url, timeout=60) as browser:
            token = browser.get("/dashboard").text.split('name="csrf" value="')[1].split('"')[0]
            if path == "logout":
                browser.post("/dashboard/login", data={"key": secret, "csrf": token})
            cookies = "; ".join(f"{cookie.name}={cookie.value}" for cookie in browser.cookies.jar)
        assert trickled(web.port, f"/dashboard/{path}", cookies) == b"HTTP/1.1 408 "
    finally:
        web.end()


def trickled(port: int, path: str, cookies: str) -> bytes:
    """Send a form a byte at a time, and return how its answer begins."""
    kind = "Content-Type: application/x-www-form-urlencoded"
    head = [f"POST {path} HTTP/1.1", f"Host: 127.0.0.1:{port}", kind, f"Cookie: {cookies}", "Content-Length: 9000"]
    started = time.monotonic()
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall("\r\n".join([*head, "", "csrf="]).encode())
        while not select.select([connection], [], [], 0.2)[0]:
            assert time.monotonic() - started < 60
            connection.sendall(b"x")
        assert time.monotonic() - started >= 1
        return connection.recv(13)


def test_no_answer_tells_a_version(web: Web) -> None:
    """Not of the server, nor of what it is written in, whatever is asked."""
    for path in ("/livez", "/nothing", "/docs", "/dashboard", "/static/0/console/console.css", "/v1/jobs?limit=x"):
        answer = httpx.get(f"{web.url}{path}", timeout=60)
        assert answer.headers["server"] == "gunicorn"
        assert "x-powered-by" not in answer.headers
        assert answer.headers["x-frame-options"] == "DENY"


def test_a_proxy_that_ends_tls_makes_cookies_secure(web: Web, sqlite_database: Database) -> None:
    """A proxy of this machine says that the browser came by https; the cookies are then for https alone."""
    with sqlite_database.transaction() as tx:
        keys.create(tx, "alice")
    plain = httpx.get(f"{web.url}/dashboard", timeout=60).headers["set-cookie"]
    https = {"X-Forwarded-Proto": "https"}
    proxied = httpx.get(f"{web.url}/dashboard", headers=https, timeout=60).headers["set-cookie"]
    assert ("Secure" in plain, "Secure" in proxied) == (False, True)
