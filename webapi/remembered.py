"""What was looked up, remembered for a while: one looks for all, and what is long past is not said again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")

GRACE = 0.4
"""Seconds beyond its time for which what is remembered still serves, while one looks for all."""
MOST = 10_000
"""Things that are remembered, at most."""


class Remembered(Generic[K, V]):
    """Values by key, each for `keep` seconds from before it was looked up. Safe to share between threads."""

    def __init__(self, keep: float) -> None:
        """Begin with nothing."""
        self._keep = keep
        self._lock = threading.Lock()
        # Each with the moment from which it is looked up again, and the one from which it serves nobody.
        self._known: dict[K, tuple[V, float, float]] = {}
        self._looked_at: set[K] = set()

    def get(self, key: K, look: Callable[[], tuple[V, float]]) -> V:
        """Return the value of a key; `look` returns it with the seconds that it is true at most, 0: not remembered.

        Raises what `look` raises.
        """
        known = self._known.get(key)
        if known and time.monotonic() < known[1]:
            return known[0]
        with self._lock:
            if known and key in self._looked_at and time.monotonic() < known[2]:
                return known[0]  # a crowd is not to look at the same moment
            self._looked_at.add(key)
        try:
            since = time.monotonic()
            found, lasts = look()
        finally:
            with self._lock:
                self._looked_at.discard(key)
        with self._lock:
            if len(self._known) >= MOST:
                self._known.clear()
            self._known.pop(key, None)
            if lasts > 0:
                self._known[key] = (found, since + min(self._keep, lasts), since + min(self._keep + GRACE, lasts))
        return found

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._known.clear()
