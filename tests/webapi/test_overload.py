"""A crowd at the door: what is looked up now and then one request looks up for all, and who is too many hears so."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest
import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient

from models import engines, jobs, keys
from models.db import Database
from models.keys import Found
from stoker.settings import Settings
from tests.tasks.inprocess import until
from webapi import context as web
from webapi.auth import Keys
from webapi.context import EXTENSION, Context
from webapi.known_models import KnownModels


@contextmanager
def held_up(monkeypatch: pytest.MonkeyPatch, module: object, name: str, work: Callable[[], object]) -> Iterator[None]:
    """Let a thread do `work`, and hold it up in a function of the database for as long as the block takes."""
    real, inside, go = getattr(module, name), threading.Event(), threading.Event()

    def slow(*given: object) -> object:
        inside.set()
        go.wait(60)
        return real(*given)

    monkeypatch.setattr(module, name, slow)
    thread = threading.Thread(target=work)
    thread.start()
    assert inside.wait(60)
    try:
        yield
    finally:
        go.set()
        thread.join(60)


def test_one_reads_the_models_for_all(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """While they are read anew the others go by what is known."""
    with database.transaction() as tx:
        engines.remember(tx, "fake", None, None)
    known = KnownModels(database, keep=0.0)
    assert known.get("fake") is not None
    with held_up(monkeypatch, engines, "known", lambda: known.get("fake")):
        assert known.get("fake") is not None


def test_one_looks_at_a_key_for_all(
    app: Flask, settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a remembered key is looked at anew the others go by what is remembered."""
    monkeypatch.setattr("webapi.remembered.GRACE", 60.0)  # however slow the machine is
    secret = "sk-stoker-" + "k" * 32
    found = Found("key_1", "alice", frozenset({"read"}), None, None, unnoted=False)
    monkeypatch.setattr(keys, "find", lambda _tx, given: found if given == secret else None)
    remembered = Keys(database, settings, keep=0.0)

    def look() -> str:
        with app.test_request_context(headers={"Authorization": f"Bearer {secret}"}) as asked:
            return remembered.caller(asked.request).owner

    assert look() == "alice"
    with held_up(monkeypatch, keys, "find", look):
        assert look() == "alice"


def test_one_looks_whether_keys_are_needed_for_all(
    app: Flask, settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So it is with a service that has no keys."""
    monkeypatch.setattr("webapi.remembered.GRACE", 60.0)  # however slow the machine is
    remembered = Keys(database, settings, keep=0.0)

    def look() -> str:
        with app.test_request_context(environ_base={"REMOTE_ADDR": "127.0.0.1"}) as asked:
            return remembered.caller(asked.request).owner

    assert look() == "local"
    with held_up(monkeypatch, keys, "any_exist", look):
        assert look() == "local"


def test_who_is_too_many_is_refused_and_health_answers(client: FlaskClient, context: Context) -> None:
    """With all places at the database taken: 503 with Retry-After; the health checks have connections of their own."""
    assert client.get("/v1/jobs").status_code == 200
    with ExitStack() as taken:
        for _ in range(web.SQLITE_POOL if context.database.dialect == "sqlite" else web.POOL):
            taken.enter_context(context.database.reading())
        answer = client.post("/v1/jobs", json={"prompt": "hi"})
        assert (answer.status_code, answer.json["code"]) == (503, "overloaded")
        assert answer.headers["Retry-After"] == "1"
        assert client.post("/v1/responses", json={"model": "fake", "input": "hi"}).status_code == 503
        assert client.get("/livez").status_code == 200
        assert client.get("/readyz").status_code == 200
        assert client.get("/metrics").status_code == 200
    with context.reserve.reading() as tx:
        assert tx.execute(sa.select(sa.func.count()).select_from(jobs.table)).scalar_one() == 0
    until(lambda: client.get("/v1/jobs").status_code == 200)


def test_a_closed_context_leaves_no_connection(app: Flask) -> None:
    """Both databases are closed with it."""
    context = app.extensions[EXTENSION]
    context.close()
    assert context.database.engine.pool.checkedin() == context.reserve.engine.pool.checkedin() == 0
