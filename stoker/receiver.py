"""A small webhook receiver on loopback, for the demo: keeps what it was sent and says thanks."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

_MOST_BYTES = 20_000_000


@dataclass(frozen=True, slots=True)
class Received:
    """One request as it came; the names of `headers` are in small letters."""

    path: str
    headers: dict[str, str]
    body: bytes = field(repr=False)


class Receiver:
    """A receiver that listens while it is entered."""

    def __init__(self) -> None:
        """Bind a free loopback port."""
        self._received: list[Received] = []
        self._changed = threading.Condition()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> Self:
        """Start to listen."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        """Return where to send to."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/hook"

    def wait(self, count: int = 1, timeout: float = 30.0) -> list[Received]:
        """Return what came once it is `count` requests. Raises TimeoutError after `timeout` seconds."""
        until = time.monotonic() + timeout
        with self._changed:
            while len(self._received) < count:
                if not self._changed.wait(until - time.monotonic()):
                    msg = f"{len(self._received)} of {count} webhooks came within {timeout:g} s"
                    raise TimeoutError(msg)
            return list(self._received)

    def _take(self, request: Received) -> None:
        with self._changed:
            self._received.append(request)
            self._changed.notify_all()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        take = self._take

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                size = min(int(self.headers.get("content-length", 0)), _MOST_BYTES)
                headers = {name.lower(): value for name, value in self.headers.items()}
                take(Received(self.path, headers, self.rfile.read(size)))
                self.send_response(204)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the base's name for it
                """Write nothing: what comes is kept, not printed."""

        return Handler
