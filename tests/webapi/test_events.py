"""`/v1/jobs/{id}/events`: states, tokens and the end of a job, for any number of clients, as often as they come."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import redis
from flask import Flask
from flask.testing import FlaskClient

from models import streams
from models.db import Database, new_id
from models.errors import DatabaseUnavailable
from stoker.settings import Settings
from tests import servers
from tests.tasks.inprocess import until
from tests.webapi.stream_kit import ANSWER, Asked, Event, Played, chunk
from tests.webapi.test_auth import bearer, expire_memory, made_key
from tests.webapi.test_hangups import connect
from webapi import following, interactive
from webapi.app import create_app
from webapi.context import EXTENSION, Context


@pytest.fixture
def played(database: Database, settings: Settings) -> Played:
    """Return an engine that does what the test says."""
    return Played(database, settings)


def submitted(client: FlaskClient, **more: Any) -> str:
    """Submit a streamed job and return its id."""
    return str(client.post("/v1/jobs", json={"prompt": "hi", "stream": True, **more}).json["id"])


def follow(app: Flask, job_id: str, after: str = "", **more: Any) -> Asked:
    """Follow a job, from behind an event."""
    headers = {"Last-Event-ID": after} if after else {}
    return Asked(app, f"/v1/jobs/{job_id}/events", headers=headers, **more)


def kinds(asked: Asked) -> list[str]:
    """Return the kinds of events that came."""
    return [event.kind for event in asked.events]


def chunks(asked: Asked) -> list[str]:
    """Return the ids of the tokens that came."""
    return [event.ident for event in asked.events if event.kind == "chunk"]


def of(asked: Asked, kind: str) -> list[Event]:
    """Return the events of a kind."""
    return [event for event in asked.events if event.kind == kind]


def test_a_job_is_followed_to_its_end(app: Flask, client: FlaskClient, context: Context, played: Played) -> None:
    """Its states, its tokens with ids to come back by, and all of it in the end."""
    job_id = submitted(client)
    asked = follow(app, job_id)
    asked.has(1)
    assert asked.headers["Content-Type"].startswith("text/event-stream")
    stream = played.start(job_id)
    stream.emit(chunk("one "))
    asked.has(3)
    stream.emit(chunk("two"))
    asked.has(4)
    stream.end()
    played.end(job_id)
    assert asked.done() == 200
    assert kinds(asked) == ["state", "state", "chunk", "chunk", "state", "end"]
    assert [event.data["state"] for event in of(asked, "state")] == ["queued", "running", "succeeded"]
    assert chunks(asked) == ["1-1", "1-2"]
    assert asked.text == "one two"
    assert asked.events[-1].data == client.get(f"/v1/jobs/{job_id}").json
    assert asked.events[-1].data["result"] == ANSWER
    assert context.waiters._count == 0


def test_a_client_comes_back(app: Flask, client: FlaskClient, played: Played) -> None:
    """With the id of its last event it gets exactly what is behind it, as often as it likes."""
    job_id = submitted(client)
    stream = played.start(job_id)
    for n in range(6):
        stream.emit(chunk(str(n)))
    until(lambda: stream.written == 6, 60)
    for known in range(1, 7):
        asked = follow(app, job_id, f"1-{known}")
        asked.has(7 - known)
        assert asked.text == "".join(map(str, range(known, 6)))
        asked.leave.set()
    resumed = follow(app, job_id, "1-5")
    stream.emit(chunk("6"))
    stream.end()
    played.end(job_id)
    resumed.done()
    assert resumed.text == "56"
    assert chunks(resumed) == ["1-6", "1-7"]
    late = follow(app, job_id)
    late.done()
    assert late.text == "0123456"
    assert kinds(late)[-1] == "end"


def test_a_long_stream_is_told_whole(app: Flask, client: FlaskClient, played: Played, redis_url: str) -> None:
    """Afterwards too, however many pieces Redis has of it."""
    job_id = submitted(client)
    played.start(job_id)
    with redis.Redis.from_url(redis_url) as store:
        pipe: Any = store.pipeline(transaction=False)
        for n in range(1, 2001):
            events = [chunk(f"{n} ")] if n < 2000 else [streams.END]
            piece = streams.encode_one(streams.Piece(job_id, 1, n, events))
            pipe.xadd(streams.key(job_id), {streams.FIELD: piece}, id=f"1-{n}")
        pipe.execute()
    played.end(job_id)
    for after, first in (("", 1), ("1-700", 701)):
        asked = follow(app, job_id, after)
        asked.done()
        assert asked.text == "".join(f"{n} " for n in range(first, 2000))
        assert "lost" not in kinds(asked)


def test_many_follow_one_job(app: Flask, client: FlaskClient, played: Played) -> None:
    """Each gets all of it; who leaves does nothing to it."""
    job_id = submitted(client)
    everybody = [follow(app, job_id) for _ in range(10)]
    stream = played.start(job_id)
    stream.emit(chunk("one "))
    for asked in everybody:
        until(lambda asked=asked: chunks(asked), 60)  # type: ignore[misc]  # binds the loop's variable
    everybody[0].leave.set()
    stream.emit(chunk("two"))
    everybody[0].done()
    stream.end()
    played.end(job_id)
    for asked in everybody[1:]:
        asked.done()
        assert asked.text == "one two"
    assert played.job(job_id).state == "succeeded"


def test_a_job_that_is_run_again_is_told_anew(app: Flask, client: FlaskClient, played: Played) -> None:
    """`restart`, then the whole answer of the new attempt; who comes back with an old id is told the same."""
    job_id = submitted(client)
    asked = follow(app, job_id)
    stream = played.start(job_id)
    stream.emit(chunk("old"))
    until(lambda: chunks(asked), 60)
    played.lose(job_id)
    again = played.start(job_id)
    again.emit(chunk("new "))
    until(lambda: len(chunks(asked)) == 2, 60)
    stream.emit(chunk("older"))
    again.emit(chunk("one"))
    again.end()
    played.end(job_id)
    asked.done()
    back = follow(app, job_id, "1-1")
    back.done()
    for one in (asked, back):
        (restart,) = of(one, "restart")
        assert restart.data == {"attempt": 2}
        assert chunks(one)[-2:] == ["2-1", "2-2"]
        assert one.text.endswith("new one")
        assert "older" not in one.text


@pytest.mark.parametrize("state", ["succeeded", "failed", "cancelled"])
def test_an_ended_job(
    app: Flask, client: FlaskClient, played: Played, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    """Its state and its end, at once: no tokens are waited for that will never come."""
    monkeypatch.setattr(interactive, "LATE", 300.0)
    job_id = submitted(client, stream=False)
    played.start(job_id)
    if state == "cancelled":
        played.cancel(job_id)
    else:
        played.end(job_id, None if state == "failed" else ANSWER, state)
    asked = follow(app, job_id)
    assert asked.done() == 200
    assert kinds(asked) == ["state", "end"]
    assert asked.events[-1].data["state"] == state


def test_a_job_without_a_stream(
    app: Flask, client: FlaskClient, played: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its states, and its end as soon as it comes: no tokens are waited for."""
    monkeypatch.setattr(interactive, "LATE", 300.0)
    job_id = submitted(client, stream=False)
    asked = follow(app, job_id)
    asked.has(1)
    played.start(job_id)
    until(lambda: len(asked.events) == 2, 60)
    played.end(job_id)
    asked.done()
    assert kinds(asked) == ["state", "state", "state", "end"]


def test_tokens_behind_the_end_are_waited_for(
    app: Flask, client: FlaskClient, played: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first too: a short job ends before its tokens are out."""
    monkeypatch.setattr(interactive, "LATE", 300.0)
    job_id = submitted(client)
    asked = follow(app, job_id)
    asked.has(1)
    stream = played.start(job_id)
    played.end(job_id)
    assert not chunks(asked)
    stream.emit(chunk("late"))
    stream.end()
    asked.done()
    assert asked.text == "late"
    assert kinds(asked)[-1] == "end"


def test_tokens_that_are_gone_are_lost(
    app: Flask, client: FlaskClient, played: Played, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis has forgotten them: a client that had begun is told so, and gets the result in the end."""
    monkeypatch.setattr(interactive, "LATE", 0.3)
    job_id = submitted(client)
    asked = follow(app, job_id)
    stream = played.start(job_id)
    stream.emit(chunk("one"))
    until(lambda: chunks(asked), 60)
    played.end(job_id)
    asked.done()
    assert kinds(asked)[-3:] == ["lost", "state", "end"]
    assert asked.events[-1].data["result"] == ANSWER


def test_a_gap_is_said(app: Flask, client: FlaskClient, played: Played, redis_url: str) -> None:
    """Redis came back empty in the middle: `lost` stands where tokens are missing."""
    job_id = submitted(client)
    stream = played.start(job_id)
    stream.emit(chunk("one"))
    until(lambda: stream.written == 1, 60)
    with redis.Redis.from_url(redis_url) as store:
        store.flushall()
    stream.emit(chunk("two"))
    until(lambda: stream.written == 2, 60)
    asked = follow(app, job_id)
    stream.end()
    played.end(job_id)
    asked.done()
    assert [kind for kind in kinds(asked) if kind != "state"] == ["lost", "chunk", "end"]
    assert chunks(asked) == ["1-2"]


def test_without_redis_there_are_states(settings: Settings, played: Played) -> None:
    """And the end, with the whole result."""
    app = create_app(settings.model_copy(update={"redis_url": f"redis://127.0.0.1:{servers.free_port()}/0"}))
    job_id = submitted(app.test_client(), stream=False)
    asked = follow(app, job_id)
    asked.has(1)
    played.start(job_id)
    asked.has(2)
    played.end(job_id)
    asked.done()
    assert kinds(asked)[0] == "state"
    assert kinds(asked)[-1] == "end"
    app.extensions[EXTENSION].close()


@pytest.mark.parametrize("streamed", [False, True])
def test_a_redis_that_stays_away_is_told_once(
    settings: Settings, played: Played, monkeypatch: pytest.MonkeyPatch, streamed: bool
) -> None:
    """And only of a job that has tokens to lose: it does not run for that, and its end comes as ever."""
    monkeypatch.setattr(following, "PATIENCE", -1.0)  # it counts as away at once
    app = create_app(settings.model_copy(update={"redis_url": f"redis://127.0.0.1:{servers.free_port()}/0"}))
    job_id = submitted(app.test_client(), stream=streamed)
    asked = follow(app, job_id)
    asked.has(1)
    played.start(job_id)
    until(lambda: "running" in [event.data["state"] for event in of(asked, "state")], 60)
    played.end(job_id)
    asked.done()
    late = follow(app, job_id)
    late.done()
    for one, states in ((asked, ["queued", "running", "succeeded"]), (late, ["succeeded"])):
        assert [event.data["state"] for event in of(one, "state")] == states
        assert kinds(one).count("lost") == (1 if streamed else 0)
        assert kinds(one)[-1] == "end"
    app.extensions[EXTENSION].close()


def test_the_database_may_be_away_for_a_moment(
    app: Flask, client: FlaskClient, context: Context, played: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The stream goes on."""
    job_id = submitted(client)
    asked = follow(app, job_id)
    stream = played.start(job_id)
    stream.emit(chunk("one"))
    until(lambda: chunks(asked), 60)
    real, away = context.reserve.reading, threading.Event()
    away.set()

    def reading() -> Any:
        if away.is_set():
            raise DatabaseUnavailable("away")
        return real()

    monkeypatch.setattr(context.reserve, "reading", reading)
    stream.emit(chunk("two"))
    stream.end()
    played.end(job_id)
    until(lambda: len(chunks(asked)) == 2, 60)
    away.clear()
    asked.done()
    assert kinds(asked)[-1] == "end"


def test_a_client_that_hangs_up_leaves_its_place(app: Flask, client: FlaskClient, context: Context) -> None:
    """And the job as it is."""
    job_id = submitted(client)
    server, end = connect()
    asked = follow(app, job_id, environ_overrides={"gunicorn.socket": server})
    asked.has(1)
    end.close()
    asked.done()
    assert context.waiters._count == 0
    assert client.get(f"/v1/jobs/{job_id}").json["state"] == "queued"
    server.close()


def test_stopping_ends_the_stream(app: Flask, client: FlaskClient, context: Context) -> None:
    """Clients come back with their last id."""
    asked = follow(app, submitted(client))
    asked.has(1)
    context.waiters.stop()
    assert asked.done() == 200


@pytest.mark.parametrize("after", ["x", "1", "1-", "-1-1", "1-1-1", "9" * 100, "1-٣", "2-1", "999999999-1"])
def test_an_id_that_is_none_is_refused(client: FlaskClient, played: Played, after: str) -> None:
    """Also one from the future, which this stream cannot have given."""
    job_id = submitted(client)
    played.start(job_id)
    answer = client.get(f"/v1/jobs/{job_id}/events", headers={"Last-Event-ID": after.encode().decode("latin-1")})
    assert answer.status_code == 422
    assert answer.json["errors"][0]["field"] == "Last-Event-ID"


def test_jobs_of_others_are_not_there(client: FlaskClient, context: Context, database: Database) -> None:
    """Nor those that nobody has."""
    made_key(database, "ada")
    expire_memory(context)
    ada, bob = bearer(made_key(database, "ada")), bearer(made_key(database, "bob"))
    job_id = str(client.post("/v1/jobs", json={"prompt": "hi"}, headers=ada).json["id"])
    for one in (job_id, new_id("job"), "job_x", "x" * 3000, "%00"):
        assert client.get(f"/v1/jobs/{one}/events", headers=bob).status_code == 404
    assert context.waiters._count == 0


def test_looking_only_at_the_head_leaves_nothing_behind(client: FlaskClient, context: Context) -> None:
    """HEAD has no stream."""
    answer = client.head(f"/v1/jobs/{submitted(client)}/events")
    answer.close()
    assert answer.status_code == 200
    assert context.waiters._count == 0


def test_streams_are_for_jobs_alone(client: FlaskClient) -> None:
    """An embedding has none, and lines of bulks are not streamed."""
    refused = client.post("/v1/jobs", json={"input": "hi", "stream": True})
    assert (refused.status_code, refused.json["errors"][0]["field"]) == (422, "stream")
    assert client.post("/v1/jobs", json={"prompt": "hi", "stream": "yes"}).status_code == 422
    assert client.post("/v1/jobs", json={"prompt": "hi", "stream": True}).status_code == 202
