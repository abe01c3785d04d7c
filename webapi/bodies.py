"""The memory that the bodies of requests take: there is a bound on all that a process holds at once.

A body is held from before its first byte to the end of the answer, which for a request that waits is long after.
"""

from __future__ import annotations

import threading

from flask import Response, after_this_request

from webapi.errors import Problem

SMALL = 65536
"""Bytes of a body that is not counted: the number of threads bounds those."""
MOST_HELD = 512_000_000


class Bodies:
    """Counts the bytes of large bodies."""

    def __init__(self, most: int = MOST_HELD) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._held = 0

    def hold(self, size: int) -> Held:
        """Make room for a body of this size until the answer is sent. Raises Problem 503 when there is none."""
        held = Held(self)
        if size > SMALL:
            held.take(size)
            after_this_request(held.until_sent)
        return held

    def change(self, by: int) -> None:
        """Count bytes that are held, or are no more. Raises Problem 503; one body alone is never too much."""
        with self._lock:
            if by > 0 and self._held and self._held + by > self._most:
                detail = (
                    "This server holds as many large bodies as it can at the moment; nothing was stored. Try again."
                )
                raise Problem(503, "overloaded", detail, headers={"Retry-After": "2"})
            self._held += by


class Held:
    """One body's share."""

    def __init__(self, bodies: Bodies) -> None:
        self._bodies = bodies
        self._size = 0

    def take(self, size: int) -> None:
        """Hold so many bytes from now on."""
        self._bodies.change(size - self._size)
        self._size = size

    def shrink(self, size: int) -> None:
        """Hold no more than these: a body that did not announce its size was taken for a very large one."""
        if size < self._size:
            self.take(size)

    def until_sent(self, response: Response) -> Response:
        """Let go of the body when the answer is sent."""
        response.call_on_close(lambda: self.take(0))
        return response
