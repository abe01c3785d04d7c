"""When to try again. Pure: the clock and the dice are handed in.

Jitter is a number from 0 to 1, as `random.random()` gives it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC
from email.utils import parsedate_to_datetime

DAY = 86_400.0

_SECONDS = re.compile(r"[0-9]+(?:\.[0-9]+)?")
_MOST_DOUBLINGS = 64


def delay(attempt: int, *, jitter: float, base: float = 1.0, most: float = 60.0) -> float:
    """Return the seconds to wait after the `attempt`-th failure in a row, counted from 1.

    Doubles from `base` up to `most`; jitter takes away up to half, so that those who failed together do not come back
    together.
    """
    doubled = base * 2.0 ** min(max(attempt - 1, 0), _MOST_DOUBLINGS)
    return min(doubled, most) * (0.5 + 0.5 * jitter)


def webhook_delay(
    schedule: Sequence[float], tried: int, jitter: float, retry_after: float | None = None
) -> float | None:
    """Return the seconds until the next try of a delivery that was tried `tried` times; None: the schedule is used up.

    `schedule` holds the seconds before each try. Jitter adds or takes a tenth. What the receiver asked for
    (`retry_after`, seconds) is the least: it may be waited for longer, never shorter.
    """
    if tried >= len(schedule):
        return None
    planned = schedule[tried] * (0.9 + 0.2 * jitter)
    if retry_after is None:
        return planned
    return max(planned, retry_after * (1.0 + 0.1 * jitter))


def retry_after(header: str | None, now: float) -> float | None:
    """Return the seconds that a Retry-After header asks for, at most a day; None when it says nothing readable.

    It holds seconds or an HTTP date, which is compared with `now` (seconds since 1970).
    """
    text = (header or "").strip()
    if _SECONDS.fullmatch(text):
        return min(float(text), DAY)
    try:
        moment = parsedate_to_datetime(text)
    except (TypeError, ValueError, OverflowError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return min(max(moment.timestamp() - now, 0.0), DAY)
