"""Requests a second of each key: a moving window, shared by all web processes in Redis.

With Redis away, or hung, each process counts for itself, and nobody waits for it longer than a tenth of a second.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import TypeVar

import redis
import structlog
from flask import Response, g
from limits import RateLimitItem, RateLimitItemPerSecond
from limits.storage import MemoryStorage, RedisStorage
from limits.strategies import MovingWindowRateLimiter

from models.key_limits import LEAST_RATE
from stoker.settings import Settings
from webapi.caller import Caller
from webapi.errors import Problem

T = TypeVar("T")

log = structlog.get_logger("stoker.web")

WITHIN = 0.1
"""Seconds that Redis is waited for."""
AWAY = 5.0
"""Seconds for which a Redis that did not answer is not asked again."""
LONGEST_WINDOW = 60
"""Seconds over which a rate that is no whole number is counted."""
SLOW = 0.1
"""Requests a second below which it is one request in so many seconds."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of one request: whether it is let in, how many are left, and after how many seconds one is free."""

    let_in: bool
    limit: float
    remaining: int
    reset: float


class Rates:
    """The windows of all keys. Safe to share between threads; nothing is opened before the first limited request."""

    def __init__(self, settings: Settings) -> None:
        self._url = settings.redis_client_url
        self._lock = threading.Lock()
        self._shared: MovingWindowRateLimiter | None = None
        self._own: MovingWindowRateLimiter | None = None
        self._away_until = 0.0

    def take(self, ident: str, per_second: float) -> Taken:
        """Count a request of a key, if there is room for it in the window."""
        item = window_of(per_second)

        def work(limiter: MovingWindowRateLimiter) -> Taken:
            let_in = limiter.hit(item, ident)
            stats = limiter.get_window_stats(item, ident)
            reset = max(0.0, stats.reset_time - time.time()) if stats.remaining < item.amount else 0.0
            return Taken(let_in, per_second, max(0, stats.remaining), min(reset, item.get_expiry()))

        return self._anywhere(work)

    def _anywhere(self, work: Callable[[MovingWindowRateLimiter], T]) -> T:
        if self._may_ask():
            try:
                found = work(self._redis())
            except (redis.RedisError, OSError) as error:
                log.warning("Redis is away: each process counts requests for itself", kind=type(error).__name__)
            else:
                self._away_until = 0.0
                return found
        return work(self._memory())

    def _may_ask(self) -> bool:
        """Tell whether to ask Redis: while it is away one does for all, now and then."""
        if not self._away_until:
            return True
        with self._lock:
            if time.monotonic() < self._away_until:
                return False
            self._away_until = time.monotonic() + AWAY
            return True

    def _redis(self) -> MovingWindowRateLimiter:
        with self._lock:
            if self._shared is None:
                timeouts = {"socket_timeout": WITHIN, "socket_connect_timeout": WITHIN}
                pool = redis.ConnectionPool.from_url(self._url, **timeouts)
                storage = RedisStorage("redis://", connection_pool=pool, key_prefix="stoker:rates")
                self._shared = MovingWindowRateLimiter(storage)
            return self._shared

    def _memory(self) -> MovingWindowRateLimiter:
        with self._lock:
            self._away_until = self._away_until or time.monotonic() + AWAY
            if self._own is None:
                self._own = MovingWindowRateLimiter(MemoryStorage())
            return self._own


def window_of(per_second: float) -> RateLimitItem:
    """Return a rate as so many requests in so many whole seconds: 10 in 1, 5 in 2, 1 in 600."""
    if per_second < SLOW:
        return RateLimitItemPerSecond(1, round(1 / max(per_second, LEAST_RATE)))
    rate = Fraction(per_second).limit_denominator(LONGEST_WINDOW)
    return RateLimitItemPerSecond(rate.numerator, rate.denominator)


def take(rates: Rates, caller: Caller) -> None:
    """Count a request of this caller, if its requests are limited. Raises Problem 429 when there were too many."""
    if not caller.limits.requests_per_second:
        return
    taken = rates.take(caller.key_id or "open", caller.limits.requests_per_second)
    g.taken = taken
    if not taken.let_in:
        raise Problem(
            429,
            "rate_limit_exceeded",
            f"This API key may make {taken.limit:g} requests a second; try again a little later.",
            headers={"Retry-After": str(max(1, math.ceil(taken.reset)))},
        )


def stamp(response: Response) -> Response:
    """Say in an answer's headers what is left of the limits."""
    taken: Taken | None = g.get("taken")
    if taken is not None:
        response.headers["X-RateLimit-Limit-Requests"] = f"{taken.limit:g}"
        response.headers["X-RateLimit-Remaining-Requests"] = str(taken.remaining)
        response.headers["X-RateLimit-Reset-Requests"] = f"{taken.reset:.3f}s"
    return response
