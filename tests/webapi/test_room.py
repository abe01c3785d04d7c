"""A queue that is full: every way to hand in jobs says so, stores nothing, and burns no key."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from models import bulks, cohorts, engines, files, idempotency, jobs, room
from models.db import Database
from stoker.settings import Settings
from tests.models import given
from tests.webapi.bulk_kit import Service, bad, prompts, requests
from webapi import uploads
from webapi.app import create_app
from webapi.context import EXTENSION, Context

LIMIT = 4
CHAT = {"model": "fake", "messages": [{"role": "user", "content": "hi"}]}
OPENAI: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", CHAT),
    ("/v1/chat/completions", CHAT | {"stream": True}),
    ("/v1/completions", {"model": "fake", "prompt": "hi"}),
    ("/v1/embeddings", {"model": "fake", "input": "hi"}),
    ("/v1/responses", {"model": "fake", "input": "hi"}),
    ("/v1/responses", {"model": "fake", "input": "hi", "background": True}),
]


@pytest.fixture
def app(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Flask]:
    """Return the application, with room for four jobs of an owner, and six of all."""
    monkeypatch.setattr(room, "LEAST_PAUSE", 0.0)
    monkeypatch.setattr(room, "MOST_SHARE", 1e9)
    made = create_app(settings.model_copy(update={"max_queued_per_owner": LIMIT, "max_queued": LIMIT + 2}))
    yield made
    made.extensions[EXTENSION].close()


@pytest.fixture
def full(database: Database, app: Flask) -> list[str]:
    """Fill the queue of the owner `local`; return the ids."""
    with database.transaction() as tx:
        engines.remember(tx, "fake", None, None)
    return given.submitted(database, LIMIT, owner="local")


def refused(answer: TestResponse) -> dict[str, Any]:
    """Return the document of an answer that refuses, as stoker's own calls do."""
    assert answer.status_code == 429, answer.text
    assert 1 <= int(answer.headers["Retry-After"]) <= 60
    assert answer.mimetype == "application/problem+json"
    document: dict[str, Any] = answer.json
    assert document["code"] == "queue_full"
    return document


def refused_as_openai_does(answer: TestResponse) -> dict[str, Any]:
    """Return the error of an answer that refuses, as OpenAI's calls do."""
    assert answer.status_code == 429, answer.text
    assert 1 <= int(answer.headers["Retry-After"]) <= 60
    error: dict[str, Any] = answer.json["error"]
    assert (error["type"], error["code"], error["param"]) == ("requests", "rate_limit_exceeded", None)
    return error


def stored(database: Database) -> list[int]:
    """Return how many jobs, bodies, bulks, keys and files there are."""
    ready = sa.select(files.table).where(files.table.c.state == "ready").subquery()
    kept = (jobs.table, jobs.bodies, bulks.table, idempotency.table, ready)
    with database.reading() as tx:
        return [tx.execute(sa.select(sa.func.count()).select_from(table)).scalar_one() for table in kept]


def test_a_job_too_many_is_refused(client: FlaskClient, database: Database, full: list[str]) -> None:
    """429 with Retry-After, the limit and its setting; nothing is stored; with room again it is taken."""
    before = stored(database)
    document = refused(client.post("/v1/jobs", json={"prompt": "hi"}))
    assert "4 jobs of this owner" in document["detail"]
    assert "STOKER_MAX_QUEUED_PER_OWNER" in document["detail"]
    assert stored(database) == before
    given.cut(database, full[:1])
    assert client.post("/v1/jobs", json={"prompt": "hi"}).status_code == 202
    refused(client.post("/v1/jobs", json={"prompt": "hi"}))


def test_what_is_wrong_is_said_first(client: FlaskClient, full: list[str]) -> None:
    """A job that would be refused anyway is not told to come back."""
    assert client.post("/v1/jobs", json={"prompt": 1}).status_code == 422


def test_a_refusal_burns_no_key(client: FlaskClient, database: Database, full: list[str]) -> None:
    """The same request with the same key is taken once there is room, and answered again when there is none."""
    key = {"Idempotency-Key": "once"}
    refused(client.post("/v1/jobs", json={"prompt": "hi"}, headers=key))
    given.cut(database, full[:1])
    taken = client.post("/v1/jobs", json={"prompt": "hi"}, headers=key)
    assert taken.status_code == 202
    again = client.post("/v1/jobs", json={"prompt": "hi"}, headers=key)
    assert (again.status_code, again.json["id"]) == (202, taken.json["id"])
    assert again.headers["Idempotency-Replayed"] == "true"


def test_the_total_counts_too(client: FlaskClient, database: Database, full: list[str]) -> None:
    """When all owners together have too many waiting, an owner far below its own limit is refused as well."""
    given.cut(database, full)
    given.submitted(database, LIMIT + 2, owner="bob")
    assert "6 jobs of all" in refused(client.post("/v1/jobs", json={"prompt": "hi"}))["detail"]


@pytest.mark.parametrize(("path", "body"), OPENAI, ids=[f"{path}-{len(body)}" for path, body in OPENAI])
def test_a_request_that_waits_is_refused(
    client: FlaskClient, database: Database, full: list[str], path: str, body: dict[str, Any]
) -> None:
    """OpenAI's calls get OpenAI's error, at once; nothing is stored and no place is kept."""
    before = stored(database)
    error = refused_as_openai_does(client.post(path, json=body))
    assert "waiting already" in error["message"]
    assert stored(database) == before


def test_no_waiter_is_left_of_a_refusal(client: FlaskClient, context: Context, full: list[str]) -> None:
    """Who is refused holds no place among those who wait."""
    refused_as_openai_does(client.post("/v1/chat/completions", json=CHAT))
    assert context.waiters._count == 0


def test_a_bulk_is_refused(service: Service, database: Database, full: list[str]) -> None:
    """At the limit no bulk is taken, in whichever form; nothing of its upload stays."""
    before = stored(database)
    refused(service.post(prompts(1)))
    refused(service.post(prompts(1), headers={"Idempotency-Key": "once"}))
    refused(service.form("in.jsonl", prompts(1)))
    refused(service.client.post("/v1/bulks", json={"requests": [{"prompt": "hi"}]}))
    assert stored(database) == before
    given.cut(database, full[:1])
    assert service.post(prompts(1), headers={"Idempotency-Key": "once"}).status_code == 202


def test_a_bulk_is_refused_before_its_upload(
    service: Service, full: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a key the refusal does not wait for the lines."""
    monkeypatch.delattr(uploads, "receive")
    refused(service.post(prompts(1)))


def test_a_dry_run_is_taken(service: Service, full: list[str]) -> None:
    """It makes no jobs."""
    assert service.post(prompts(1), dry_run="true").status_code == 202
    assert service.form("in.jsonl", prompts(1), dry_run="true").status_code == 202


def test_a_retry_is_refused(service: Service, database: Database, full: list[str]) -> None:
    """To run failed lines again makes new jobs."""
    given.cut(database, full)
    bulk_id = service.ended(prompts(2), bad)
    given.submitted(database, LIMIT, owner="local")
    service.context.room._lines.clear()  # it was counted less than a minute ago
    refused(service.do(bulk_id, "retry"))
    assert stored(database)[2] == 1


def test_a_batch_is_refused(client: FlaskClient, database: Database, full: list[str]) -> None:
    """OpenAI's batches likewise; the file may be uploaded all the same."""
    form = {"purpose": "batch", "file": (io.BytesIO(requests(1)), "in.jsonl")}
    file_id = client.post("/v1/files", data=form).json["id"]
    body = {"input_file_id": file_id, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    refused_as_openai_does(client.post("/v1/batches", json=body, headers={"Idempotency-Key": "once"}))
    assert stored(database)[2:4] == [0, 0]
    given.cut(database, full)
    assert client.post("/v1/batches", json=body, headers={"Idempotency-Key": "once"}).status_code == 200


def test_what_a_crash_puts_back_is_never_refused(client: FlaskClient, database: Database, full: list[str]) -> None:
    """Jobs go back to the queue beyond the limit, and only new ones are refused."""
    mine = given.engine(database)
    given.cut(database, full)
    given.claimed(database, mine)
    for _ in range(LIMIT):
        assert client.post("/v1/jobs", json={"prompt": "hi"}).status_code == 202
    with database.transaction() as tx:
        crash = cohorts.crash(tx, mine.engine, mine.id, "lost", max_attempts=20)
    assert crash.requeued == LIMIT
    assert set(given.states(database, full)) == {"queued"}
    refused(client.post("/v1/jobs", json={"prompt": "hi"}))


def test_the_refusal_is_described(client: FlaskClient) -> None:
    """The OpenAPI page has the 429 of every call that makes jobs."""
    paths = client.get("/openapi.json").json["paths"]
    calls = [
        *("/v1/jobs", "/v1/bulks", "/v1/bulks/{bulk_id}/retry", "/v1/batches"),
        *("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"),
    ]
    for path in calls:
        assert "429" in paths[path]["post"]["responses"], path
