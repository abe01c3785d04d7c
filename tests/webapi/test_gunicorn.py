"""The web server as it is deployed: gunicorn with our settings, on a loopback port."""

from __future__ import annotations

import http.client
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from gunicorn.config import Config

from models import ends, jobs
from models.db import Database, new_id
from models.ends import Settled
from models.results import NewResult
from tests import servers
from tests.tasks.inprocess import until
from webapi.gunicorn_worker import Worker

pytestmark = pytest.mark.journey


class Web:
    """A running web server."""

    python: tuple[str, ...] = ("-m", "gunicorn")

    def __init__(self, database_url: str, redis_url: str, folder: Path, **more: str) -> None:
        self.port = servers.free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / "web.log"
        metrics = folder / "metrics"
        metrics.mkdir(exist_ok=True)
        environ = {
            "STOKER_DATABASE_URL": database_url,
            "STOKER_REDIS_URL": redis_url,
            "STOKER_PORT": str(self.port),
            "STOKER_ENGINE": "fake",
            "PROMETHEUS_MULTIPROC_DIR": str(metrics),
            **more,
        }
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, *self.python, "-c", "python:webapi.gunicorn_conf", "webapi.app:create_app()"],
                env=os.environ | environ,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def ready(self) -> Web:
        """Wait until it answers."""
        deadline = time.monotonic() + 60
        while True:
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            try:
                httpx.get(f"{self.url}/livez", timeout=5).raise_for_status()
            except httpx.TransportError:
                time.sleep(0.05)
                continue
            return self

    def stop(self) -> float:
        """Send SIGTERM as a supervisor does, and return the seconds until it was gone."""
        started = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)
        return time.monotonic() - started

    def end(self) -> None:
        """Kill what is left of it."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(60)


@pytest.fixture
def web(database_url: str, redis_url: str, tmp_path: Path) -> Iterator[Web]:
    """Return a running web server with two workers."""
    made = Web(database_url, redis_url, tmp_path, STOKER_WEB_WORKERS="2")
    try:
        yield made.ready()
    finally:
        made.end()


def resident(pid: int) -> int:
    """Return the largest resident memory of a process and its children, in bytes."""
    pids = [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]
    found = [
        int(line.split()[1])
        for p in pids
        for line in Path(f"/proc/{p}/status").read_text().splitlines()
        if line.startswith("VmHWM")
    ]
    return max(found) * 1024


def post_large(web: Web, size: int, *, chunked: bool) -> int:
    """Send a body of `size` bytes to the end, then read: return the status."""
    connection = http.client.HTTPConnection("127.0.0.1", web.port, timeout=60)
    piece = b"x" * 65536
    connection.putrequest("POST", "/v1/jobs")
    connection.putheader("Content-Type", "application/json")
    connection.putheader(*(("Transfer-Encoding", "chunked") if chunked else ("Content-Length", str(size))))
    connection.endheaders()
    for _ in range(size // len(piece)):
        connection.send(b"10000\r\n" + piece + b"\r\n" if chunked else piece)
    if chunked:
        connection.send(b"0\r\n\r\n")
    answer = connection.getresponse()
    document = json.loads(answer.read())
    connection.close()
    assert document["code"] == "body_too_large"
    return answer.status


def hold(web: Web, request: str, count: int, held: ExitStack) -> list[socket.socket]:
    """Send a request over so many connections, and read nothing of the answers."""
    made = [held.enter_context(socket.create_connection(("127.0.0.1", web.port), timeout=60)) for _ in range(count)]
    for one in made:
        one.sendall(f"{request}\r\nHost: localhost\r\n\r\n".encode())
    return made


def is_let_go(web: Web, connection: socket.socket) -> bool:
    """Tell whether the server has closed its end of a connection: who reads nothing is told of it by /proc alone."""
    ours = [f"{number:04X}" for number in (web.port, connection.getsockname()[1])]
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()]
    return not any([end[-4:] for end in line[1:3]] == ours and line[3] == "01" for line in lines)


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_of_100_mb_is_refused(web: Web, chunked: bool) -> None:
    """A client that sends all of it before it reads gets a 413, and the server did not keep the body."""
    before = resident(web.process.pid)
    assert post_large(web, 100 * 2**20, chunked=chunked) == 413
    assert resident(web.process.pid) - before < (50 if chunked else 20) * 2**20
    assert httpx.get(f"{web.url}/livez", timeout=60).status_code == 200


def test_the_413_comes_before_the_body(web: Web) -> None:
    """A client that only announces its 100 MB is answered: nothing of them is waited for."""
    with socket.create_connection(("127.0.0.1", web.port), timeout=60) as connection:
        headers = ("Host: localhost", "Content-Type: application/json", "Content-Length: 104857600")
        head = "\r\n".join(["POST /v1/jobs HTTP/1.1", *headers, "", ""])
        connection.sendall(head.encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 413 ")


@pytest.fixture
def crowd(database_url: str, redis_url: str, tmp_path: Path) -> Iterator[tuple[Web, str, list[socket.socket]]]:
    """Return a web server, a job, and the connections of a hundred who wait for it: as many as may."""
    # Answers to a hundred may take longer than the five seconds after which gunicorn kills what is left of it.
    patient = {"GUNICORN_CMD_ARGS": "--graceful-timeout 60"}
    web = Web(database_url, redis_url, tmp_path, STOKER_MAX_WAITERS="100", **patient).ready()
    try:
        job_id = httpx.post(f"{web.url}/v1/jobs", json={"prompt": "hi"}, timeout=60).json()["id"]
        with ExitStack() as held:
            waiting = hold(web, f"GET /v1/jobs/{job_id}?wait=60 HTTP/1.1", 101, held)
            # One comes too late: then all others wait.
            (refused,) = select.select(waiting, [], [], 60)[0]
            assert refused.recv(100).startswith(b"HTTP/1.1 503")
            waiting.remove(refused)
            yield web, job_id, waiting
    finally:
        web.end()


def test_waits_end_at_sigterm(crowd: tuple[Web, str, list[socket.socket]]) -> None:
    """Whoever waits gets the job as it is, and not only when its seconds have passed."""
    web, _, waiting = crowd
    assert web.stop() < 40
    for one in waiting:
        answer = http.client.HTTPResponse(one)
        answer.begin()
        assert (answer.status, json.loads(answer.read())["state"]) == (200, "queued")


def test_many_waiters_do_not_hold_up_a_post(crowd: tuple[Web, str, list[socket.socket]]) -> None:
    """With a hundred requests waiting, looking and submitting go on: they are done while those still wait."""
    web, job_id, waiting = crowd
    for _ in range(10):
        assert httpx.post(f"{web.url}/v1/jobs", json={"prompt": "hi"}, timeout=60).status_code == 202
        assert httpx.get(f"{web.url}/v1/jobs/{job_id}", timeout=60).status_code == 200
    assert select.select(waiting, [], [], 0)[0] == []


def test_who_hangs_up_while_waiting_gives_its_place_back(database_url: str, redis_url: str, tmp_path: Path) -> None:
    """A crowd that waits and goes leaves room for the next at once, not when its seconds have passed."""
    web = Web(database_url, redis_url, tmp_path, STOKER_MAX_WAITERS="4").ready()
    try:
        job_id = httpx.post(f"{web.url}/v1/jobs", json={"prompt": "hi"}, timeout=60).json()["id"]
        request = f"GET /v1/jobs/{job_id}?wait=55 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()
        waited = f"{web.url}/v1/jobs/{job_id}?wait=0.1"
        with ExitStack() as crowd:
            sockets = [crowd.enter_context(socket.create_connection(("127.0.0.1", web.port))) for _ in range(5)]
            for one in sockets:
                one.sendall(request)
            (refused,) = select.select(sockets, [], [], 60)[0]
            assert refused.recv(100).startswith(b"HTTP/1.1 503")
            assert httpx.get(waited, timeout=60).status_code == 503
        until_status(waited, 200)
    finally:
        web.end()


def until_status(url: str, status: int) -> None:
    """Ask until the answer has this status."""
    deadline = time.monotonic() + 50
    while httpx.get(url, timeout=10).status_code != status:
        assert time.monotonic() < deadline, f"no {status}"
        time.sleep(0.1)


# Clients that hold on


def test_clients_that_do_not_close_hold_nobody_up(sqlite_url: str, redis_url: str, tmp_path: Path) -> None:
    """The server has said that it closes, and waits for them: each in a thread of its own, not one after the other."""
    web = Web(sqlite_url, redis_url, tmp_path).ready()
    try:
        with ExitStack() as held:
            for one in hold(web, "GET /livez HTTP/1.1\r\nConnection: close", 40, held):
                assert one.recv(100).startswith(b"HTTP/1.1 200")
            # By turns of 2 s it would take 80 s.
            assert httpx.get(f"{web.url}/livez", timeout=30).status_code == 200
    finally:
        web.end()


class Hurried(Web):
    """A web server that lets a client take nothing of its answer for three seconds."""

    python = (
        "-c",
        "import webapi.gunicorn_worker as worker; worker.SEND_PAUSE = 3; from gunicorn.app.wsgiapp import run; run()",
    )


def test_an_answer_that_nobody_reads_gives_its_thread_back(
    sqlite_database: Database, sqlite_url: str, redis_url: str, tmp_path: Path
) -> None:
    """A client that stops reading a whole answer is cut off; one that only reads slowly gets all of it."""
    web = Hurried(sqlite_url, redis_url, tmp_path).ready()
    try:
        job_id = httpx.post(f"{web.url}/v1/jobs", json={"prompt": "hi"}, timeout=60).json()["id"]
        batch_id, this = new_id("batch"), jobs.table.c.id == job_id
        answer = Settled(job_id, "succeeded", NewResult(200, json.dumps("x" * 30_000_000)))
        with sqlite_database.transaction() as tx:
            jobs.move(tx, "batched", this, batch_id=batch_id)
            jobs.move(tx, "running", this, attempts=1)
            ends.settle(tx, "engine", {batch_id: [answer]})
        request = f"GET /v1/jobs/{job_id}/result HTTP/1.1\r\nConnection: close"
        with ExitStack() as held:
            still, slow = hold(web, request, 2, held)
            got = [0, 0]
            while data := slow.recv(1_000_000):
                got[1] += len(data)
                time.sleep(len(data) / 2_500_000)
            until(lambda: is_let_go(web, still))
            while data := still.recv(1_000_000):
                got[0] += len(data)
        assert got[1] > 30_000_000
        assert got[0] < 30_000_000
    finally:
        web.end()


class Brisk(Web):
    """A web server that lets the head of a request take a second."""

    python = (
        "-c",
        "import webapi.gunicorn_worker as worker; worker.HEAD_WITHIN = 1; from gunicorn.app.wsgiapp import run; run()",
    )


def test_a_head_that_trickles_is_cut_off(sqlite_url: str, redis_url: str, tmp_path: Path) -> None:
    """More clients than there are threads hold nobody up for long; who asks in time may wait as long as it takes."""
    web = Brisk(sqlite_url, redis_url, tmp_path, STOKER_WEB_THREADS="8").ready()
    try:
        job_id = httpx.post(f"{web.url}/v1/jobs", json={"prompt": "hi"}, timeout=60).json()["id"]
        with httpx.Client(base_url=web.url, timeout=60) as good:
            assert good.get(f"/v1/jobs/{job_id}?wait=3").json()["state"] == "queued"
            assert good.get("/livez").status_code == 200
        with ExitStack() as held:
            slow = [
                held.enter_context(socket.create_connection(("127.0.0.1", web.port), timeout=60)) for _ in range(16)
            ]
            started = time.monotonic()
            for one in slow:
                one.sendall(b"GET /livez HTTP/1.1\r\nX-A: ")
            while slow:
                assert time.monotonic() - started < 30
                for one in select.select(slow, [], [], 0.2)[0]:
                    slow.remove(one)
                for one in slow:
                    one.sendall(b"x")
            assert httpx.get(f"{web.url}/livez", timeout=60).status_code == 200
        assert "Traceback" not in web.log.read_text()
    finally:
        web.end()


def test_metrics_add_up_over_workers(web: Web) -> None:
    """Whichever worker is asked, the page counts the requests of all of them."""
    for _ in range(20):
        httpx.post(f"{web.url}/v1/jobs", json={"prompt": "hi"}, timeout=60).raise_for_status()
    page = httpx.get(f"{web.url}/metrics", timeout=60).text
    assert 'stoker_http_requests_total{method="POST",route="/v1/jobs",status="202"} 20.0' in page


def test_logs_are_json_without_prompts(web: Web) -> None:
    """Each line of the log is a JSON object; no prompt, no access log."""
    httpx.post(f"{web.url}/v1/jobs", json={"prompt": "c4n4ry"}, timeout=60).raise_for_status()
    httpx.post(f"{web.url}/v1/jobs", json={"prompt": "c4n4ry", "n": 0}, timeout=60)
    web.stop()
    lines = web.log.read_text().splitlines()
    assert lines
    for line in lines:
        assert isinstance(json.loads(line), dict), line
    assert "c4n4ry" not in web.log.read_text()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"STOKER_PORT": "99999"}, "STOKER_PORT"),
        ({"STOKER_HOST": "0.0.0.0"}, "stoker keys create"),  # noqa: S104  # it does not come to listening
        ({"STOKER_DATABASE_URL": "sqlite:////nowhere/stoker.db"}, "database does not answer"),
    ],
)
def test_a_start_that_cannot_be_is_one_line(
    sqlite_url: str, redis_url: str, tmp_path: Path, more: dict[str, str], said: str
) -> None:
    """The process ends by itself, not with 0, and the log is the one line that says why."""
    web = Web(sqlite_url, redis_url, tmp_path, **more)
    try:
        assert web.process.wait(60) != 0
    finally:
        web.end()
    last = web.log.read_text().splitlines()[-1]
    assert last.startswith("stoker web: ")
    assert said in last
    assert "Traceback" not in web.log.read_text()


def test_a_round_accepts_whoever_waits() -> None:
    """Ten clients that came at once are all accepted in the next round, and no more than may be connected."""
    taken: list[object] = []
    worker = Worker.__new__(Worker)
    worker.cfg, worker.nr_conns, worker.worker_connections, worker.enqueue_req = Config(), 0, 8, taken.append
    with socket.create_server(("127.0.0.1", 0), backlog=16) as listener, ExitStack() as clients:
        listener.setblocking(False)
        for _ in range(10):
            clients.enter_context(socket.create_connection(listener.getsockname(), timeout=10))
        worker.accept(listener)
        assert len(taken) == 8
        worker.worker_connections = 100
        worker.accept(listener)
        assert len(taken) == worker.nr_conns == 10
        for conn in taken:
            conn.sock.close()
