"""Idempotency-Keys on every call that makes something: one thing, one answer, however often a request comes."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from models import bulks, files, idempotency, jobs
from models.db import Database
from stoker.settings import Settings
from tests.models import given
from tests.webapi.bulk_kit import LINES, Service, bad, prompts, requests
from tests.webapi.stream_kit import CHAT
from tests.webapi.test_auth import bearer, expire_memory, made_key
from tests.webapi.test_files import refused
from webapi.context import Context

KEY = {"Idempotency-Key": "once"}
CHATS = "/v1/chat/completions"
BATCH = {"endpoint": CHATS, "completion_window": "24h"}
RESPONSE = {"model": "fake", "input": "hi"}
LATER = {**RESPONSE, "background": True}
DONE = {"id": "resp_engine", "object": "response", "status": "completed", "model": "fake", "output": []}

Post = Callable[[FlaskClient, str], TestResponse]
"""Sends a create, the same for the same text."""


def _file(client: FlaskClient, text: str, name: str = "in.jsonl", **fields: Any) -> TestResponse:
    form = {"purpose": "batch", "file": (io.BytesIO(requests(1) + text.encode()), name), **fields}
    return client.post("/v1/files", data=form, headers=KEY)


def _retry(client: FlaskClient, text: str) -> TestResponse:
    (first,) = [bulk["id"] for bulk in client.get("/v1/bulks").json["data"] if bulk["retry_of"] is None]
    return client.post(f"/v1/bulks/{first}/retry", json={"metadata": {"a": text}}, headers=KEY)


CREATES: dict[str, tuple[Post, sa.Table, int]] = {
    "job": (lambda client, text: client.post("/v1/jobs", json={"prompt": text}, headers=KEY), jobs.table, 1),
    "bulk": (
        lambda client, text: client.post("/v1/bulks", data=prompts(1, a=text), content_type=LINES, headers=KEY),
        bulks.table,
        1,
    ),
    "bulk of JSON": (
        lambda client, text: client.post("/v1/bulks", json={"requests": [{"prompt": text}]}, headers=KEY),
        bulks.table,
        1,
    ),
    "retry": (_retry, bulks.table, 2),
    "batch": (
        lambda client, text: client.post("/v1/batches", json={"input_file_id": f"file-{text}", **BATCH}, headers=KEY),
        bulks.table,
        1,
    ),
    "file": (_file, files.table, 1),
    "response": (
        lambda client, text: client.post("/v1/responses", json={**LATER, "input": text}, headers=KEY),
        jobs.table,
        1,
    ),
}


@pytest.fixture(params=CREATES)
def create(request: pytest.FixtureRequest, service: Service) -> tuple[Post, Callable[[], int]]:
    """Return a way to make something, and one to count what was made by it; with what it needs there already."""
    post, table, most = CREATES[request.param]
    if request.param == "retry":
        service.ended(prompts(1), bad)

    def count() -> int:
        rows = given.rows(service.database, table)
        return sum(getattr(row, "state", "") not in {"uploading", "deleted"} for row in rows) - most + 1

    return post, count


def told(answer: TestResponse) -> tuple[int, bytes, str | None, str | None]:
    """Return what must be the same of two answers."""
    headers = answer.headers
    return answer.status_code, answer.data, headers.get("Location"), headers.get("Content-Type")


def test_a_create_that_comes_twice_makes_one_thing(client: FlaskClient, create: tuple[Post, Callable[[], int]]) -> None:
    """The second gets the first one's answer and is told so; another body is refused, and makes nothing."""
    post, count = create
    first, again = post(client, "a"), post(client, "a")
    assert first.status_code in {200, 202}, first.text
    assert told(again) == told(first)
    assert "Idempotency-Replayed" not in first.headers
    assert again.headers["Idempotency-Replayed"] == "true"
    other = post(client, "b")
    assert other.status_code in {409, 422}
    assert "idempotency_key_reused" in other.text
    assert (other.status_code == 409) == ("error" in other.json)
    assert count() == 1


@pytest.mark.usefixtures("unhurried")
def test_fifty_creates_at_once_make_one_thing(app: Flask, create: tuple[Post, Callable[[], int]]) -> None:
    """Whoever is first makes it; the others get its answer, or a 409 while it is being made."""
    post, count = create
    answers = given.together([lambda: post(app.test_client(), "a")] * 50)
    assert {answer.status_code for answer in answers} <= {200, 202, 409, 503}
    assert all("too_many_uploads" in answer.text for answer in answers if answer.status_code == 503)
    made = {told(answer) for answer in answers if answer.status_code < 300}
    assert len(made) == 1
    assert count() == 1


def test_one_key_is_for_one_kind_of_thing(client: FlaskClient, database: Database) -> None:
    """A key that made a job makes no response, chat, file or batch: refused as another body is."""
    assert client.post("/v1/jobs", json=RESPONSE, headers=KEY).status_code == 202
    for path, body in (("/v1/responses", LATER), ("/v1/embeddings", RESPONSE), ("/v1/completions", {"prompt": "hi"})):
        answer = client.post(path, json={"model": "fake", **body}, headers=KEY)
        assert refused(answer, 409, "idempotency_key_reused")
        assert answer.headers["X-Should-Retry"] == "false"
    refused(_file(client, ""), 409, "idempotency_key_reused")
    assert len(given.rows(database, jobs.table)) == 1


@pytest.mark.parametrize("key", ["", "with blank", "k" * 256])
def test_a_bad_key_is_refused_everywhere(client: FlaskClient, context: Context, key: str) -> None:
    """In the shape of the surface, before anything is stored."""
    headers = {"Idempotency-Key": key}
    for path, body in ((CHATS, CHAT), ("/v1/responses", LATER), ("/v1/batches", BATCH)):
        refused(client.post(path, json=body, headers=headers), 400, "invalid_value", "Idempotency-Key")
    refused(client.post("/v1/files", data={}, headers=headers), 400, "invalid_value", "Idempotency-Key")
    for path in ("/v1/jobs", "/v1/bulks"):
        assert client.post(path, json={"prompt": "hi"}, headers=headers).status_code == 422
    assert given.rows(context.database, jobs.table) == given.rows(context.database, idempotency.table) == []


def test_the_same_key_of_two_owners_is_two_keys(client: FlaskClient, context: Context, database: Database) -> None:
    """Each makes a thing of its own, and neither learns of the other's."""
    ada, bob = ({**KEY, **bearer(made_key(database, owner))} for owner in ("ada", "bob"))
    expire_memory(context)
    made = [client.post("/v1/responses", json=LATER, headers=who).json["id"] for who in (ada, bob, ada, bob)]
    assert made[0] == made[2] != made[1] == made[3]
    other = client.post("/v1/responses", json={**LATER, "input": "other"}, headers=bob)
    assert other.status_code == 409
    assert made[1] not in other.text


# Files


def test_a_second_upload_leaves_no_bytes(client: FlaskClient, context: Context, settings: Settings) -> None:
    """Nothing stays of the second one, replayed or refused; with other fields or another name it is another upload."""
    first = _file(client, "")
    assert _file(client, "").json == first.json
    for answer in (_file(client, "more"), _file(client, "", "other.jsonl"), _file(client, "", purpose="evals")):
        refused(answer, 409, "idempotency_key_reused")
    objects = [path for path in Path(settings.storage).rglob("*") if path.is_file()]
    assert [path.name for path in objects] == [first.json["id"]]
    assert [row.state for row in given.rows(context.database, files.table)].count("ready") == 1
