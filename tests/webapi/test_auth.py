"""Who may call, and as whom."""

from __future__ import annotations

import inspect
import time
from types import SimpleNamespace

import pytest
from flask.testing import FlaskClient

from models import keys
from models.db import Database
from stoker.settings import Settings
from tests.webapi.key_kit import FirstHangs
from webapi import auth, remembered
from webapi.app import StartError, create_app
from webapi.auth import Keys
from webapi.context import EXTENSION, Context


def made_key(database: Database, owner: str = "ada") -> str:
    """Make a key and return its secret."""
    with database.transaction() as tx:
        return keys.create(tx, owner).secret


def bearer(secret: str) -> dict[str, str]:
    """Return the header that carries a key."""
    return {"Authorization": f"Bearer {secret}"}


def expire_memory(context: Context) -> None:
    """Let what the process remembers of keys be too old."""
    context.keys._callers.clear()
    context.keys._open.clear()


def test_without_keys_this_machine_is_served(client: FlaskClient) -> None:
    """Open on loopback while no key exists; the key that an OpenAI client always sends does not matter."""
    assert client.get("/v1/jobs").status_code == 200
    assert client.get("/v1/jobs", headers=bearer("sk-whatever")).status_code == 200
    assert client.get("/v1/jobs", headers=bearer("sk-stoker-wrong")).status_code == 401


@pytest.mark.parametrize(
    ("environ", "headers", "status"),
    [
        ({"REMOTE_ADDR": "10.0.0.7"}, {}, 401),
        ({"REMOTE_ADDR": "::ffff:10.0.0.7"}, {}, 401),
        ({"REMOTE_ADDR": ""}, {}, 401),
        ({}, {"X-Forwarded-For": "10.0.0.7"}, 401),
        ({}, {"Forwarded": "for=10.0.0.7"}, 401),
        ({}, {"Host": "rebound.example"}, 403),
        ({}, {"Host": "127.0.0.1.example:8000"}, 403),
        ({}, {"Host": "[::1"}, 403),
        ({}, {"Origin": "https://evil.example"}, 403),
        ({}, {"Origin": "null"}, 403),
        ({}, {"Host": "localhost:8000"}, 200),
        ({}, {"Host": "[::1]:8000"}, 200),
        ({"REMOTE_ADDR": "::1"}, {"Host": "127.0.0.1"}, 200),
        ({}, {"Origin": "http://localhost:3000"}, 200),
    ],
)
def test_without_keys_nobody_else_is(
    client: FlaskClient, environ: dict[str, str], headers: dict[str, str], status: int
) -> None:
    """No other address, no proxy, no name that leads here by chance, no page of another site."""
    answer = client.get("/v1/jobs", environ_overrides=environ, headers=headers)
    assert answer.status_code == status
    if status == 401:
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")
    if status != 200:
        assert "stoker keys create" in answer.json["detail"]


def test_with_a_key_every_request_needs_one(client: FlaskClient, context: Context, database: Database) -> None:
    """From the first key on, loopback too; health and the documents stay open."""
    secret = made_key(database)
    expire_memory(context)
    assert client.get("/v1/jobs").status_code == 401
    assert client.get("/v1/jobs", headers={"Authorization": f"Basic {secret}"}).status_code == 401
    assert client.get("/v1/jobs", headers=bearer(secret + "x")).status_code == 401
    assert client.get("/v1/jobs", headers={"Authorization": f"bearer {secret}"}).status_code == 200
    far = client.get(
        "/v1/jobs", headers=bearer(secret) | {"Host": "gpu.example"}, environ_base={"REMOTE_ADDR": "10.1.1.1"}
    )
    assert far.status_code == 200
    for path in ("/livez", "/readyz", "/metrics", "/openapi.json", "/docs/swagger"):
        assert client.get(path).status_code == 200


def test_a_revoked_key_stops_within_seconds(
    client: FlaskClient, context: Context, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A key is remembered for three seconds, without a query for each request, and no longer."""
    secret = made_key(database)
    assert client.get("/v1/jobs", headers=bearer(secret)).status_code == 200
    with database.transaction() as tx:
        tx.execute(keys.table.update().values(revoked_at=time.time()))
    later = time.monotonic() + 3.1
    monkeypatch.setattr(remembered, "time", SimpleNamespace(monotonic=lambda: later))
    assert client.get("/v1/jobs", headers=bearer(secret)).status_code == 401


@pytest.mark.parametrize(
    ("grace", "expires_in", "served"), [(60.0, None, True), (0.1, None, False), (600.0, 60.0, False)]
)
def test_what_is_remembered_serves_a_crowd_for_a_moment(
    settings: Settings,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    grace: float,
    expires_in: float | None,
    served: bool,
) -> None:
    """While one looks a key up the others are let in as before, but not beyond the grace, nor the key's own end."""
    monkeypatch.setattr(remembered, "GRACE", grace)
    remembering = Keys(database, settings, keep=0.0)
    with database.transaction() as tx:
        made = keys.create(tx, "ada", expires_in=expires_in)
    assert remembering.of_secret(made.secret)
    with database.transaction() as tx:
        keys.revoke(tx, made.id)
    look = FirstHangs(keys.find)
    monkeypatch.setattr(keys, "find", look)
    with look.holding(lambda: remembering.of_secret(made.secret)):
        later = time.monotonic() + (expires_in or 0.2)
        monkeypatch.setattr(remembered, "time", SimpleNamespace(monotonic=lambda: later))
        assert (remembering.of_secret(made.secret) is not None) is served
    assert look.calls == (1 if served else 2)
    assert remembering.of_secret(made.secret) is None
    remembering.close()


@pytest.mark.parametrize(("grace", "served"), [(60.0, True), (0.1, False)])
def test_a_crowd_is_not_served_without_keys_for_long(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch, grace: float, served: bool
) -> None:
    """While one looks whether there is a key now, an open service stays open for the grace and no longer."""
    monkeypatch.setattr(remembered, "GRACE", grace)
    remembering = Keys(database, settings, keep=0.0)
    assert remembering.is_open()
    made_key(database)
    look = FirstHangs(auth.any_exist)
    monkeypatch.setattr(auth, "any_exist", look)
    with look.holding(remembering.is_open):
        time.sleep(0.2)
        assert remembering.is_open() is served
    assert look.calls == (1 if served else 2)
    assert not remembering.is_open()
    remembering.close()


def test_what_is_remembered_is_gone_within_the_promise() -> None:
    """Three seconds, the grace included, and a little for the look-up."""
    keep = inspect.signature(Keys).parameters["keep"].default
    assert keep + remembered.GRACE <= 2.9


def test_remembered_keys_are_bounded(context: Context, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many keys are used, the process remembers a bounded number, and no secret in the clear."""
    monkeypatch.setattr(remembered, "MOST", 3)
    for secret in [made_key(database) for _ in range(8)]:
        assert context.keys.of_secret(secret).owner == "ada"
        assert len(context.keys._callers._known) <= 3
        assert secret not in repr(context.keys._callers._known)


def test_an_open_address_needs_a_key_to_start(settings: Settings, database: Database) -> None:
    """Without a key the server does not start where others can reach it, and says what to do; with one it does."""
    exposed = settings.model_copy(update={"host": "0.0.0.0"})  # noqa: S104  # nothing listens in this test
    with pytest.raises(StartError, match="stoker keys create"):
        create_app(exposed)
    secret = made_key(database)
    app = create_app(exposed)
    assert app.test_client().get("/v1/jobs").status_code == 401
    assert app.test_client().get("/v1/jobs", headers=bearer(secret)).status_code == 200
    app.extensions[EXTENSION].close()


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("[::1]", True),
        ("LocalHost", True),
        ("::ffff:127.0.0.1", True),
        ("0.0.0.0", False),  # noqa: S104
        ("::", False),
        ("", False),
        ("10.0.0.1", False),
        ("localhost.example", False),
        ("2130706433", False),
    ],
)
def test_loopback(host: str, loopback: bool) -> None:
    """Only what is this machine and nothing else counts."""
    assert auth.is_loopback(host) is loopback
