"""gunicorn's worker with threads, made safe from clients that do not read, or do not close their side."""

from __future__ import annotations

import socket
import struct
from typing import Any

from gunicorn.workers.gthread import ThreadWorker  # type: ignore[import-untyped]

SEND_PAUSE = 60
"""Seconds that a client may take nothing of an answer: one that stops reading would keep a thread for ever."""

MOST_ACCEPTED = 64
"""Connections that are accepted in one round; with several workers the others want some too."""


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
        stays = super().handle(conn)
        if not stays:
            conn.close(graceful=True)
            conn.close = _is_closed
        return stays


def _is_closed(*, graceful: bool = False) -> None:
    """Do what is left to be done in the main thread to a connection that is closed: nothing."""
