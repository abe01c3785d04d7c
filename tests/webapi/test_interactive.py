"""Requests whose clients wait: chats, completions and embeddings, whole and token by token."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient

from models import jobs
from models.db import Database
from models.errors import DatabaseUnavailable
from stoker.settings import Settings
from tests import servers
from tests.tasks.inprocess import alive, until
from tests.webapi.stream_kit import ANSWER, CHAT, Asked, Played, chunk
from tests.webapi.test_hangups import connect, fill
from webapi import interactive
from webapi.app import create_app
from webapi.context import EXTENSION, Context
from webapi.interactive import Interactive

PATH = "/v1/chat/completions"
STREAM = {**CHAT, "stream": True}
Made = Callable[..., Flask]


@pytest.fixture
def played(database: Database, settings: Settings) -> Played:
    """Return an engine that does what the test says."""
    return Played(database, settings)


@pytest.fixture
def app_with(settings: Settings) -> Iterator[Made]:
    """Return a function that makes an application with other settings."""
    made: list[Flask] = []

    def make(**changes: Any) -> Flask:
        made.append(create_app(settings.model_copy(update=changes)))
        return made[-1]

    yield make
    for one in made:
        one.extensions[EXTENSION].close()


def count(database: Database, state: str = "") -> int:
    """Return how many jobs there are, or are in a state."""
    chosen = sa.select(sa.func.count()).select_from(jobs.table)
    with database.reading() as tx:
        return int(tx.execute(chosen.where(jobs.table.c.state == state) if state else chosen).scalar_one())


# Whole answers


def test_the_answer_is_the_engines(app: Flask, context: Context, played: Played) -> None:
    """As soon as it is stored, byte for byte, with the job's id in a header; the job was of the realtime lane."""
    asked = Asked(app, PATH, CHAT)
    stream = played.start()
    assert played.job(stream.job_id).lane == "realtime"
    played.end(stream.job_id)
    assert asked.done() == 200
    assert asked.json == ANSWER
    assert asked.headers["X-Stoker-Job"] == stream.job_id
    assert context.waiters._count == 0
    assert context.waiters._waiting == {}


def test_an_engines_error_is_the_answer(app: Flask, played: Played) -> None:
    """With its status, and its own body if it has one."""
    own = {"error": {"message": "too long", "type": "invalid_request_error", "param": None, "code": "too_long"}}
    asked = Asked(app, PATH, CHAT)
    job_id = played.start().job_id
    played.end(job_id, own, "failed", status=400, code="too_long", message="too long")
    assert (asked.done(), asked.json) == (400, own)
    asked = Asked(app, PATH, STREAM)
    job_id = played.start().job_id
    played.end(job_id, None, "failed", status=503, code="upstream_unavailable", message="Put off.")
    assert asked.done() == 503
    assert asked.json["error"]["code"] == "upstream_unavailable"
    assert asked.headers["Retry-After"]
    assert asked.headers["X-Stoker-Job"] == job_id


@pytest.mark.parametrize("body", [CHAT, STREAM])
def test_a_job_that_others_cancel_is_an_error(app: Flask, played: Played, body: dict[str, Any]) -> None:
    """Not a wait without an end."""
    asked = Asked(app, PATH, body)
    played.cancel(played.start().job_id)
    assert asked.done() == 409
    assert asked.json["error"]["code"] == "job_cancelled"


def test_engines_that_are_busy_for_too_long(app_with: Made, database: Database) -> None:
    """A job that none begins in time is cancelled: 503, and the client is told when to come again."""
    asked = Asked(app_with(wait_for=0.2), PATH, STREAM)
    assert asked.done() == 503
    assert asked.json["error"]["code"] == "engines_busy"
    assert int(asked.headers["Retry-After"]) >= 1
    assert count(database, "cancelled") == 1


class Patience:
    """Lets a job that is waited for be given up only when the test has begun it, however slow the machine is."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun, self.ended = threading.Event(), threading.Event()
        give_up = Interactive._give_up_unless_started

        def when_begun(call: Interactive) -> float:
            assert self.begun.wait(60)
            try:
                return give_up(call)
            finally:
                self.ended.set()

        monkeypatch.setattr(Interactive, "_give_up_unless_started", when_begun)


def test_a_job_that_was_begun_is_waited_for(app_with: Made, played: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long it takes beyond the patience for an engine."""
    patience = Patience(monkeypatch)
    asked = Asked(app_with(wait_for=0.2), PATH, CHAT)
    job_id = played.start().job_id
    patience.begun.set()
    assert patience.ended.wait(60)
    played.end(job_id)
    assert asked.done() == 200


def test_a_wait_has_an_end(app_with: Made, played: Played, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs longer than any request may is a 504, and its job is cancelled."""
    patience = Patience(monkeypatch)
    monkeypatch.setattr(interactive, "TICK", 0.2)
    # Much longer than the patience: the wait must not end before it is asked whether the job has begun.
    asked = Asked(app_with(wait_for=0.2, request_timeout=5.0), PATH, CHAT)
    played.start()
    patience.begun.set()
    assert asked.done() == 504
    assert count(database, "cancelled") == 1


def test_a_job_whose_server_is_killed_expires(app: Flask, client: FlaskClient, played: Played) -> None:
    """It could cancel nothing; in the background nobody's connection is held, and it may wait as long as it takes."""
    asked = Asked(app, PATH, CHAT)
    job = played.job(played.start().job_id)
    settings = app.extensions[EXTENSION].settings
    assert job.expires_at - job.created_at > settings.wait_for + settings.request_timeout
    played.end(job.id)
    assert asked.done() == 200
    made = client.post("/v1/responses", json={"model": "fake", "input": "hi", "background": True}).json
    assert played.job(made["id"].replace("resp_", "job_")).expires_at is None


@pytest.mark.parametrize("body", [CHAT, STREAM])
def test_stopping_ends_the_wait(app: Flask, context: Context, played: Played, body: dict[str, Any]) -> None:
    """With a status that clients try again at, and nothing runs on for nobody."""
    asked = Asked(app, PATH, body)
    job_id = played.start().job_id
    context.waiters.stop()
    assert asked.done() == 503
    assert asked.json["error"]["code"] == "stopping"
    assert played.job(job_id).state == "cancelled"


def test_too_many_that_wait_leave_no_job_behind(app_with: Made, played: Played, database: Database) -> None:
    """Who finds no place is refused before there is a job."""
    app = app_with(max_waiters=1)
    asked = Asked(app, PATH, CHAT)
    job_id = played.start().job_id
    refused = app.test_client().post(PATH, json=CHAT)
    assert (refused.status_code, refused.json["error"]["code"]) == (503, "too_many_waiters")
    assert count(database) == 1
    played.end(job_id)
    assert asked.done() == 200


def test_the_database_may_be_away_for_a_moment(
    app: Flask, context: Context, played: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever waits goes on waiting: the engine works on meanwhile."""
    asked = Asked(app, PATH, STREAM)
    stream = played.start()
    stream.emit(chunk("one "))
    asked.has(1)
    real, away = context.reserve.reading, threading.Event()
    away.set()

    def reading() -> Any:
        if away.is_set():
            raise DatabaseUnavailable("away")
        return real()

    monkeypatch.setattr(context.reserve, "reading", reading)
    stream.emit(chunk("two"))
    stream.end()
    played.end(stream.job_id)
    asked.has(2)
    away.clear()
    assert asked.done() == 200
    assert asked.text == "one two"
    assert asked.events[-1].data == "[DONE]"


# Streams


def test_tokens_come_as_they_are_emitted(app: Flask, played: Played) -> None:
    """Each at once; `[DONE]` only when the result is stored."""
    asked = Asked(app, PATH, STREAM)
    stream = played.start()
    stream.emit(chunk("one "))
    assert asked.begun() == 200
    asked.has(1)
    assert asked.headers["Content-Type"].startswith("text/event-stream")
    assert asked.headers["Cache-Control"] == "no-cache"
    assert asked.headers["X-Stoker-Job"] == stream.job_id
    stream.emit(chunk("two"))
    asked.has(2)
    stream.end()
    time.sleep(0.3)
    assert len(asked.events) == 2
    played.end(stream.job_id)
    asked.done()
    assert asked.text == "one two"
    assert [event.data for event in asked.events][2:] == ["[DONE]"]


def test_many_tokens_come_in_order(app: Flask, played: Played) -> None:
    """Thousands, as fast as an engine has them."""
    asked = Asked(app, PATH, STREAM)
    stream = played.start()
    words = [f"{n} " for n in range(3000)]
    for word in words:
        stream.emit(chunk(word))
    stream.end()
    played.end(stream.job_id)
    asked.done()
    assert asked.text == "".join(words)
    assert asked.events[-1].data == "[DONE]"


def test_a_client_that_knows_no_end_gets_it_from_the_row(
    app: Flask, played: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of the job may be told before its last tokens come: they are waited for."""
    monkeypatch.setattr(interactive, "LATE", 300.0)
    asked = Asked(app, PATH, STREAM)
    stream = played.start()
    stream.emit(chunk("one "))
    asked.has(1)
    played.end(stream.job_id)
    time.sleep(0.3)
    stream.emit(chunk("two"))
    stream.end()
    asked.done()
    assert asked.text == "one two"
    assert asked.events[-1].data == "[DONE]"


def test_tokens_that_never_come_are_an_error(app: Flask, played: Played, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream without its end is not called done: it ends with an error that says where the result is."""
    monkeypatch.setattr(interactive, "LATE", 0.3)
    asked = Asked(app, PATH, STREAM)
    stream = played.start()
    stream.emit(chunk("one "))
    asked.has(1)
    played.end(stream.job_id)
    asked.done()
    assert asked.error["code"] == "stream_interrupted"
    assert asked.error["message"].endswith(f"lost on their way; the result will be at /v1/jobs/{stream.job_id}.")
    assert played.job(stream.job_id).state == "succeeded"


@pytest.mark.parametrize("endpoint", ["chat/completions", "completions"])
def test_what_was_not_streamed_comes_whole(app: Flask, played: Played, endpoint: str) -> None:
    """An engine without streams, or a worker without Redis: the answer is one event, and what it cost if asked for."""
    body = {**STREAM, "prompt": "hi", "stream_options": {"include_usage": True}}
    asked = Asked(app, f"/v1/{endpoint}", body)
    job_id = played.start().job_id
    played.end(job_id)
    assert asked.done() == 200
    assert len(asked.events) == 3
    assert asked.events[1].data["usage"] == ANSWER["usage"]
    assert asked.events[2].data == "[DONE]"
    assert asked.text == ("one two" if endpoint.startswith("chat") else "")


def test_without_redis_a_stream_is_the_whole_answer(app_with: Made, played: Played) -> None:
    """It comes in the end: the database is enough."""
    asked = Asked(app_with(redis_url=f"redis://127.0.0.1:{servers.free_port()}/0"), PATH, STREAM)
    stream = played.start()
    stream.emit(chunk("unheard"))
    stream.end()
    played.end(stream.job_id)
    assert asked.done() == 200
    assert asked.text == "one two"
    assert asked.events[-1].data == "[DONE]"


def test_a_second_attempt_before_the_first_token(app: Flask, played: Played) -> None:
    """Nobody has got anything yet: the answer is that of the attempt that comes through."""
    asked = Asked(app, PATH, STREAM)
    job_id = played.start().job_id
    played.lose(job_id)
    stream = played.start(job_id)
    stream.emit(chunk("one two"))
    stream.end()
    played.end(job_id)
    asked.done()
    assert asked.text == "one two"
    assert asked.events[-1].data == "[DONE]"


def test_a_second_attempt_behind_tokens(app: Flask, played: Played) -> None:
    """It would say other words: the stream ends with an error, and the job with its client."""
    asked = Asked(app, PATH, STREAM)
    stream = played.start()
    stream.emit(chunk("one "))
    asked.has(1)
    played.lose(stream.job_id)
    again = played.start(stream.job_id)
    again.emit(chunk("other"))
    asked.done()
    assert asked.text == "one "
    assert asked.error["code"] == "stream_interrupted"
    assert played.job(stream.job_id).state == "cancelled"


def test_an_attempt_that_streamed_in_vain(app: Flask, played: Played) -> None:
    """A worker that had lost its lease said the end: what the next attempt says is an error, and no `[DONE]`."""
    asked = Asked(app, PATH, STREAM)
    stream = played.start()
    stream.emit(chunk("one"))
    stream.end()
    asked.has(1)
    played.lose(stream.job_id)
    played.start(stream.job_id).emit(chunk("other"))
    asked.done()
    assert asked.error["code"] == "stream_interrupted"
    assert "[DONE]" not in [event.data for event in asked.events]


@pytest.mark.parametrize("ended", [True, False])
def test_a_failure_behind_tokens_is_the_last_event(app: Flask, played: Played, ended: bool) -> None:
    """With the failure's own code and text, whether or not the engine said the end of its stream."""
    asked = Asked(app, PATH, STREAM)
    stream = played.start()
    stream.emit(chunk("one"))
    asked.has(1)
    if ended:
        stream.end()
    played.end(stream.job_id, None, "failed", status=408, code="request_timeout", message="Too slow.")
    asked.done()
    assert (asked.error["code"], asked.error["message"]) == ("request_timeout", "Too slow.")


def test_a_failure_before_the_client_got_anything_is_a_status(app: Flask, played: Played) -> None:
    """Even if there were tokens."""
    client = app.test_client()
    job_id = client.post("/v1/jobs", json={**STREAM, "lane": "realtime"}).json["id"]
    stream = played.start(job_id)
    stream.emit(chunk("one"))
    stream.end()
    played.end(job_id, None, "failed", status=408, code="request_timeout", message="Too slow.")
    asked = Asked(app, PATH, STREAM)
    job_id = played.start().job_id
    played.end(job_id, None, "failed", status=408, code="request_timeout", message="Too slow.")
    assert asked.done() == 408
    assert asked.json["error"]["code"] == "request_timeout"


@pytest.mark.parametrize("how", ["cancelled", "stopping"])
def test_a_stream_that_is_broken_off(app: Flask, context: Context, played: Played, how: str) -> None:
    """By somebody who cancels the job, or by the server's own end: its last event says so."""
    asked = Asked(app, PATH, STREAM)
    stream = played.start()
    stream.emit(chunk("one"))
    asked.has(1)
    if how == "cancelled":
        played.cancel(stream.job_id)
    else:
        context.waiters.stop()
    asked.done()
    assert asked.error["code"] == ("job_cancelled" if how == "cancelled" else "stopping")
    assert played.job(stream.job_id).state == "cancelled"


def test_odd_events_pass(app: Flask, played: Played) -> None:
    """Line breaks between the parts, halves of characters, a megabyte: an event stays one event."""
    asked = Asked(app, PATH, STREAM)
    stream = played.start()
    sent = ['{"a":\n\n1,\r\n"b":2}', json.dumps({"x": "\ud800 \x00 ☃ data: x\n\n"}), json.dumps({"y": "z" * 1_000_000})]
    for event in sent:
        stream.emit(event)
    stream.end()
    played.end(stream.job_id)
    asked.done()
    assert [event.data for event in asked.events] == [*map(json.loads, sent), "[DONE]"]


# Clients that leave


@pytest.mark.parametrize("body", [CHAT, STREAM])
@pytest.mark.parametrize("begun", [False, True])
def test_a_client_that_hangs_up_takes_its_job_along(
    app: Flask, context: Context, played: Played, body: dict[str, Any], begun: bool
) -> None:
    """Soon, whether or not an engine has begun; its place is free again."""
    server, client = connect()
    asked = Asked(app, PATH, body, environ_overrides={"gunicorn.socket": server})
    job_id = played.queued()
    if begun:
        stream = played.start(job_id)
        if body is STREAM:
            stream.emit(chunk("one"))
            asked.has(1)
    client.close()
    until(lambda: played.job(job_id).state == "cancelled", 60)
    asked.done()
    assert context.waiters._count == 0
    assert context.waiters._waiting == {}
    server.close()


def test_a_stream_that_is_closed_early_takes_its_job_along(app: Flask, context: Context, played: Played) -> None:
    """As the server does when it cannot write any more."""
    asked = Asked(app, PATH, STREAM)
    stream = played.start()
    asked.leave.set()
    stream.emit(chunk("one"))
    asked.done()
    assert played.job(stream.job_id).state == "cancelled"
    assert context.waiters._count == 0


def test_a_client_that_does_not_read_is_let_go(app_with: Made, played: Played) -> None:
    """After a while its stream is cut off, without an end that looks whole, and its job is cancelled."""
    server, client = connect()
    app = app_with(stream_stall=0.3)
    asked = Asked(app, PATH, STREAM, environ_overrides={"gunicorn.socket": server})
    stream = played.start()
    stream.emit(chunk("one"))
    asked.has(1)
    fill(server)
    stream.emit(chunk("two"))
    until(lambda: played.job(stream.job_id).state == "cancelled", 60)
    asked.done()
    assert asked.cut
    assert asked.text == "one"
    assert app.extensions[EXTENSION].waiters._count == 0
    for one in (server, client):
        one.close()


# What is asked for


@pytest.mark.parametrize(
    ("changes", "status", "code", "param"),
    [
        ({"messages": None}, 400, "missing_required_parameter", "messages"),
        ({"messages": "hi"}, 400, "invalid_type", "messages"),
        ({"messages": []}, 400, "invalid_value", "messages"),
        ({"model": "nobody"}, 404, "model_not_found", "model"),
        ({"model": 3}, 400, "invalid_type", "model"),
        ({"stream": "yes"}, 400, "invalid_type", "stream"),
        ({"stream": 1}, 400, "invalid_type", "stream"),
        ({"max_tokens": -1}, 400, "invalid_value", "max_tokens"),
        ({"model": "fake\x00"}, 404, "model_not_found", "model"),
        ({"user": "a\ud800"}, 400, "lone_surrogate", None),
    ],
)
def test_bad_requests_are_refused(
    client: FlaskClient, database: Database, changes: dict[str, Any], status: int, code: str, param: str | None
) -> None:
    """In OpenAI's envelope, with the field's name; nothing is stored."""
    answer = client.post(PATH, json={**CHAT, **changes})
    error = answer.json["error"]
    assert (answer.status_code, error["code"], error["param"] or None) == (status, code, param), error
    assert count(database) == 0


def test_embeddings_have_no_stream(app: Flask, client: FlaskClient, played: Played) -> None:
    """Asked for one they are refused; without, they are answered."""
    body = {"model": "fake", "input": "hi"}
    refused = client.post("/v1/embeddings", json={**body, "stream": True})
    assert (refused.status_code, refused.json["error"]["param"]) == (400, "stream")
    asked = Asked(app, "/v1/embeddings", {**body, "stream": False})
    job_id = played.start().job_id
    played.end(job_id, {"object": "list", "data": []})
    assert asked.done() == 200
    assert asked.json == {"object": "list", "data": []}


@pytest.mark.parametrize("options", [5, "x", [], {"include_usage": "yes"}, None])
def test_odd_stream_options_are_the_engines_business(app: Flask, played: Played, options: Any) -> None:
    """They go to it as they came."""
    asked = Asked(app, PATH, {**STREAM, "stream_options": options})
    job_id = played.start().job_id
    played.end(job_id)
    assert asked.done() == 200
    assert len(asked.events) == 2


def test_without_a_model_the_configured_one_answers(app: Flask, played: Played) -> None:
    """As everywhere here."""
    asked = Asked(app, PATH, {"messages": CHAT["messages"]})
    job_id = played.start().job_id
    played.end(job_id)
    assert asked.done() == 200


def test_models_are_those_of_live_engines(client: FlaskClient, database: Database) -> None:
    """Not those that nobody serves at the moment, though jobs may name them."""
    assert client.get("/v1/models").json == {"object": "list", "data": []}
    assert client.get("/v1/models/fake").status_code == 404
    alive(database)
    (model,) = client.get("/v1/models").json["data"]
    assert (model["id"], model["object"], model["owned_by"]) == ("fake", "model", "stoker")
    assert client.get("/v1/models/fake").json == model
    missing = client.get("/v1/models/org/other")
    assert (missing.status_code, missing.json["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize("path", [PATH, "/v1/models", "/v1/responses", "/v1/responses/resp_x", "/v1/jobs/job_x/events"])
def test_a_wrong_key_is_refused(client: FlaskClient, path: str) -> None:
    """Before anything is read."""
    headers = {"Authorization": "Bearer sk-stoker-wrong"}
    method = "POST" if path in {PATH, "/v1/responses"} else "GET"
    assert client.open(path, method=method, json=CHAT if method == "POST" else None, headers=headers).status_code == 401
