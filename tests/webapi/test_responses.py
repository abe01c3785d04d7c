"""`/v1/responses`: at once, in the background, and followed."""

from __future__ import annotations

import json
from typing import Any

import pytest
import redis
from flask import Flask
from flask.testing import FlaskClient

from models.db import Database, new_id
from stoker.settings import Settings
from tasks.tokens import Stream
from tests.tasks.inprocess import until
from tests.webapi.key_kit import key_of
from tests.webapi.stream_kit import Asked, Played
from tests.webapi.test_auth import bearer, expire_memory, made_key
from tests.webapi.test_interactive import count
from webapi.app import create_app
from webapi.context import EXTENSION, Context

PATH = "/v1/responses"
BODY = {"model": "fake", "input": "hi", "metadata": {"a": "b"}}
DONE = {"id": "resp_engine", "object": "response", "status": "completed", "model": "fake", "output": [{"id": "msg"}]}


@pytest.fixture
def played(database: Database, settings: Settings) -> Played:
    """Return an engine that does what the test says."""
    return Played(database, settings)


def job_of(response_id: str) -> str:
    """Return the id of a response's job."""
    return response_id.replace("resp_", "job_")


def event(number: int, kind: str = "response.output_text.delta", **more: Any) -> str:
    """Return an event of a response's stream."""
    return json.dumps({"type": kind, "sequence_number": number, **more})


def say(stream: Stream, *numbers: int) -> None:
    """Emit deltas."""
    for number in numbers:
        stream.emit(event(number, delta=str(number)))


def numbers(asked: Asked) -> list[int]:
    """Return the numbers of the events that came."""
    return [one.data["sequence_number"] for one in asked.events]


def test_a_response_at_once(app: Flask, played: Played, client: FlaskClient) -> None:
    """The engine's answer under the job's id, which can be asked for again."""
    asked = Asked(app, PATH, BODY)
    job_id = played.start().job_id
    played.end(job_id, DONE)
    assert asked.done() == 200
    assert asked.json == {**DONE, "id": job_id.replace("job_", "resp_")}
    assert client.get(f"{PATH}/{asked.json['id']}").json == asked.json


def test_a_streamed_response(app: Flask, played: Played) -> None:
    """Its events have names, the job's id, and no `[DONE]`."""
    asked = Asked(app, PATH, {**BODY, "stream": True})
    stream = played.start()
    stream.emit(event(0, "response.created", response={"id": "resp_engine", "status": "in_progress"}))
    say(stream, 1, 2)
    stream.emit(event(3, "response.completed", response=DONE))
    stream.end()
    played.end(stream.job_id, DONE)
    assert asked.done() == 200
    assert [one.kind for one in asked.events] == [
        "response.created",
        *["response.output_text.delta"] * 2,
        "response.completed",
    ]
    ours = stream.job_id.replace("job_", "resp_")
    assert [asked.events[at].data["response"]["id"] for at in (0, 3)] == [ours, ours]


def test_a_stream_that_breaks_says_so(app: Flask, played: Played) -> None:
    """By an error event with the next number."""
    asked = Asked(app, PATH, {**BODY, "stream": True})
    stream = played.start()
    say(stream, 0, 1)
    asked.has(2)
    played.end(stream.job_id, None, "failed", status=500, code="broken", message="Broken.")
    asked.done()
    last = asked.events[-1]
    assert (last.kind, last.data["type"], last.data["code"]) == ("error", "error", "broken")
    assert last.data["sequence_number"] == 2


def test_a_response_without_a_stream_of_its_own(app: Flask, played: Played) -> None:
    """The whole answer is the one event that ends it."""
    asked = Asked(app, PATH, {**BODY, "stream": True})
    job_id = played.start().job_id
    played.end(job_id, DONE)
    assert asked.done() == 200
    (only,) = asked.events
    assert only.kind == "response.completed"
    assert only.data["response"] == {**DONE, "id": job_id.replace("job_", "resp_")}


@pytest.mark.parametrize(
    "odd",
    ['{"type": "x"', "[1]", "3", '{"type": 5, "sequence_number": "x", "response": 3}', '{"delta": "\\ud800"}'],
)
def test_odd_events_do_not_break_a_stream(app: Flask, played: Played, odd: str) -> None:
    """Whatever an engine emits that is JSON passes; what is none ends the stream, and only that."""
    asked = Asked(app, PATH, {**BODY, "stream": True})
    stream = played.start()
    say(stream, 0)
    stream.emit(odd)
    say(stream, 2)
    stream.end()
    played.end(stream.job_id, DONE)
    assert asked.done() == 200
    assert asked.raw.count(b"data: ") == 3


def test_a_response_with_half_a_character(app: Flask, played: Played, client: FlaskClient) -> None:
    """What a model wrote is answered as it is."""
    odd = {**DONE, "output": [{"text": "\ud800"}]}
    asked = Asked(app, PATH, BODY)
    job_id = played.start().job_id
    played.end(job_id, odd)
    assert asked.done() == 200
    assert asked.json["output"] == odd["output"]
    shown = client.get(f"{PATH}/{job_id.replace('job_', 'resp_')}")
    assert (shown.status_code, json.loads(shown.data)["output"]) == (200, odd["output"])


# In the background


def test_a_response_in_the_background(client: FlaskClient, played: Played) -> None:
    """Queued, in progress, completed; what was asked is shown with it, and no engine sees `background`."""
    made = client.post(PATH, json={**BODY, "background": True})
    assert made.status_code == 200
    assert (made.json["status"], made.json["object"], made.json["metadata"]) == ("queued", "response", {"a": "b"})
    response_id = made.json["id"]
    assert client.get(f"{PATH}/{response_id}").json["status"] == "queued"
    job_id = played.start().job_id
    assert job_id == job_of(response_id)
    assert client.get(f"{PATH}/{response_id}").json["status"] == "in_progress"
    played.end(job_id, DONE)
    assert client.get(f"{PATH}/{response_id}").json == {**DONE, "id": response_id}
    asked = client.get(f"/v1/jobs/{job_id}").json
    assert asked["endpoint"] == PATH


def test_background_is_no_field_of_the_engine(client: FlaskClient, database: Database, played: Played) -> None:
    """It says how the answer is to come."""
    from models import views

    job_id = job_of(client.post(PATH, json={**BODY, "background": True}).json["id"])
    with database.reading() as tx:
        assert json.loads(views.body(tx, job_id)) == BODY


def test_a_failed_response(client: FlaskClient, played: Played) -> None:
    """Says why."""
    response_id = client.post(PATH, json={**BODY, "background": True}).json["id"]
    played.end(played.start().job_id, None, "failed", status=500, code="broken", message="Broken.")
    shown = client.get(f"{PATH}/{response_id}").json
    assert shown["status"] == "failed"
    assert shown["error"] == {"code": "server_error", "message": "Broken."}


def test_a_response_is_cancelled(client: FlaskClient, played: Played) -> None:
    """Twice is fine; one that has ended stays as it is."""
    response_id = client.post(PATH, json={**BODY, "background": True}).json["id"]
    for _ in range(2):
        answer = client.post(f"{PATH}/{response_id}/cancel")
        assert (answer.status_code, answer.json["status"]) == (200, "cancelled")
    done = client.post(PATH, json={**BODY, "background": True}).json["id"]
    played.end(played.start(job_of(done)).job_id, DONE)
    assert client.post(f"{PATH}/{done}/cancel").json == {**DONE, "id": done}


@pytest.mark.parametrize("end", ["succeeded", "failed"])
def test_to_cancel_is_not_to_read(client: FlaskClient, database: Database, played: Played, end: str) -> None:
    """A key that may submit and not read hears what became of a response, and nothing that went in or came out."""
    submitter, reader = key_of(database, scopes=["submit"]), key_of(database)
    body = {**BODY, "background": True, "instructions": "c4n4ry"}
    response_id = client.post(PATH, json=body, headers=submitter).json["id"]
    more = {} if end == "succeeded" else {"status": 500, "code": "broken", "message": "c4n4ry"}
    done = {**DONE, "output": [{"text": "c4n4ry"}]}
    played.end(played.start().job_id, done if end == "succeeded" else None, end, **more)
    answer = client.post(f"{PATH}/{response_id}/cancel", headers=submitter)
    status = {"succeeded": "completed"}.get(end, end)
    assert (answer.status_code, answer.json["id"], answer.json["status"]) == (200, response_id, status)
    assert (answer.json["output"], answer.json["model"]) == ([], "fake")
    assert "c4n4ry" not in answer.text
    assert "c4n4ry" in client.post(f"{PATH}/{response_id}/cancel", headers=reader).text


@pytest.mark.parametrize("background", ["x", 1, 0, [], {}])
def test_an_odd_background_is_refused(client: FlaskClient, database: Database, background: Any) -> None:
    """And nothing is stored."""
    answer = client.post(PATH, json={**BODY, "background": background})
    error = answer.json["error"]
    assert (answer.status_code, error["param"], error["code"]) == (400, "background", "invalid_type")
    assert count(database) == 0


def test_others_see_nothing(client: FlaskClient, context: Context, database: Database) -> None:
    """Another owner's response is not there, to look at, follow, or cancel; nor is what has another form."""
    made_key(database, "ada")
    expire_memory(context)
    ada, bob = bearer(made_key(database, "ada")), bearer(made_key(database, "bob"))
    response_id = client.post(PATH, json={**BODY, "background": True}, headers=ada).json["id"]
    chat = client.post("/v1/jobs", json={"prompt": "hi"}, headers=ada).json["id"]
    assert client.get(f"{PATH}/{response_id}", headers=ada).status_code == 200
    unknown = [
        new_id("resp"),
        "resp_",
        "job_1",
        "resp_%00",
        "x" * 3000,
        chat.replace("job_", "resp_"),
        job_of(response_id),
    ]
    for one, who in [(response_id, bob), *((one, ada) for one in unknown)]:
        for ask in (
            client.get(f"{PATH}/{one}", headers=who),
            client.get(f"{PATH}/{one}?stream=true", headers=who),
            client.post(f"{PATH}/{one}/cancel", headers=who),
        ):
            assert ask.status_code == 404, one
            assert len(ask.json["error"]["message"]) < 200
    assert client.get(f"{PATH}/{response_id}", headers=ada).json["status"] == "queued"


def test_a_background_stream_goes_on_without_its_client(app: Flask, client: FlaskClient, played: Played) -> None:
    """Whoever comes back gets what is behind the last number that it has."""
    asked = Asked(app, PATH, {**BODY, "background": True, "stream": True})
    stream = played.start()
    asked.leave.set()
    say(stream, 0)
    asked.done()
    assert played.job(stream.job_id).state == "running"
    response_id = stream.job_id.replace("job_", "resp_")
    again = Asked(app, f"{PATH}/{response_id}?stream=true&starting_after=1")
    say(stream, 1, 2)
    again.has(1)
    stream.emit(event(3, "response.completed", response=DONE))
    stream.end()
    played.end(stream.job_id, DONE)
    assert again.done() == 200
    assert numbers(again) == [2, 3]
    late = Asked(app, f"{PATH}/{response_id}?stream=true")
    assert late.done() == 200
    assert numbers(late) == [0, 1, 2, 3]


def test_a_response_that_was_never_streamed_is_followed(app: Flask, client: FlaskClient, played: Played) -> None:
    """The whole answer comes when it is there; an error has its status."""
    response_id = client.post(PATH, json={**BODY, "background": True}).json["id"]
    asked = Asked(app, f"{PATH}/{response_id}?stream=true")
    played.end(played.start().job_id, DONE)
    assert asked.done() == 200
    assert [one.kind for one in asked.events] == ["response.completed"]
    other = client.post(PATH, json={**BODY, "background": True}).json["id"]
    client.post(f"{PATH}/{other}/cancel")
    assert Asked(app, f"{PATH}/{other}?stream=true").done() == 409


def test_who_comes_back_too_late_gets_the_rest_whole(
    app: Flask, client: FlaskClient, played: Played, redis_url: str
) -> None:
    """Redis has forgotten the events: the last one says all, under a number that the client has not seen."""
    response_id = client.post(PATH, json={**BODY, "background": True, "stream": False}).json["id"]
    stream = played.start()
    say(stream, 0, 1, 2)
    until(lambda: stream.written == 3, 60)
    with redis.Redis.from_url(redis_url) as store:
        store.flushall()
    say(stream, 3)
    stream.end()
    played.end(stream.job_id, DONE)
    again = Asked(app, f"{PATH}/{response_id}?stream=true&starting_after=2")
    assert again.done() == 200
    assert [(one.kind, one.data["sequence_number"]) for one in again.events] == [("response.completed", 3)]
    assert again.headers["X-Stoker-Job"] == stream.job_id


def test_who_comes_back_gets_no_mixture_of_two_attempts(app: Flask, client: FlaskClient, played: Played) -> None:
    """The engine died, and another attempt says other words: its answer comes whole, not from the middle on."""
    response_id = client.post(PATH, json={**BODY, "background": True}).json["id"]
    old = played.start()
    say(old, 0, 1)
    until(lambda: old.written == 2, 60)
    played.lose(old.job_id)
    stream = played.start(old.job_id)
    say(stream, 0, 1, 2, 3)
    stream.end()
    played.end(stream.job_id, DONE)
    again = Asked(app, f"{PATH}/{response_id}?stream=true&starting_after=1")
    assert again.done() == 200
    assert [(one.kind, one.data["sequence_number"]) for one in again.events] == [("response.completed", 2)]


@pytest.mark.parametrize(
    "query", ["stream=maybe", "starting_after=x", "starting_after=-1", "stream=true&starting_after=1e9"]
)
def test_odd_queries_are_refused(client: FlaskClient, query: str) -> None:
    """In OpenAI's envelope."""
    response_id = client.post(PATH, json={**BODY, "background": True}).json["id"]
    answer = client.get(f"{PATH}/{response_id}?{query}")
    assert (answer.status_code, set(answer.json)) == (400, {"error"})


def test_without_a_place_nothing_is_stored(settings: Settings, database: Database) -> None:
    """A background stream that cannot be followed is refused before there is a job."""
    app = create_app(settings.model_copy(update={"max_waiters": 0}))
    answer = app.test_client().post(PATH, json={**BODY, "background": True, "stream": True})
    assert (answer.status_code, answer.json["error"]["code"]) == (503, "too_many_waiters")
    assert count(database) == 0
    app.extensions[EXTENSION].close()


def test_a_followed_response_ends_with_the_server(app: Flask, context: Context, played: Played) -> None:
    """The response goes on."""
    asked = Asked(app, PATH, {**BODY, "background": True, "stream": True})
    stream = played.start()
    say(stream, 0)
    asked.has(1)
    context.waiters.stop()
    asked.done()
    assert asked.events[-1].kind == "error"
    assert played.job(stream.job_id).state == "running"
    until(lambda: context.waiters._count == 0, 60)
