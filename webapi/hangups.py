"""Notices that a client has hung up: WSGI tells only whoever writes, and who waits for an answer writes nothing."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from socket import socket

import structlog

log = structlog.get_logger("stoker.web")

CONNECTION = "gunicorn.socket"
"""Where a request's environment has its connection; tests have none."""
_SIGNS = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR | select.EPOLLONESHOT


class Hangups:
    """Watches the connections of those who wait, all from one thread, started when first needed."""

    def __init__(self) -> None:
        self._pid = 0
        self._start_lock = threading.Lock()

    @contextmanager
    def watching(self, connection: socket | None, gone: Callable[[], None]) -> Iterator[None]:
        """Call `gone` when the client closes its side; without a connection (in tests) nothing is watched.

        A client that has sent its request and only closes its sending side counts as gone too: none of HTTP's does so.
        """
        if connection is None or not self._ready():
            yield
            return
        # Without a lock: held during a call that gives up the interpreter everybody would wait in line for both.
        number = connection.fileno()
        self._watched[number] = connection, gone
        self._epoll.register(number, _SIGNS)
        try:
            yield
        finally:
            # Before the server closes it: the number may be another connection a moment later.
            self._watched.pop(number, None)
            with suppress(OSError):
                self._epoll.unregister(number)

    def _ready(self) -> bool:
        with self._start_lock:
            if self._pid == os.getpid():
                return True
            # Nothing of a parent's is used after a fork.
            self._watched: dict[int, tuple[socket, Callable[[], None]]] = {}
            self._epoll = select.epoll()
            try:
                threading.Thread(target=self._run, name="hangups", daemon=True).start()
            except RuntimeError:
                log.warning("no thread to see clients hang up", note="their requests run to the end")
                self._epoll.close()
                return False
            self._pid = os.getpid()
            return True

    def _run(self) -> None:
        while True:
            for number, _ in self._epoll.poll():
                if (gone := self._gone(number)) is not None:
                    gone()

    def _gone(self, number: int) -> Callable[[], None] | None:
        """Return whom to tell that a connection is gone; None when the number is another's, or nobody's, now."""
        connection, gone = self._watched.get(number, (None, None))
        return gone if connection is not None and _is_gone(connection) else None


def _is_gone(connection: socket) -> bool:
    asked = select.poll()
    try:
        asked.register(connection, select.POLLRDHUP)
    except ValueError:
        return False  # closed, for its request has ended
    return bool(asked.poll(0))


def can_write(connection: socket | None, seconds: float) -> bool:
    """Wait until a client takes more; False when it read nothing for so many seconds, or is gone."""
    if connection is None:
        return True
    asked = select.poll()
    asked.register(connection, select.POLLOUT | select.POLLRDHUP)
    found = asked.poll(seconds * 1000)
    return bool(found) and not found[0][1] & (select.POLLRDHUP | select.POLLHUP | select.POLLERR)
