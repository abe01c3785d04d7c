"""Streams and waiting requests of each key that a web process holds open."""

from __future__ import annotations

from collections import Counter

from webapi.caller import Caller
from webapi.errors import Problem


class StreamsOfKeys:
    """How many each key has open; whoever uses it holds a lock."""

    def __init__(self) -> None:
        self._open: Counter[str] = Counter()

    def check(self, caller: Caller | None) -> None:
        """Raise Problem 429 when this caller has as many open as its key may."""
        if caller is None or not (most := caller.limits.streams):
            return
        if self._open[caller.key_id] >= most:
            detail = f"This API key has {most} streams or waiting requests open here, as many as it may: end one first."
            raise Problem(429, "too_many_streams", detail, headers={"Retry-After": "1"})

    def begin(self, caller: Caller | None) -> None:
        """Note that a caller has one more."""
        if caller is not None:
            self._open[caller.key_id] += 1

    def end(self, caller: Caller | None) -> None:
        """Note that a caller has one less."""
        if caller is not None:
            self._open[caller.key_id] -= 1
            if self._open[caller.key_id] <= 0:
                del self._open[caller.key_id]
