"""How long a server takes to answer, as `stoker doctor` tells it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

_TRIES = 4


def usual(ask: Callable[[], object]) -> float:
    """Return the seconds that an answer takes: the median of a few, without the first, which connects."""
    took = []
    for _ in range(_TRIES):
        began = time.monotonic()
        ask()
        took.append(time.monotonic() - began)
    return statistics.median(took[1:])
