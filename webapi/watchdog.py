"""Ends reads that take too long altogether: gunicorn's read(n) goes on while bytes trickle in, whatever the timeout."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import structlog

log = structlog.get_logger("stoker.web")

LOOK_EVERY = 0.5


class Watchdog:
    """Shuts the reading side of watched connections at their time, from one thread, started when first needed."""

    def __init__(self) -> None:
        self._pid = 0
        self._start_lock = threading.Lock()

    @contextmanager
    def watching(self, connection: socket.socket, seconds: float) -> Iterator[None]:
        """End the reads of this connection after so many seconds; it can be written to all the same."""
        if self._pid != os.getpid():
            self._start()
        with self._lock:
            self._due[connection] = time.monotonic() + seconds
        try:
            yield
        finally:
            with self._lock:
                self._due.pop(connection, None)

    def _start(self) -> None:
        with self._start_lock:
            if self._pid == os.getpid():
                return
            # Nothing of a parent's is used after a fork: its lock may be held, its connections are not ours.
            self._lock = threading.Lock()
            self._due: dict[socket.socket, float] = {}
            try:
                threading.Thread(target=self._run, name="watchdog", daemon=True).start()
            except RuntimeError:
                log.warning("no thread for the watchdog", note="slow bodies are not cut off")
                return
            self._pid = os.getpid()

    def _run(self) -> None:
        while True:
            time.sleep(LOOK_EVERY)
            now = time.monotonic()
            # Within the lock: what is no longer watched may be another request on the same connection.
            with self._lock:
                for connection in [connection for connection, due in list(self._due.items()) if due <= now]:
                    self._due.pop(connection, None)
                    with suppress(OSError):
                        connection.shutdown(socket.SHUT_RD)
