"""The door: what a key may do is asked at every call of the API, and said in the shape of its surface."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from models import engines, jobs, keys, usage
from models.db import Database
from models.results import NewResult
from tests.models import given
from tests.tasks.inprocess import until
from tests.webapi.conftest import End
from tests.webapi.key_kit import bearer, key_of
from webapi import access, remembered
from webapi.context import Context
from webapi.key_uses import KeyUses

OPEN = {"/livez", "/readyz", "/metrics", "/openapi.json"}
"""Calls that need no key."""


def calls(app: Flask) -> list[tuple[str, str]]:
    """Return every call of the API, with ids that do not exist."""
    found = []
    for rule in app.url_map.iter_rules():
        if rule.rule.startswith("/v1/"):
            path = rule.rule
            for name in rule.arguments:
                path = path.replace(f"<{name}>", "x_1").replace(f"<path:{name}>", "x_1")
            found += [(method, path) for method in sorted(rule.methods or ()) if method != "OPTIONS"]
    return found


def code_of(answer: Any) -> str | None:
    """Return the code of an error, whichever its shape."""
    document = answer.json or {}
    found: str | None = document.get("code") or (document.get("error") or {}).get("code")
    return found


def test_no_call_is_answered_without_a_key(app: Flask, client: FlaskClient, database: Database) -> None:
    """Once there is one; each is asked for it, none forgets."""
    key_of(database)
    asked = calls(app)
    assert len(asked) > 50
    refused = {(method, path) for method, path in asked if client.open(path, method=method).status_code == 401}
    assert refused == set(asked)


def test_reading_and_submitting_are_two_things(app: Flask, client: FlaskClient, database: Database) -> None:
    """A key that may only read changes nothing, one that may only submit reads nothing; the answer says what lacks."""
    reader, submitter = key_of(database, scopes=["read"]), key_of(database, scopes=["submit"])
    for method, path in calls(app):
        reads = method in access.READING
        allowed, refused = (reader, submitter) if reads else (submitter, reader)
        answer = client.open(path, method=method, headers=refused)
        assert answer.status_code == 403, (method, path)
        if method != "HEAD":
            assert code_of(answer) == "missing_scope"
            assert ("read" if reads else "submit") in answer.text
        both = not reads and path.startswith(access.BOTH)
        assert (client.open(path, method=method, headers=allowed).status_code == 403) is both, (method, path)


def test_a_refusal_stores_nothing(client: FlaskClient, database: Database) -> None:
    """On both surfaces, each in its shape."""
    headers = key_of(database, scopes=["read"])
    with database.transaction() as tx:
        engines.remember(tx, "fake", None, None)
    native = client.post("/v1/jobs", json={"prompt": "hi"}, headers=headers)
    assert (native.mimetype, native.json["code"]) == ("application/problem+json", "missing_scope")
    said = client.post("/v1/chat/completions", json={"model": "fake", "messages": []}, headers=headers)
    assert said.json["error"]["type"] == "invalid_request_error"
    assert said.json["error"]["code"] == "missing_scope"
    assert given.rows(database, jobs.table) == []


def test_admin_may_do_everything(app: Flask, client: FlaskClient, database: Database) -> None:
    """Whatever else it names."""
    headers = key_of(database, scopes=["admin"])
    for method, path in calls(app):
        assert client.open(path, method=method, headers=headers).status_code not in {401, 403}, (method, path)


def test_usage_is_ones_own(client: FlaskClient, database: Database, end: End) -> None:
    """By day and model, between days; another's, or all, only by the scope admin."""
    for owner in ("ada", "bob"):
        end(given.submitted(database, 1, owner=owner)[0], NewResult(200, "{}", prompt_tokens=5, completion_tokens=2))
    ada, admin = key_of(database), key_of(database, "root", ["admin"])
    document = client.get("/v1/usage", headers=ada).json
    (row,) = document["data"]
    assert (row["owner"], row["date"]) == ("ada", document["to"])
    assert row["jobs"] == {"succeeded": 1, "failed": 0, "cancelled": 0, "expired": 0}
    assert row["tokens"] == {"prompt": 5, "completion": 2, "cached": 0, "reasoning": 0, "total": 7}
    assert client.get("/v1/usage?owner=ada", headers=ada).json == document
    for other in ("bob", "*", "nobody"):
        refused = client.get("/v1/usage", query_string={"owner": other}, headers=ada)
        assert (refused.status_code, refused.json["code"]) == (403, "missing_scope")
    assert client.get("/v1/usage", headers=admin).json["data"] == []
    assert [row["owner"] for row in client.get("/v1/usage?owner=*", headers=admin).json["data"]] == ["ada", "bob"]
    assert len(client.get("/v1/usage?owner=bob", headers=admin).json["data"]) == 1
    assert client.get(f"/v1/usage?model={row['model']}", headers=ada).json["data"] == [row]
    assert client.get("/v1/usage?model=none", headers=ada).json["data"] == []
    past = client.get("/v1/usage?from=2020-01-01&to=2020-02-29", headers=ada).json
    assert (past["from"], past["to"], past["data"]) == ("2020-01-01", "2020-02-29", [])


@pytest.mark.parametrize(
    "query",
    [
        "from=yesterday",
        "from=2026-02-30",
        "from=2026-11-28T00:00:00",
        "from=2026-11-28&to=2026-11-27",
        "to=0001-01-05",
        "days=7",
        "model=%00",
        "owner=%00",
        "first=2026-11-28",
    ],
)
def test_bad_days_are_refused(client: FlaskClient, query: str) -> None:
    """With 422, whatever they look like."""
    assert client.get(f"/v1/usage?{query}").status_code == 422


def test_too_many_rows_are_not_read(client: FlaskClient, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer says how to ask for fewer."""
    monkeypatch.setattr("webapi.usage.MOST_ROWS", 1)
    with database.transaction() as tx:
        day = usage.day(tx)
        row = {"owner": "local", "engine": "", "day": day} | dict.fromkeys(usage.STATES + usage.TOKENS, 1)
        tx.execute(usage.table.insert(), [row | {"model": model} for model in ("a", "b")])
    answer = client.get("/v1/usage")
    assert answer.status_code == 422
    assert "fewer days" in answer.json["detail"]
    assert len(client.get("/v1/usage?model=a").json["data"]) == 1


def test_an_expired_key_stops_on_time(
    client: FlaskClient, context: Context, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not three seconds later, though it was remembered; and it does not open the service."""
    # Remembered for much longer than it lasts; and it lasts longer than a slow machine takes to use it.
    monkeypatch.setattr(context.keys._callers, "_keep", 600.0)
    with database.transaction() as tx:
        secret = keys.create(tx, "ada", expires_in=60.0).secret
    assert client.get("/v1/jobs", headers=bearer(secret)).status_code == 200
    given.change(database, keys.table, expires_at=1.0)
    assert client.get("/v1/jobs", headers=bearer(secret)).status_code == 200
    later = time.monotonic() + 60
    monkeypatch.setattr(remembered, "time", SimpleNamespace(monotonic=lambda: later))
    assert client.get("/v1/jobs", headers=bearer(secret)).status_code == 401
    assert client.get("/v1/jobs").status_code == 401


def test_the_use_of_a_key_is_noted_behind_the_request(
    client: FlaskClient, context: Context, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By another thread, once, whether the request succeeds or not; nobody waits for it."""
    monkeypatch.setattr(context.keys, "_uses", KeyUses(database, gather=0.05))
    headers = key_of(database)
    for _ in range(3):
        assert client.get("/v1/jobs/job_1", headers=headers).status_code == 404
    until(lambda: given.rows(database, keys.table)[0].last_used_at is not None)
    context.keys.close()


def test_a_use_that_cannot_be_noted_is_dropped(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """The request does not fail, and the thread goes on."""
    uses, tries = KeyUses(database, gather=0.01), []

    def fail(_tx: object, ids: set[str]) -> None:
        tries.append(ids)
        raise ZeroDivisionError

    monkeypatch.setattr(keys, "note_used", fail)
    for _ in range(2):
        uses.note("key_1")
        until(lambda: bool(tries))
        assert tries.pop() == {"key_1"}
    uses.close()


def test_a_preflight_needs_no_key(client: FlaskClient, database: Database) -> None:
    """A browser asks which methods there are before it sends one; that tells nothing of anybody."""
    key_of(database)
    answer = client.options("/v1/jobs")
    assert answer.status_code == 200
    assert answer.data == b""
