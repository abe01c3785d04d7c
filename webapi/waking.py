"""Wakes waiting threads a few at a time: whoever needs the interpreter meanwhile shares it with few, not thousands.

Woken all at once, two thousand streams each want it for a moment, and a POST, which gives it up at every step over the
database, stands in line behind them each time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

MOST_AWAKE = 16
LAPSE = 0.05
"""Seconds after which who was woken holds up nobody any more: it may be writing to a client that does not read."""


class Waking:
    """Who is awake, and who is to be woken next. Sleepers are known by the function that wakes them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._awake: dict[Callable[[], None], float] = {}
        self._next: dict[Callable[[], None], None] = {}

    def wake(self, sleeper: Callable[[], None]) -> None:
        """Wake a sleeper, at once or when it is its turn; without effect on one that is to be woken already."""
        with self._lock:
            now = time.monotonic()
            self._forget_lapsed(now)
            if sleeper not in self._awake and len(self._awake) >= MOST_AWAKE:
                self._next[sleeper] = None
                return
            self._next.pop(sleeper, None)
            self._awake[sleeper] = now
        sleeper()

    def asleep(self, sleeper: Callable[[], None]) -> None:
        """Note that one sleeps again; wake the next."""
        for following in self._pass_on(sleeper):
            following()

    def left(self, sleeper: Callable[[], None]) -> None:
        """Note that one will not sleep again; wake the next."""
        with self._lock:
            self._next.pop(sleeper, None)
        self.asleep(sleeper)

    def _pass_on(self, sleeper: Callable[[], None]) -> list[Callable[[], None]]:
        chosen = []
        with self._lock:
            self._awake.pop(sleeper, None)
            if self._next:
                now = time.monotonic()
                self._forget_lapsed(now)
                while self._next and len(self._awake) < MOST_AWAKE:
                    chosen.append(next(iter(self._next)))
                    del self._next[chosen[-1]]
                    self._awake[chosen[-1]] = now
        return chosen

    def _forget_lapsed(self, now: float) -> None:
        for sleeper in [one for one, since in self._awake.items() if now - since > LAPSE]:
            del self._awake[sleeper]
