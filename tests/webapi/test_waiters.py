"""Requests that wait for a job's end."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest
import redis
from flask import Flask
from flask.testing import FlaskClient

from models import views
from models.db import Database
from models.streams import Piece
from stoker.settings import Settings
from tests import servers
from tests.webapi.conftest import End
from webapi.app import create_app
from webapi.context import EXTENSION, Context
from webapi.waiters import TURNS, Waiter, Waiters
from webapi.waking import MOST_AWAKE, Waking


def submit(client: FlaskClient) -> str:
    """Submit a job and return its id."""
    return str(client.post("/v1/jobs", json={"prompt": "hi"}).json["id"])


def waiting(pool: ThreadPoolExecutor, app: Flask, job_id: str, seconds: float) -> Future[tuple[float, Any]]:
    """Wait for a job in another thread; the future has the seconds it took and the answer."""

    def wait() -> tuple[float, Any]:
        started = time.monotonic()
        answer = app.test_client().get(f"/v1/jobs/{job_id}?wait={seconds}")
        return time.monotonic() - started, answer

    return pool.submit(wait)


def until_waiting(context: Context, count: int) -> None:
    """Wait until so many requests wait."""
    deadline = time.monotonic() + 60
    while context.waiters._count != count:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_finished_job_is_not_waited_for(client: FlaskClient, end: End) -> None:
    """Its answer comes at once."""
    job_id = submit(client)
    end(job_id)
    started = time.monotonic()
    assert client.get(f"/v1/jobs/{job_id}?wait=60").json["state"] == "succeeded"
    assert time.monotonic() - started < 50


def test_an_open_job_is_shown_when_the_time_is_up(client: FlaskClient) -> None:
    """The answer is the job as it is then."""
    job_id = submit(client)
    started = time.monotonic()
    assert client.get(f"/v1/jobs/{job_id}?wait=0.4").json["state"] == "queued"
    assert time.monotonic() - started >= 0.4


def test_redis_wakes_at_once(
    app: Flask, client: FlaskClient, context: Context, end: End, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A published end wakes those who wait for that job, and nobody else."""
    monkeypatch.setattr("webapi.waiters.LOOK_EVERY", 300)  # not the database
    mine, other = submit(client), submit(client)
    with ThreadPoolExecutor(3) as pool, redis.Redis.from_url(redis_url) as publisher:
        futures = [waiting(pool, app, mine, 60) for _ in range(2)]
        bystander = waiting(pool, app, other, 60)
        until_waiting(context, 3)
        while not publisher.pubsub_numsub("stoker:ended")[0][1]:
            time.sleep(0.01)
        end(mine)
        publisher.publish("stoker:ended", f"job_x,{mine}")
        for future in futures:
            seconds, answer = future.result(50)
            assert answer.json["state"] == "succeeded"
            assert seconds < 60
        assert not bystander.done()
        end(other)
        publisher.publish("stoker:ended", other)
        assert bystander.result(50)[1].json["state"] == "succeeded"
    assert context.waiters._count == 0
    assert context.waiters._waiting == {}


def test_the_database_wakes_without_redis(settings: Settings, end: End) -> None:
    """With Redis away the end is seen by the query that runs once a second."""
    app = create_app(settings.model_copy(update={"redis_url": f"redis://127.0.0.1:{servers.free_port()}/0"}))
    job_id = submit(app.test_client())
    with ThreadPoolExecutor(1) as pool:
        future = waiting(pool, app, job_id, 60)
        until_waiting(app.extensions[EXTENSION], 1)
        end(job_id)
        assert future.result(50)[1].json["state"] == "succeeded"
    app.extensions[EXTENSION].close()


def test_an_end_while_registering_is_not_missed(
    client: FlaskClient, context: Context, end: End, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that ends between the first look and the registration is seen by the look after it."""
    job_id = submit(client)
    registered = context.waiters.registered

    def late(*asked: Any) -> Any:
        end(job_id)
        return registered(*asked)

    monkeypatch.setattr(context.waiters, "registered", late)
    monkeypatch.setattr("webapi.waiters.LOOK_EVERY", 300)  # nothing else would tell of it
    started = time.monotonic()
    assert client.get(f"/v1/jobs/{job_id}?wait=60").json["state"] == "succeeded"
    assert time.monotonic() - started < 50


def test_too_many_waiters_are_refused(settings: Settings, end: End) -> None:
    """Beyond the limit a wait is a 503 with Retry-After; looking without waiting goes on, and places are given back."""
    app = create_app(settings.model_copy(update={"max_waiters": 2}))
    client = app.test_client()
    job_id = submit(client)
    with ThreadPoolExecutor(2) as pool:
        futures = [waiting(pool, app, job_id, 60) for _ in range(2)]
        until_waiting(app.extensions[EXTENSION], 2)
        refused = client.get(f"/v1/jobs/{job_id}?wait=5")
        assert refused.status_code == 503
        assert refused.json["code"] == "too_many_waiters"
        assert refused.headers["Retry-After"]
        assert client.get(f"/v1/jobs/{job_id}").status_code == 200
        end(job_id)
        assert [future.result(50)[1].status_code for future in futures] == [200, 200]
    job_id = submit(client)
    assert client.get(f"/v1/jobs/{job_id}?wait=0.1").status_code == 200
    app.extensions[EXTENSION].close()


def test_who_waits_for_what_has_ended_needs_no_place(settings: Settings, end: End) -> None:
    """Its answer is there, however many wait; what never was is a 404 as ever."""
    app = create_app(settings.model_copy(update={"max_waiters": 0}))
    client = app.test_client()
    job_id = submit(client)
    assert client.get(f"/v1/jobs/{job_id}?wait=5").status_code == 503
    end(job_id)
    assert client.get(f"/v1/jobs/{job_id}?wait=5").json["state"] == "succeeded"
    assert client.get(f"/v1/jobs/job_{'0' * 32}?wait=5").status_code == 404
    app.extensions[EXTENSION].close()


def test_who_gets_no_turn_at_the_database_is_told(
    client: FlaskClient, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A database that hangs holds those whose turn it is, not everybody else for ever; submitting takes no turn."""
    job_id = submit(client)
    monkeypatch.setattr("webapi.waiters.TURN_WITHIN", 0.1)
    with ExitStack() as others:
        for _ in range(TURNS):
            others.enter_context(context.waiters.turn())
        assert client.get(f"/v1/jobs/{job_id}").status_code == 503
        assert client.get(f"/v1/jobs/{job_id}?wait=1").status_code == 503
        assert submit(client)
    assert client.get(f"/v1/jobs/{job_id}").status_code == 200


@pytest.mark.parametrize(("threads", "most"), [(8, 4), (100, 50), (128, 64), (256, 128), (150, 86)])
def test_waiters_never_take_every_thread(settings: Settings, database: Database, threads: int, most: int) -> None:
    """Sixty-four threads are left for others, or half of them where there are few."""
    waiters = Waiters(settings.model_copy(update={"max_waiters": 128, "web_threads": threads}), database)
    assert waiters._most == most


def test_a_wait_without_threads_is_refused(
    client: FlaskClient, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the hub's threads cannot be started a wait is a 503, holds no place, and the next wait tries again."""
    job_id = submit(client)
    real, refused = threading.Thread.start, []

    def start(thread: threading.Thread) -> None:
        if thread.name == "waiters_listen" and not refused:
            refused.append(thread)
            raise RuntimeError("can't start new thread")
        real(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    answer = client.get(f"/v1/jobs/{job_id}?wait=5")
    assert (answer.status_code, answer.json["code"]) == (503, "too_many_waiters")
    assert context.waiters._count == 0
    assert client.get(f"/v1/jobs/{job_id}?wait=0.1").status_code == 200
    assert context.waiters._to_start == []


def test_stopping_ends_every_wait(app: Flask, client: FlaskClient, context: Context) -> None:
    """Who waits gets the job as it is, at once, and nobody is held any more."""
    job_id = submit(client)
    with ThreadPoolExecutor(5) as pool:
        futures = [waiting(pool, app, job_id, 60) for _ in range(5)]
        until_waiting(context, 5)
        threading.Thread(target=context.waiters.stop).start()
        assert all(future.result(50)[1].json["state"] == "queued" for future in futures)
    started = time.monotonic()
    assert client.get(f"/v1/jobs/{job_id}?wait=60").json["state"] == "queued"
    assert time.monotonic() - started < 50


def test_a_look_that_fails_is_not_the_last(
    client: FlaskClient, context: Context, end: End, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever goes wrong with one look for ended jobs, the next one comes."""
    job_id = submit(client)
    monkeypatch.setattr(context.waiters, "_ended", lambda _: None)
    real, failed = views.states, threading.Event()

    def states(*asked: Any) -> dict[str, str]:
        if not failed.is_set():
            failed.set()
            raise ValueError("unthought-of")
        return real(*asked)

    monkeypatch.setattr(views, "states", states)
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(client.get, f"/v1/jobs/{job_id}?wait=60")
        assert failed.wait(50)
        end(job_id)
        assert future.result(50).json["state"] == "succeeded"


def test_a_state_from_before_is_passed_over() -> None:
    """What the hub asked for before a token came would take the job back to the queue."""
    waiter = Waiter(states=True)
    before = time.monotonic()
    waiter.know("running")
    waiter.see("queued", before)
    assert (waiter.state, waiter.woken.is_set()) == ("running", False)
    waiter.see("queued", time.monotonic())
    assert (waiter.state, waiter.woken.is_set()) == ("queued", True)
    waiter.see("succeeded", before)
    assert waiter.may_have_ended


def test_clients_that_do_not_read_keep_nobody_asleep() -> None:
    """However many tokens come for those whose threads hang in a write: one who sleeps is woken all the same."""
    waking, stop = Waking(), threading.Event()
    stuck, sleeper = [Waiter(tokens=True) for _ in range(4 * MOST_AWAKE)], Waiter(tokens=True)
    for waiter in (*stuck, sleeper):
        waiter.waking = waking
    for waiter in stuck:
        waiter.wait(0)  # awake since

    def tell() -> None:
        number = 0
        while not stop.wait(0.005):
            number += 1
            for waiter in stuck:
                waiter.hear(Piece("job_1", 1, number, ["x"]))

    told = threading.Thread(target=tell)
    told.start()
    woken: list[float] = []

    def sleep() -> None:
        started = time.monotonic()
        sleeper.wait(60)
        woken.append(time.monotonic() - started)

    asleep = threading.Thread(target=sleep)
    asleep.start()
    while not asleep.join(0.02) and asleep.is_alive() and not sleeper.pieces:
        if sleeper._sleeping:
            sleeper.hear(Piece("job_2", 1, 1, ["y"]))
    asleep.join(70)
    stop.set()
    told.join(60)
    assert woken[0] < 50
