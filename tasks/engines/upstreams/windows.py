"""What can be told from the answers of one upstream: its throughput, and whether it computes them one by one. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

LEAST_COUNT = 10
"""Answers in a window, at least."""
SAME = 0.03
"""Part of a window's time in which answers count as having come at the same moment."""
LOADED = 0.8
"""Part of the limit that must be in use, on average, for a window to say anything."""
BURST_LEAST, BURST_MOST, IN_ORDER, SPREAD = 6, 48, 0.8, 2.5
"""Answers of a burst that are enough to judge it, and too many; the part that must come in order; how many times the
latency of the first third the last third must have."""


@dataclass(frozen=True, slots=True)
class Rate:
    """Throughput of a window, in answers and, where every answer told them, tokens per second."""

    answers: float
    tokens: float | None

    def over(self, other: Rate) -> float:
        """Return the ratio to another one."""
        if self.tokens is not None and other.tokens:
            return self.tokens / other.tokens
        return self.answers / other.answers if other.answers else 1.0

    def blended(self, newer: Rate) -> Rate:
        """Return the moving average."""
        told = self.tokens is not None and newer.tokens is not None
        tokens = 0.7 * (self.tokens or 0.0) + 0.3 * (newer.tokens or 0.0) if told else newer.tokens
        return Rate(0.7 * self.answers + 0.3 * newer.answers, tokens)


@dataclass(slots=True)
class Window:
    """A stretch of time: what was in flight when it opened must be done before it is full.

    A batch's answers come at one moment: those that come just after it was full belong to it, those that come just
    after it was opened do not.
    """

    opened: float
    pending: set[int]
    at: float
    full_at: float | None = None
    area: float = 0.0
    count: int = 0
    tokens: int = 0
    told: bool = True
    first_at: float = 0.0

    def __post_init__(self) -> None:
        self.first_at = self.opened

    def add(self, now: float, latency: float, tokens: int, limit: int) -> None:
        """Count an answer that had `tokens`, 0 when it did not say; `limit` is how many answers it takes at least."""
        if now - self.first_at <= SAME * latency:
            self.opened, self.area = now, 0.0
            return
        self.count += 1
        self.tokens += tokens
        self.told &= tokens > 0
        enough = self.count >= max(LEAST_COUNT, limit)
        if enough and (not self.pending or self.count >= 4 * limit):
            self.full_at = now

    def over(self, now: float) -> bool:
        """Tell whether it was full before this moment."""
        return self.full_at is not None and now > self.full_at + SAME * (self.full_at - self.opened)

    def loaded(self, limit: int) -> bool:
        """Tell whether the limit was used up."""
        return self.area >= LOADED * limit * (self.at - self.opened)

    def rate(self) -> Rate:
        """Return the throughput of a full window."""
        took = max((self.full_at or self.at) - self.opened, 1e-9)
        return Rate(self.count / took, self.tokens / took if self.told and self.tokens else None)


@dataclass(slots=True)
class Burst:
    """The requests that met an idle server before its first answer; tells whether their answers come one by one."""

    began: float
    sent: set[int] = field(default_factory=set)
    order: list[int] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    normal: list[float] = field(default_factory=list)

    def places(self, now: float) -> int | None:
        """Return how many requests the server seems to compute at once; None when it does not answer one by one."""
        if not BURST_LEAST <= len(self.order) <= BURST_MOST or len(self.order) == len(self.sent):
            return None
        third = len(self.order) // 3
        spread = sum(self.normal[-third:]) / max(sum(self.normal[:third]), 1e-9)
        pairs = [a < b for i, a in enumerate(self.order) for b in self.order[i + 1 :]]
        if spread < SPREAD or sum(pairs) < IN_ORDER * len(pairs):
            return None
        return max(1, round(len(self.order) / max(now - self.began, 1e-9) * min(self.latencies)))
