"""The client, against the real application on a loopback port."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import pytest
from flask import Flask

from models import ends, jobs
from models.db import Database, new_id
from models.ends import Settled
from models.results import NewResult
from stoker import Client, StokerAPIError
from stoker.settings import load
from stoker.steps import TRIES, Pause
from tests import servers
from webapi.app import create_app
from webapi.context import EXTENSION


class _Quiet(WSGIRequestHandler):
    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def app(sqlite_url: str, redis_url: str) -> Iterator[Flask]:
    """Return the application on SQLite."""
    made = create_app(load(database_url=sqlite_url, redis_url=redis_url, engine="fake"))
    yield made
    made.extensions[EXTENSION].close()


@pytest.fixture
def client(app: Flask) -> Iterator[Client]:
    """Return a client of a server that runs the application."""
    with make_server("127.0.0.1", 0, app, WSGIServer, _Quiet) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        with Client(f"http://127.0.0.1:{server.server_port}") as made:
            yield made
        server.shutdown()
        thread.join()


def end(database: Database, job_id: str) -> None:
    """Bring a job to its end, as an engine would."""
    batch_id = new_id("batch")
    this = jobs.table.c.id == job_id
    answer = '{"choices":[{"message":{"content":"Paris"}}]}'
    with database.transaction() as tx:
        jobs.move(tx, "batched", this, batch_id=batch_id)
        jobs.move(tx, "running", this, attempts=1)
        ends.settle(tx, "engine", {batch_id: [Settled(job_id, "succeeded", NewResult(200, answer))]})


def test_submit_wait_result(client: Client, sqlite_database: Database) -> None:
    """A job is submitted, waited for, and its answer read."""
    job = client.submit(prompt="The capital of France?", max_tokens=5, metadata={"run": "1"})
    assert (job.state, job.metadata, job.ended) == ("queued", {"run": "1"}, False)
    end(sqlite_database, job.id)
    done = client.wait(job.id, timeout=60)
    assert (done.state, done.text, done.ended) == ("succeeded", "Paris", True)
    assert client.result(job.id) == done.result
    assert [found.id for found in client.list(metadata={"run": "1"}, state="succeeded")] == [job.id]


def test_wait_gives_up(client: Client) -> None:
    """When the seconds have passed it is a TimeoutError that names the state."""
    job = client.submit(prompt="hi")
    with pytest.raises(TimeoutError, match="queued"):
        client.wait(job.id, timeout=0.3)


def test_a_refusal_is_told_in_words(client: Client) -> None:
    """The problem's text, status, code and request id."""
    with pytest.raises(StokerAPIError, match="temperature") as refused:
        client.submit(prompt="hi", temperature=3)
    assert (refused.value.status, refused.value.code) == (422, "invalid_request")
    assert refused.value.request_id
    job = client.submit(prompt="hi")
    assert client.cancel(job.id).state == "cancelled"
    with pytest.raises(StokerAPIError, match="already cancelled"):
        client.cancel(job.id)


def test_a_key_makes_one_job(client: Client) -> None:
    """The same key twice is the same job; without one each submit is a job of its own."""
    first = client.submit(prompt="hi", idempotency_key="k")
    assert client.submit(prompt="hi", idempotency_key="k").id == first.id
    assert client.submit(prompt="hi").id != first.id


def test_nobody_there() -> None:
    """A service that does not answer is an error after some tries; before each pause it is told why there is one."""
    told: list[Pause] = []
    with Client(f"http://127.0.0.1:{servers.free_port()}") as client:
        client.rest = told.append
        with pytest.raises(StokerAPIError, match="answer"):
            client.get("job_x")
    assert ["does not answer" in str(pause.why) for pause in told] == [True] * (TRIES - 1)


@pytest.mark.parametrize("proxy", ["http://127.0.0.1:1", "socks5://127.0.0.1:1"])
def test_loopback_is_asked_without_a_proxy(app: Flask, proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy in the environment, here a dead one, is not asked for a service on this machine."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, proxy)
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with make_server("127.0.0.1", 0, app, WSGIServer, _Quiet) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            for host in ("127.0.0.1", "localhost"):
                with Client(f"http://{host}:{server.server_port}") as client:
                    assert client.submit(prompt="hi").state == "queued"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("url", "direct"),
    [("http://[::1]:1", True), ("http://127.9.9.9", True), ("http://192.0.2.1", False), ("http://example.com", False)],
)
def test_only_loopback_is_asked_directly(url: str, direct: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service elsewhere is reached by the proxy that the environment names."""
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    with Client(url) as client:
        assert (not client._http._mounts) == direct
