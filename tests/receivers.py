"""A webhook receiver on loopback: real HTTP, answers by path, remembers what came."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True, slots=True)
class Received:
    """A request as it came; the names of `headers` are in lower case."""

    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Reply:
    """What to answer. `endless` goes on sending until the other side hangs up, `cut` hangs up without a word."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b"ok"
    endless: bool = False
    stalled: bool = False
    cut: bool = False


class Receiver:
    """The receiver while it runs: where it is, what came, and what it answers (`answer` may be replaced)."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.url = f"http://127.0.0.1:{port}"
        self.received: list[Received] = []
        self.answer: Callable[[Received], Reply] = lambda _received: Reply()
        self.released = threading.Event()
        self.written = 0

    def hang(self, _received: Received) -> Reply:
        """Answer only when the receiver ends: an `answer` for those who never do."""
        self.released.wait(30)
        return Reply()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    receiver: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        received = Received(self.path, {name.lower(): value for name, value in self.headers.items()}, body)
        self.receiver.received.append(received)
        reply = self.receiver.answer(received)
        self.close_connection = True
        with suppress(ConnectionError):
            self._write(reply)

    def do_GET(self) -> None:
        self.do_POST()

    def _write(self, reply: Reply) -> None:
        if reply.cut:
            return
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        if not reply.endless:
            self.send_header("content-length", str(len(reply.body) + reply.stalled))
        self.end_headers()
        self.wfile.write(reply.body)
        while reply.endless and not self.receiver.released.is_set():
            self.receiver.written += self.wfile.write(reply.body)
        if reply.stalled:
            self.receiver.released.wait(30)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the base class names it so
        """Say nothing: tests look at what came."""


class _Server(ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True


@contextmanager
def receiver() -> Iterator[Receiver]:
    """Run a receiver on a free port of loopback."""
    handler = type("Handler", (_Handler,), {})
    server = _Server(("127.0.0.1", 0), handler)
    handler.receiver = running = Receiver(server.server_port)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield running
    finally:
        running.released.set()
        server.shutdown()
        thread.join()
        server.server_close()
