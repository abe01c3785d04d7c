"""A PostgreSQL that takes a statement and never answers: given up after a while, and its connection with it.

The server's own timeouts do not run where nothing arrives, nor the network's where something in between, a proxy say,
goes on acknowledging what nobody reads. Without this a thread would wait for ever; enough of them, and the process is
deaf. What was asked for may have been done: it is an outage like one at COMMIT.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import sqlalchemy as sa

_here = threading.local()


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Let this thread wait for no answer longer than so many seconds, whatever its databases allow."""
    before = getattr(_here, "seconds", math.inf)
    _here.seconds = min(before, seconds)
    try:
        yield
    finally:
        _here.seconds = before


def bound(engine: sa.Engine, seconds: float) -> None:
    """Let every connection of an engine wait so long for each answer."""

    def connect(_dialect: Any, _record: Any, arguments: Any, options: Any) -> Any:
        made = _class().connect(*arguments, **options)
        made.most = seconds
        return made

    sa.event.listen(engine, "do_connect", connect)


@cache
def _class() -> Any:
    # Imported here: the driver is an extra.
    import psycopg

    class Connection(psycopg.Connection[Any]):
        """A connection whose waits end."""

        most = math.inf

        def wait(self, gen: Any, *arguments: Any, **options: Any) -> Any:
            """Wait for an answer; raise OperationalError, the connection closed, when none comes."""
            seconds = min(self.most, getattr(_here, "seconds", math.inf))
            if seconds == math.inf:
                return super().wait(gen, *arguments, **options)
            try:
                return super().wait(_given_up(gen, seconds), *arguments, **options)
            except TimeoutError:
                # Closed, not cancelled: that would be one more thing to wait for.
                self.pgconn.finish()
                raise psycopg.OperationalError(f"the database has not answered for {seconds:g} s") from None

    return Connection


def _given_up(gen: Any, seconds: float) -> Generator[Any, Any, Any]:
    """Go through what a statement waits for; raise TimeoutError when nothing has come for too long."""
    until = time.monotonic() + seconds
    try:
        asked = next(gen)
        while True:
            ready = yield asked
            if ready:
                until = time.monotonic() + seconds
            elif time.monotonic() > until:
                raise TimeoutError
            asked = gen.send(ready)
    except StopIteration as end:
        return end.value
