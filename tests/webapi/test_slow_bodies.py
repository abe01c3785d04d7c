"""Bodies that come slowly, in part or badly framed, at a real server."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.webapi.test_gunicorn import Web

pytestmark = pytest.mark.journey

PRELUDE = (
    "import webapi.json_body as body; body.WHOLE, body.PAUSE, body.DRAIN = {}, {}, 1.0; "
    "from gunicorn.app.wsgiapp import run; run()"
)
LENGTH, CHUNKED = "Content-Length: 5000", "Transfer-Encoding: chunked"


class Impatient(Web):
    """A web server that lets a body pause for a second."""

    python = ("-c", PRELUDE.format(60.0, 1.0))


class Hasty(Web):
    """A web server that lets a body take a second altogether."""

    python = ("-c", PRELUDE.format(1.0, 60.0))


@pytest.fixture
def port(request: pytest.FixtureRequest, sqlite_url: str, redis_url: str, tmp_path: Path) -> Iterator[int]:
    """Return the port of a web server that takes 100,000 bytes, an impatient one unless the test asks for another."""
    kind = getattr(request, "param", Impatient)
    made = kind(sqlite_url, redis_url, tmp_path, STOKER_MAX_BODY_BYTES="100000")
    try:
        yield made.ready().port
    finally:
        made.end()


def answer_to(connection: socket.socket) -> tuple[int, dict[str, Any]]:
    """Read an answer: its status and its document."""
    with connection.makefile("rb") as stream:
        status = int(stream.readline().split()[1])
        head = list(iter(stream.readline, b"\r\n"))
        lengths = [int(line.split(b":")[1]) for line in head if line.lower().startswith(b"content-length")]
        return status, json.loads(stream.read(lengths[0]))


def begin(port: int, framing: str, body: bytes = b"") -> socket.socket:
    """Send the head of a POST, and some of its body."""
    head = ["POST /v1/jobs HTTP/1.1", "Host: localhost", "Content-Type: application/json", framing, "", ""]
    connection = socket.create_connection(("127.0.0.1", port), timeout=60)
    connection.sendall("\r\n".join(head).encode() + body)
    return connection


@pytest.mark.parametrize("port", [Hasty], indirect=True)
@pytest.mark.parametrize(("framing", "piece"), [(LENGTH, b" "), (CHUNKED, b"1\r\n \r\n")])
def test_a_body_that_trickles_is_cut_off(port: int, framing: str, piece: bytes) -> None:
    """A client that never pauses for long, and never comes to an end, gets a 408 when its time is up."""
    started = time.monotonic()
    with begin(port, framing) as connection:
        connection.settimeout(0.2)
        while True:
            assert time.monotonic() - started < 60
            connection.sendall(piece)
            try:
                connection.recv(1, socket.MSG_PEEK)
            except TimeoutError:
                continue
            break
        assert time.monotonic() - started >= 1
        connection.settimeout(60)
        status, document = answer_to(connection)
    assert (status, document["code"]) == (408, "body_incomplete")


BAD_BODIES: list[tuple[str, bytes, int, str]] = [
    (CHUNKED, b"zz\r\n", 400, "malformed_body"),
    (CHUNKED, b"2\r\n{}xx", 400, "malformed_body"),
    (CHUNKED, b"2\r\n{", 408, "body_incomplete"),
    (CHUNKED, b"186a0\r\n" + b" " * 100_000, 408, "body_incomplete"),
    (LENGTH, b"{}", 408, "body_incomplete"),
    ("Content-Length: 100000", b" " * 99_999, 408, "body_incomplete"),
    (CHUNKED, b"186a1\r\n" + b" " * 100_001 + b"\r\n0\r\n\r\n", 413, "body_too_large"),
    ("Content-Length: 2", b"{}", 422, "one_of"),
]


def test_a_bad_body_is_the_clients_error(port: int) -> None:
    """Bad chunks are a 400, a body that stops is a 408, also at the very limit; never a 500."""
    for framing, body, status, code in BAD_BODIES:
        with begin(port, framing, body) as connection:
            found, document = answer_to(connection)
        assert (found, document["code"]) == (status, code), (framing, body[:20])


def test_a_body_shorter_than_announced_is_incomplete(port: int) -> None:
    """A client that sends good JSON and closes before the length it announced gets a 408, and no job."""
    with begin(port, LENGTH, b'{"prompt": "hi"}') as connection:
        connection.shutdown(socket.SHUT_WR)
        status, document = answer_to(connection)
    assert (status, document["code"]) == (408, "body_incomplete")


@pytest.mark.parametrize("port", [Hasty], indirect=True)
def test_a_connection_goes_on_after_a_body_in_time(port: int) -> None:
    """The time is the body's, not the connection's: the next request on it is answered after the time of the first."""
    good = b'{"prompt": "hi"}'
    with begin(port, f"Content-Length: {len(good)}", good) as connection:
        assert answer_to(connection)[0] == 202
        time.sleep(2)
        connection.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert answer_to(connection)[0] == 200
