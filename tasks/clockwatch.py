"""Whether the database's clock may be deleted by: one that jumped a year ahead makes everything look old."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import structlog

log = structlog.get_logger(__name__)

AT_FIRST = 600.0
"""Seconds for which a clock is only watched: after a boot it may still be put right."""
AFTER_JUMP = 3600.0
"""Seconds that an operator has to notice, and to set the clock right."""
MOST_JUMP = 30.0
MOST_APART = 300.0
"""Seconds between the database's clock and this machine's."""


def steady() -> float:
    """Return seconds of a clock that nobody sets and that goes on while the machine is suspended."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class ClockWatch:
    """Compares the database's clock, look by look, with one that cannot jump, and with this machine's."""

    def __init__(self, steady: Callable[[], float] = steady, wall: Callable[[], float] = time.time) -> None:
        """Begin to watch at the first look."""
        self._steady = steady
        self._wall = wall
        self._last: tuple[float, float] | None = None
        self._trusted_from = math.inf

    def trusts(self, clock: float) -> bool:
        """Tell whether the database's clock, which shows `clock` now, has gone evenly for long enough."""
        steady = self._steady()
        if self._last is None:
            self._trusted_from = steady + AT_FIRST
        else:
            jump = (clock - self._last[0]) - (steady - self._last[1])
            if abs(jump) > MOST_JUMP:
                self._trusted_from = steady + AFTER_JUMP
                log.warning("the database's clock jumped: nothing is deleted for now", seconds=round(jump))
        self._last = (clock, steady)
        apart = clock - self._wall()
        if abs(apart) > MOST_APART:
            log.error("the database's clock is not this machine's: nothing is deleted", seconds=round(apart))
            return False
        return steady >= self._trusted_from
