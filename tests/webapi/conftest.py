"""The web application over each kind of database, and ways to bring a job further without an engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from flask import Flask
from flask.testing import FlaskClient

from models import ends, jobs
from models.db import Database, new_id
from models.ends import Settled
from models.results import NewResult
from stoker.settings import Settings
from tests.webapi.bulk_kit import Service
from webapi.app import create_app
from webapi.context import EXTENSION, Context
from webapi.doorbell import Doorbell

ANSWER = '{"object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"hello"}}]}'

End = Callable[..., None]


@pytest.fixture
def app(settings: Settings) -> Iterator[Flask]:
    """Return the application."""
    made = create_app(settings)
    yield made
    made.extensions[EXTENSION].close()


@pytest.fixture
def context(app: Flask) -> Context:
    """Return what the application's requests share."""
    found = app.extensions[EXTENSION]
    assert isinstance(found, Context)
    return found


@pytest.fixture
def client(app: Flask) -> FlaskClient:
    """Return a client of the application, on this machine and without a key."""
    return app.test_client()


@pytest.fixture
def end(database: Database) -> End:
    """Return a function that brings a queued job to an end state, as an engine would."""

    def _end(job_id: str, result: NewResult | None = None, state: str = "succeeded") -> None:
        answer = result or NewResult(200, ANSWER, prompt_tokens=5, completion_tokens=2)
        batch_id = new_id("batch")
        this = jobs.table.c.id == job_id
        with database.transaction() as tx:
            jobs.move(tx, "batched", this, batch_id=batch_id)
            jobs.move(tx, "running", this, attempts=1)
            assert ends.settle(tx, "engine", {batch_id: [Settled(job_id, state, answer)]}) == {job_id}

    return _end


@pytest.fixture
def service(client: FlaskClient, context: Context) -> Service:
    """Return the application with a tender and an engine that act when they are told to."""
    return Service(client, context)


@pytest.fixture
def rung(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the bulks that are rung for, instead of ringing."""
    ids: list[str] = []
    monkeypatch.setattr(Doorbell, "ring_bulk", lambda _, bulk_id: ids.append(bulk_id))
    return ids
