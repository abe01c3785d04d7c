"""Idempotency-Keys of requests whose clients wait, and of responses in the background: their job is remembered."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient

from models import engines, idempotency, jobs
from models.db import Database
from models.errors import DatabaseUnavailable
from stoker.settings import Settings
from tests.models import given
from tests.tasks.inprocess import until
from tests.webapi.stream_kit import ANSWER, CHAT, Asked, Played
from tests.webapi.test_files import refused
from tests.webapi.test_gunicorn import Web
from webapi.app import create_app
from webapi.context import EXTENSION, Context

KEY = {"Idempotency-Key": "once"}
CHATS = "/v1/chat/completions"
RESPONSES = "/v1/responses"
LATER = {"model": "fake", "input": "hi", "background": True, "instructions": "be brief"}
DONE = {"id": "resp_engine", "object": "response", "status": "completed", "model": "fake", "output": []}


@pytest.fixture
def played(database: Database, settings: Settings) -> Played:
    """Return an engine that does what the test says."""
    return Played(database, settings)


@pytest.fixture
def hasty(settings: Settings) -> Iterator[Flask]:
    """Return an application that gives a job up at once that no engine begins."""
    made = create_app(settings.model_copy(update={"wait_for": 0.2}))
    yield made
    made.extensions[EXTENSION].close()


def keys(database: Database) -> list[str]:
    """Return the keys that are remembered."""
    return [row.key for row in given.rows(database, idempotency.table)]


@pytest.mark.usefixtures("unhurried")
@pytest.mark.parametrize("path", [CHATS, "/v1/completions", "/v1/embeddings", "/v1/responses"])
def test_fifty_at_once_are_one_job(app: Flask, played: Played, path: str) -> None:
    """One waits; the others are told to come again, and then get its answer, byte for byte, of the same job."""
    body = {**CHAT, "prompt": "hi", "input": "hi"}
    crowd = [Asked(app, path, body, headers=KEY) for _ in range(50)]
    job_id = played.start().job_id
    until(lambda: sum(one.status == 409 for one in crowd) == 49, 60)
    busy = next(one for one in crowd if one.status == 409)
    busy.done()  # its status is there before its body
    assert busy.json["error"]["code"] == "idempotency_key_busy"
    assert busy.headers["Retry-After"] == "1"
    assert "X-Should-Retry" not in busy.headers
    played.end(job_id, DONE)
    (first,) = [one for one in crowd if one.status != 409 and one.done() == 200]
    again = app.test_client().post(path, json=body, headers=KEY)
    assert (again.status_code, again.data) == (200, first.raw)
    assert again.headers["X-Stoker-Job"] == first.headers["X-Stoker-Job"] == job_id
    assert again.headers["Idempotency-Replayed"] == "true"
    assert len(given.rows(played.database, jobs.table)) == 1


def test_a_stream_is_answered_again_as_a_stream(app: Flask, client: FlaskClient, played: Played) -> None:
    """From the whole answer, with what it cost if that was asked for, to its `[DONE]`."""
    body = {**CHAT, "stream": True, "stream_options": {"include_usage": True}}
    first = Asked(app, CHATS, body, headers=KEY)
    job_id = played.start().job_id
    played.end(job_id)
    assert first.done() == 200
    again = Asked(app, CHATS, body, headers=KEY)
    assert again.done() == 200
    assert (again.text, again.events[-1].data) == ("one two", "[DONE]")
    assert again.events[-2].data["usage"]["total_tokens"] == 3
    assert again.headers["Content-Type"].startswith("text/event-stream")
    assert (again.headers["X-Stoker-Job"], again.headers["Idempotency-Replayed"]) == (job_id, "true")
    refused(client.post(CHATS, json=CHAT, headers=KEY), 409, "idempotency_key_reused")


def test_an_engines_error_is_answered_again(app: Flask, played: Played) -> None:
    """As it was, streamed or not; so is the end of a job that somebody cancelled."""
    own = {"error": {"message": "too long", "type": "invalid_request_error", "param": None, "code": "too_long"}}
    first = Asked(app, CHATS, CHAT, headers=KEY)
    played.end(played.start().job_id, own, "failed", status=400, code="too_long", message="too long")
    assert (first.done(), first.json) == (400, own)
    again = app.test_client().post(CHATS, json=CHAT, headers=KEY)
    assert (again.status_code, again.json, again.headers["Idempotency-Replayed"]) == (400, own, "true")
    headers = {"Idempotency-Key": "another"}
    first = Asked(app, CHATS, {**CHAT, "stream": True}, headers=headers)
    played.cancel(played.start().job_id)
    assert first.done() == 409
    again = app.test_client().post(CHATS, json={**CHAT, "stream": True}, headers=headers)
    assert (again.status_code, again.json["error"]["code"]) == (409, "job_cancelled")
    assert (again.json, again.headers["Idempotency-Replayed"]) == (first.json, "true")


def test_a_job_that_no_engine_began_frees_its_key(hasty: Flask, app: Flask, played: Played) -> None:
    """With the 503 nothing is left behind, so that the same request, sent again, is run."""
    assert hasty.test_client().post(CHATS, json=CHAT, headers=KEY).status_code == 503
    assert keys(played.database) == []
    asked = Asked(app, CHATS, CHAT, headers=KEY)
    job_id = played.start().job_id
    played.end(job_id)
    assert (asked.done(), asked.headers["X-Stoker-Job"]) == (200, job_id)
    assert "Idempotency-Replayed" not in asked.headers


def test_a_client_that_hangs_up_frees_its_key(app: Flask, played: Played) -> None:
    """Its job is cancelled and its key forgotten in one transaction."""
    asked = Asked(app, CHATS, {**CHAT, "stream": True}, headers=KEY)
    stream = played.start()
    stream.emit('{"choices":[]}')
    asked.leave.set()
    stream.emit('{"choices":[]}')
    asked.done()
    assert played.job(stream.job_id).state == "cancelled"
    assert keys(played.database) == []


def test_an_answer_that_was_lost_on_its_way_is_kept(
    app: Flask, context: Context, played: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the client has gone and the database too, the job runs on, and its key leads to it."""
    asked = Asked(app, CHATS, {**CHAT, "stream": True}, headers=KEY)
    stream = played.start()
    stream.emit('{"choices":[]}')
    asked.has(1)

    def away(**_: object) -> object:
        raise DatabaseUnavailable("gone")

    with monkeypatch.context() as patched:
        patched.setattr(context.reserve, "transaction", away)
        asked.leave.set()
        stream.emit('{"choices":[]}')
        asked.done()
    busy = app.test_client().post(CHATS, json={**CHAT, "stream": True}, headers=KEY)
    refused(busy, 409, "idempotency_key_busy")
    played.end(stream.job_id)
    again = Asked(app, CHATS, {**CHAT, "stream": True}, headers=KEY)
    assert (again.done(), again.text, again.headers["X-Stoker-Job"]) == (200, "one two", stream.job_id)


@pytest.mark.usefixtures("unhurried")
@pytest.mark.parametrize("gone", ["expired", "deleted"])
def test_a_job_that_is_gone_is_made_anew(app: Flask, played: Played, database: Database, gone: str) -> None:
    """Its key is as good as new when it expired with nobody waiting, or was deleted; fifty at once still make one."""
    first = Asked(app, CHATS, CHAT, headers=KEY)
    job_id = played.start().job_id
    if gone == "deleted":
        played.end(job_id)
        first.done()
        with database.transaction() as tx:
            for table in (jobs.bodies, jobs.table):
                column = table.c.job_id if table is jobs.bodies else table.c.id
                tx.execute(sa.delete(table).where(column == job_id))
    else:
        with database.transaction() as tx:
            jobs.move(tx, "expired", jobs.table.c.id == job_id, finished_at=jobs.now())
        played.tell(job_id)
        assert first.done() == 409
    crowd = [Asked(app, CHATS, CHAT, headers=KEY) for _ in range(50)]
    new = played.start().job_id
    until(lambda: sum(one.status == 409 for one in crowd) == 49, 60)
    played.end(new)
    (answered,) = [one for one in crowd if one.status != 409]
    assert (answered.done(), answered.json, answered.headers["X-Stoker-Job"]) == (200, ANSWER, new)
    assert len(given.rows(database, jobs.table)) == (1 if gone == "deleted" else 2)


def test_what_was_made_once_is_answered_though_it_would_be_refused_now(
    app: Flask, context: Context, played: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the model is gone by then, too."""
    first = Asked(app, CHATS, CHAT, headers=KEY)
    played.end(played.start().job_id)
    first.done()
    monkeypatch.setattr(context.known, "get", lambda _: None)
    again = app.test_client().post(CHATS, json=CHAT, headers=KEY)
    assert (again.status_code, again.data) == (200, first.raw)
    refused(app.test_client().post(CHATS, json=CHAT), 404, "model_not_found", "model")


def test_a_response_in_the_background_is_answered_as_before(
    client: FlaskClient, played: Played, database: Database
) -> None:
    """Queued, as it was then, whatever has become of it; what is remembered holds nothing of the request."""
    first = client.post(RESPONSES, json=LATER, headers=KEY)
    job_id = played.start().job_id
    for _ in range(2):
        again = client.post(RESPONSES, json=LATER, headers=KEY)
        assert (again.status_code, again.data) == (200, first.data)
        assert again.headers["Idempotency-Replayed"] == "true"
        if played.job(job_id).state == "running":
            played.end(job_id, DONE)
    assert client.get(f"{RESPONSES}/{first.json['id']}").json["status"] == "completed"
    (kept,) = given.rows(database, idempotency.table)
    assert kept.answer == job_id


def test_a_stream_in_the_background_can_be_followed_again(app: Flask, played: Played) -> None:
    """By the same request, while it runs and afterwards; its job goes on whoever leaves."""
    body = {**LATER, "stream": True}
    first = Asked(app, RESPONSES, body, headers=KEY)
    stream = played.start()
    again = Asked(app, RESPONSES, body, headers=KEY)
    stream.emit('{"type":"response.output_text.delta","sequence_number":0,"delta":"a"}')
    for one in (first, again):
        one.has(1)
    assert again.headers["Idempotency-Replayed"] == "true"
    assert again.headers["X-Stoker-Job"] == stream.job_id
    stream.end()
    played.end(stream.job_id, DONE)
    assert first.done() == again.done() == 200
    assert len(given.rows(played.database, jobs.table)) == 1


@pytest.mark.journey
def test_a_server_killed_behind_its_commit_owes_nothing(
    database: Database, database_url: str, redis_url: str, tmp_path: Path, played: Played
) -> None:
    """The job is there and runs; the same request, sent to another server, gets its answer and makes no second job."""
    with database.transaction() as tx:
        engines.remember(tx, "fake", None, None)
    killed = Web(database_url, redis_url, tmp_path, STOKER_FAILPOINTS="accept.committed=kill")
    try:
        with pytest.raises(httpx.TransportError):
            httpx.post(f"{killed.ready().url}{CHATS}", json=CHAT, headers=KEY, timeout=60)
    finally:
        killed.end()
    job_id = played.start().job_id
    other = Web(database_url, redis_url, tmp_path)
    try:
        assert httpx.post(f"{other.ready().url}{CHATS}", json=CHAT, headers=KEY, timeout=60).status_code == 409
        played.end(job_id)
        again = httpx.post(f"{other.url}{CHATS}", json=CHAT, headers=KEY, timeout=60)
        assert (again.status_code, again.json(), again.headers["X-Stoker-Job"]) == (200, ANSWER, job_id)
    finally:
        other.end()
    assert len(given.rows(database, jobs.table)) == 1
