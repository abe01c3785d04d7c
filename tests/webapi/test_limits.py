"""Limits of keys: who takes too much hears so, with when to come back, and nothing of it is stored."""

from __future__ import annotations

import io
import signal
import socket
import threading
import time
from contextlib import ExitStack
from typing import Any

import pytest
from flask import Flask, g
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from models import bulks, engines, files, jobs, usage, waiting
from models.db import Database
from models.room import FOR_BULKS, Most, Room
from stoker.settings import Settings
from tests import servers
from tests.models import given
from tests.tasks.inprocess import until
from tests.webapi.bulk_kit import Service, prompts
from tests.webapi.key_kit import FirstHangs, key_of
from webapi import days, rates, remembered
from webapi.app import create_app
from webapi.context import EXTENSION, Context
from webapi.rates import Rates
from webapi.waiters import Waiter

CHAT = {"model": "fake", "messages": [{"role": "user", "content": "hi"}]}
JOB = {"model": "fake", "prompt": "hi", "max_tokens": 10}


@pytest.fixture(autouse=True)
def known(database: Database) -> None:
    """Make the model known."""
    with database.transaction() as tx:
        engines.remember(tx, "fake", None, None)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a count of what waits be due as soon as there is a reason for it."""
    monkeypatch.setattr("models.room.LEAST_PAUSE", 0.0)
    monkeypatch.setattr("models.room.MOST_SHARE", 1e9)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for a Redis that is well as long as it takes: on a slow machine that is more than a tenth of a second."""
    monkeypatch.setattr(rates, "WITHIN", 30.0)


def refused(answer: TestResponse, code: str) -> dict[str, str]:
    """Check an answer that refuses, as stoker's own calls do, and return its headers."""
    assert answer.status_code == 429, answer.text
    assert answer.json["code"] == code
    assert int(answer.headers["Retry-After"]) >= 1
    return dict(answer.headers)


def refused_as_openai_does(answer: TestResponse, kind: str) -> None:
    """Check an answer that refuses, as OpenAI's calls do."""
    assert answer.status_code == 429, answer.text
    assert answer.json["error"] | {"message": ""} == {
        "message": "",
        "type": kind,
        "param": None,
        "code": "rate_limit_exceeded",
    }
    assert int(answer.headers["Retry-After"]) >= 1


def nothing_stored(database: Database) -> bool:
    """Tell whether there are no jobs, bulks and files."""
    ready = [row for row in given.rows(database, files.table) if row.state == "ready"]
    return not given.rows(database, jobs.table) and not given.rows(database, bulks.table) and not ready


# Requests a second


@pytest.mark.usefixtures("patient")
def test_requests_are_counted_by_key(client: FlaskClient, database: Database) -> None:
    """Answers tell what is left; beyond it 429 on both surfaces, and other keys are not touched."""
    one, other = (key_of(database, limits={"requests_per_second": 0.001}) for _ in range(2))
    first = client.get("/v1/jobs", headers=one)
    assert first.status_code == 200
    assert first.headers["X-RateLimit-Limit-Requests"] == "0.001"
    assert first.headers["X-RateLimit-Remaining-Requests"] == "0"
    assert 900 < float(first.headers["X-RateLimit-Reset-Requests"].removesuffix("s")) <= 1000
    headers = refused(client.post("/v1/jobs", json=JOB, headers=one), "rate_limit_exceeded")
    assert 900 <= int(headers["Retry-After"]) <= 1000
    refused_as_openai_does(client.post("/v1/chat/completions", json=CHAT, headers=one), "requests")
    assert nothing_stored(database)
    assert client.post("/v1/jobs", json=JOB, headers=other).status_code == 202


def test_without_a_limit_nothing_is_counted(client: FlaskClient, context: Context, database: Database) -> None:
    """No header, and Redis is not asked."""
    answer = client.get("/v1/jobs", headers=key_of(database))
    assert not [name for name in answer.headers.keys() if "ratelimit" in name.lower()]  # noqa: SIM118  # several of a name
    assert context.rates._shared is context.rates._own is None


@pytest.mark.usefixtures("patient")
def test_web_processes_count_together(settings: Settings) -> None:
    """What one has let in the other knows; the window moves."""
    here, there = Rates(settings), Rates(settings)
    seven = 7 / 60  # in a minute, which no pause of the machine uses up
    assert [rate.take("key_1", seven).let_in for rate in (here, there) * 4] == [True] * 7 + [False]
    assert here.take("key_2", seven).let_in
    taken = there.take("key_1", seven)
    assert (taken.let_in, taken.remaining) == (False, 0)
    assert 0 < taken.reset <= 60
    began = time.monotonic()
    assert [rate.take("key_3", 4.0).let_in for rate in (here, there) * 2] == [True] * 4
    until(lambda: there.take("key_3", 4.0).let_in)
    assert time.monotonic() - began >= 0.9


@pytest.mark.parametrize(
    ("per_second", "amount", "seconds"),
    [
        (10.0, 10, 1),
        (2.5, 5, 2),
        (0.5, 1, 2),
        (0.05, 1, 20),
        (0.001, 1, 1000),
        (1 / 3, 1, 3),
        (1e6, 1_000_000, 1),
        (1e-300, 1, 1_000_000),
    ],
)
def test_a_rate_is_so_many_in_so_many_seconds(per_second: float, amount: int, seconds: int) -> None:
    """Whole ones of both."""
    window = rates.window_of(per_second)
    assert (window.amount, window.get_expiry()) == (amount, seconds)


@pytest.mark.usefixtures("patient")
def test_with_redis_away_each_process_counts_for_itself(settings: Settings) -> None:
    """At once and within the limit; when Redis is back it counts for all again."""
    with servers.redis() as server:
        both = [Rates(settings.model_copy(update={"redis_url": server.url})) for _ in range(2)]
        assert both[0].take("key_1", 0.01).let_in
        server.stop(signal.SIGKILL)
        began = time.monotonic()
        assert [rate.take("key_1", 0.01).let_in for rate in both * 2] == [True, True, False, False]
        assert time.monotonic() - began < 20  # nothing waits until Redis is back
        server.start()
        for rate in both:
            rate._away_until = time.monotonic() - 1
        assert both[0].take("key_2", 0.01).let_in
        assert not both[1].take("key_2", 0.01).let_in


def test_a_hung_redis_costs_a_tenth_of_a_second_once(settings: Settings) -> None:
    """It takes connections and says nothing; of a crowd none waits longer, and who comes later not at all."""
    with socket.create_server(("127.0.0.1", 0), backlog=500) as hung:
        mine = Rates(settings.model_copy(update={"redis_url": f"redis://127.0.0.1:{hung.getsockname()[1]}/0"}))
        took: list[float] = []

        def take() -> None:
            began = time.monotonic()
            mine.take("key_1", 1000.0)
            took.append(time.monotonic() - began)

        threads = [threading.Thread(target=take) for _ in range(200)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert len(took) == 200
        assert max(took) < 10  # by turns the last would wait 20 s
        began = time.monotonic()
        for _ in range(1000):
            mine.take("key_1", 1000.0)
        assert time.monotonic() - began < rates.WITHIN * 100


# Streams


def test_streams_are_counted_by_key(client: FlaskClient, app: Flask, context: Context, database: Database) -> None:
    """Waits are among them; beyond it 429, and no job comes of it. A place that is left is free again."""
    headers = key_of(database, limits={"streams": 2})
    with database.reading():
        key_id = given.rows(database, jobs.table.metadata.tables["api_keys"])[0].id
    caller = context.keys.of_id(key_id)
    assert caller is not None
    with ExitStack() as held, app.test_request_context():
        g.caller = caller
        for _ in range(2):
            held.enter_context(context.waiters.place(Waiter()))
        g.pop("caller")
        refused_as_openai_does(client.post("/v1/chat/completions", json=CHAT, headers=headers), "requests")
        job_id = given.submitted(database, 1, owner="ada")[0]
        refused(client.get(f"/v1/jobs/{job_id}?wait=1", headers=headers), "too_many_streams")
        refused(client.get(f"/v1/jobs/{job_id}/events", headers=headers), "too_many_streams")
        other = key_of(database)
        assert client.get(f"/v1/jobs/{job_id}?wait=0.01", headers=other).status_code == 200
    assert len(given.rows(database, jobs.table)) == 1
    assert client.get(f"/v1/jobs/{job_id}?wait=0.01", headers=headers).status_code == 200
    assert not context.waiters._of_keys._open


# What waits


@pytest.mark.usefixtures("impatient")
def test_jobs_that_wait_are_limited_by_key(client: FlaskClient, database: Database) -> None:
    """They are the owner's, over all keys; a key without the limit goes on."""
    few, usual = key_of(database, limits={"jobs_queued": 2}), key_of(database)
    assert [client.post("/v1/jobs", json=JOB, headers=few).status_code for _ in range(2)] == [202, 202]
    refused(client.post("/v1/jobs", json=JOB, headers=few), "queue_full")
    refused(client.post("/v1/bulks", json={"requests": [{"prompt": "hi"}]}, headers=few), "queue_full")
    refused_as_openai_does(client.post("/v1/chat/completions", json=CHAT, headers=few), "requests")
    assert client.post("/v1/jobs", json=JOB, headers=usual).status_code == 202
    assert len(given.rows(database, jobs.table)) == 3


@pytest.mark.usefixtures("impatient")
def test_tokens_that_wait_are_limited(client: FlaskClient, database: Database) -> None:
    """By the estimate of each job; one that is larger than the limit is let in where nothing waits."""
    headers = key_of(database, limits={"tokens_queued": 40})
    assert client.post("/v1/jobs", json=JOB | {"max_tokens": 100}, headers=headers).status_code == 202
    refused(client.post("/v1/jobs", json=JOB, headers=headers), "tokens_queue_full")
    refused(client.post("/v1/bulks", json={"requests": [{"prompt": "hi"}]}, headers=headers), "tokens_queue_full")
    refused_as_openai_does(
        client.post("/v1/responses", json={"model": "fake", "input": "hi", "background": True}, headers=headers),
        "tokens",
    )
    assert len(given.rows(database, jobs.table)) == 1
    given.change(database, jobs.table, state="succeeded")
    assert client.post("/v1/jobs", json=JOB, headers=headers).status_code == 202


def test_waiting_tokens_are_counted_by_owner(database: Database) -> None:
    """Queued and delayed ones, of every model and lane; neither others' nor begun ones."""
    ids = [
        *given.submitted(database, 3, tokens=5),
        *given.submitted(database, 1, tokens=7, lane="realtime"),
        *given.submitted(database, 1, tokens=11, model="other"),
    ]
    given.submitted(database, 5, owner="bob", tokens=100)
    given.change(database, jobs.table, jobs.table.c.id == ids[0], state="delayed", run_at=5e9)
    given.cut(database, ids[1:2])
    with database.reading() as tx:
        assert waiting.tokens_of_owner(tx, "alice", 100) == 10 + 7 + 11
        assert waiting.tokens_of_owner(tx, "nobody", 100) == 0


@pytest.mark.usefixtures("impatient")
def test_the_lines_of_bulks_wait_for_room_for_their_tokens(settings: Settings, database: Database) -> None:
    """They come in piece by piece, as room comes, and all of them in the end."""
    app = create_app(settings.model_copy(update={"key_tokens_queued": 200}))
    try:
        context = app.extensions[EXTENSION]
        service = Service(app.test_client(), context)
        bulk_id = service.submit(prompts(40, max_tokens=20))
        seen: list[int] = []
        for _ in range(200):
            shown = service.tend(bulk_id)
            with database.reading() as tx:
                seen.append(waiting.tokens_of_owner(tx, "local", 1000))
            if shown["state"] == "completed":
                break
            given.change(database, jobs.table, jobs.table.c.state == "queued", state="cancelled")
            context.room._lines.clear()
        assert 0 < max(seen) <= 200 + 60
        assert len(given.rows(database, jobs.table)) == 40
    finally:
        app.extensions[EXTENSION].close()


@pytest.mark.usefixtures("impatient")
def test_a_limit_that_is_raised_is_counted_up_to(database: Database) -> None:
    """A key with more room than another of its owner gets it, and one with less is refused at its own limit."""
    room = Room(database, 10, 1000)
    given.submitted(database, 12)
    for most, full in ((Most(5), True), (Most(20), False), (Most(5), True), (Most(13), False), (Most(12), True)):
        if full:
            with pytest.raises(Exception, match=f"{most.jobs} jobs of this owner"):
                room.check("alice", most=most)
        else:
            room.check("alice", most=most)
    assert room.tokens_left("alice", FOR_BULKS) == float("inf")


# Tokens of a day


def spent(database: Database, tokens: int, owner: str = "ada") -> None:
    """Let an owner have used so many tokens today."""
    row = {"owner": owner, "model": "m", "engine": "e"} | dict.fromkeys(usage.STATES + usage.TOKENS, 0)
    with database.transaction() as tx:
        tx.execute(usage.table.insert(), row | {"day": usage.day(tx), "prompt_tokens": tokens})


def test_the_tokens_of_a_day_are_limited(client: FlaskClient, database: Database, context: Context) -> None:
    """Answers tell what is left; when they are used up nothing more is taken until midnight, and reading goes on."""
    headers = key_of(database, limits={"tokens_per_day": 100})
    spent(database, 60)
    first = client.post("/v1/jobs", json=JOB, headers=headers | {"Idempotency-Key": "once"})
    assert first.status_code == 202
    assert first.headers["X-RateLimit-Limit-Tokens"] == "100"
    assert first.headers["X-RateLimit-Remaining-Tokens"] == "40"
    assert 0 < float(first.headers["X-RateLimit-Reset-Tokens"].removesuffix("s")) <= 86_400
    given.change(database, usage.table, prompt_tokens=100)
    context.days._known.clear()
    for path, body in (("/v1/jobs", JOB), ("/v1/bulks", {"requests": [{"prompt": "hi"}]})):
        told = refused(client.post(path, json=body, headers=headers), "daily_tokens_used")
        assert told["X-RateLimit-Remaining-Tokens"] == "0"
        assert told["X-Should-Retry"] == "false"
        assert int(told["Retry-After"]) <= 86_400
    refused_as_openai_does(client.post("/v1/chat/completions", json=CHAT, headers=headers), "tokens")
    assert len(given.rows(database, jobs.table)) == 1
    assert client.get("/v1/jobs", headers=headers).status_code == 200
    again = client.post("/v1/jobs", json=JOB, headers=headers | {"Idempotency-Key": "once"})
    assert (again.status_code, again.json) == (202, first.json)
    assert client.post("/v1/jobs", json=JOB, headers=key_of(database, "bob", limits={"tokens_per_day": 1}))


def test_a_day_is_read_seldom(
    client: FlaskClient, context: Context, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once a second of an owner, whatever comes."""
    read, real = [], usage.today

    def today(tx: Any, owner: str) -> usage.Today:
        read.append(owner)
        return real(tx, owner)

    monkeypatch.setattr(usage, "today", today)
    monkeypatch.setattr(context.days._known, "_keep", 60.0)
    headers = key_of(database, limits={"tokens_per_day": 100})
    for _ in range(5):
        assert client.post("/v1/jobs", json=JOB, headers=headers).status_code == 202
    assert read == ["ada"]


@pytest.mark.parametrize(("grace", "left", "served"), [(60.0, 60.0, True), (0.1, 60.0, False), (60.0, 0.1, False)])
def test_what_is_known_of_a_day_serves_a_crowd_for_a_moment(
    database: Database, monkeypatch: pytest.MonkeyPatch, grace: float, left: float, served: bool
) -> None:
    """While one reads the others are told what was, but not beyond the grace, and never what was of another day."""
    monkeypatch.setattr(days, "KEEP", 0.0)
    monkeypatch.setattr(remembered, "GRACE", grace)
    monkeypatch.setattr(usage, "today", lambda _tx, _owner: usage.Today(1, left))
    known = days.Days(database)
    known.today("ada")
    read = FirstHangs(lambda _tx, _owner: usage.Today(2, left))
    monkeypatch.setattr(usage, "today", read)
    with read.holding(lambda: known.today("ada")):
        time.sleep(0.2)
        assert known.today("ada").tokens == (1 if served else 2)
    assert read.calls == (1 if served else 2)


# Sizes


def test_a_key_may_send_less_than_the_server_takes(client: FlaskClient, database: Database) -> None:
    """Bodies and files; never more than the server takes."""
    headers = key_of(database, limits={"body_bytes": 500, "file_bytes": 500})
    large = JOB | {"prompt": "x" * 600}
    assert client.post("/v1/jobs", json=large, headers=headers).status_code == 413
    lines = prompts(40)
    assert len(lines) > 500
    bulk = client.post("/v1/bulks", data=lines, headers=headers | {"Content-Type": "application/jsonl"})
    assert bulk.status_code == 413
    form = {"purpose": "batch", "file": (io.BytesIO(lines), "in.jsonl")}
    assert client.post("/v1/files", data=form, headers=headers).status_code in {400, 413}
    assert nothing_stored(database)
    assert client.post("/v1/jobs", json=JOB, headers=headers).status_code == 202


def test_no_key_takes_more_than_the_server_does(app: Flask, settings: Settings, database: Database) -> None:
    """Whatever its own limit says."""
    app.extensions[EXTENSION].close()
    small = create_app(settings.model_copy(update={"max_body_bytes": 1000}))
    headers = key_of(database, limits={"body_bytes": 10**9})
    large = JOB | {"prompt": "x" * 2000}
    assert small.test_client().post("/v1/jobs", json=large, headers=headers).status_code == 413
    small.extensions[EXTENSION].close()
