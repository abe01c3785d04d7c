"""gunicorn's worker with threads, made safe from clients that do not read, or do not close their side."""

from __future__ import annotations

import socket
import struct
from contextlib import ExitStack
from typing import Any

from gunicorn.workers.gthread import ThreadWorker  # type: ignore[import-untyped]

from webapi.watchdog import Watchdog

SEND_PAUSE = 60
"""Seconds that a client may take nothing of an answer: one that stops reading would keep a thread for ever."""

HEAD_WITHIN = 30.0
"""Seconds that the head of a request may take, from its first byte on: anybody may send one, and keeps a thread."""

MOST_ACCEPTED = 64
"""Connections that are accepted in one round; with several workers the others want some too."""


_watchdog = Watchdog()


class Worker(ThreadWorker):  # type: ignore[misc]
    """Closes a connection in the thread that served it, which may wait for the client to close its side.

    gunicorn's own does it in the one thread that accepts connections and hands out requests, and waits 2 s for a client
    that does not: nobody else is served meanwhile, and after thirty of them the worker counts as hung and is killed.
    """

    def accept(self, listener: Any) -> None:
        """Accept whoever waits.

        gunicorn's own accepts one a round, and a round under load takes long: the last of 640 clients that come at
        once, and health checks behind them, were served after 21 s.
        """
        for _ in range(MOST_ACCEPTED):
            before = self.nr_conns
            super().accept(listener)
            if self.nr_conns == before or self.nr_conns >= self.worker_connections:
                return

    def handle(self, conn: Any) -> Any:
        """Serve a request; returns whether its connection stays open."""
        # Not a timeout of Python's, which is for a whole answer: a slow client that reads may take its time.
        conn.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", SEND_PAUSE, 0))
        with ExitStack() as conn.head:
            conn.head.enter_context(_watchdog.watching(conn.sock, HEAD_WITHIN))
            stays = super().handle(conn)
        if not stays:
            conn.close(graceful=True)
            conn.close = _is_closed
        return stays

    def handle_request(self, req: Any, conn: Any) -> Any:
        """Answer a request whose head has come."""
        conn.head.close()
        return super().handle_request(req, conn)


def _is_closed(*, graceful: bool = False) -> None:
    """Do what is left to be done in the main thread to a connection that is closed: nothing."""
