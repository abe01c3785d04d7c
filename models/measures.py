"""What engines measure of the work of a few seconds: counts that add up, histograms of which percentiles are made.

Pure. A histogram is sparse and its steps are quarters of an octave: a percentile is right to 10 %, whatever was added.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

STEPS = 4
"""Steps of a histogram in each octave."""
_LEAST, _MOST = -40, 80
"""The outermost steps: a millisecond, twelve days."""


def step(seconds: float) -> int:
    """Return the step of a histogram that a time belongs to."""
    if seconds <= 0.0:
        return _LEAST
    return max(_LEAST, min(_MOST, math.floor(STEPS * math.log2(seconds))))


def seconds(of_step: int) -> float:
    """Return the time that stands for a step: the middle of it."""
    return float(2.0 ** ((of_step + 0.5) / STEPS))


def quantile(histogram: Mapping[int, int], share: float) -> float | None:
    """Return the seconds that this share of what was counted stays below; None when nothing was."""
    wanted = share * sum(histogram.values())
    below = 0
    for found in sorted(histogram):
        below += histogram[found]
        if below >= wanted:
            return seconds(found)
    return None


@dataclass(slots=True)
class Measures:
    """What was measured of one model and lane on one engine.

    `wait`, `latency`, `first` (token) count jobs by `step`, `sizes` batches by their jobs; `errors` ended jobs by code;
    `tokens` has prompt, completion and cached ones; `padding` is a sum over `batches`; `busy` and `open` are seconds.
    """

    ended: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)
    tokens: Counter[str] = field(default_factory=Counter)
    wait: Counter[int] = field(default_factory=Counter)
    latency: Counter[int] = field(default_factory=Counter)
    first: Counter[int] = field(default_factory=Counter)
    sizes: Counter[int] = field(default_factory=Counter)
    padding: float = 0.0
    batches: int = 0
    busy: float = 0.0
    open: float = 0.0

    def add(self, other: Measures) -> None:
        """Add what was measured elsewhere, or before."""
        for name in _COUNTERS:
            mine: Counter[Any] = getattr(self, name)
            mine.update(getattr(other, name))
        for name in _NUMBERS:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def encode(self) -> str:
        """Return this as JSON, without what is zero."""
        told = {name: getattr(self, name) for name in (*_COUNTERS, *_NUMBERS)}
        rounded = {name: round(value, 3) if isinstance(value, float) else value for name, value in told.items()}
        return json.dumps({name: value for name, value in rounded.items() if value}, separators=(",", ":"))

    @classmethod
    def decode(cls, text: str) -> Self:
        """Return what `encode` wrote; what a newer version measures besides is passed over."""
        told: dict[str, Any] = json.loads(text)
        made = cls(**{name: told.get(name, 0) for name in _NUMBERS})
        for name in _COUNTERS:
            counts: Mapping[str, int] = told.get(name, {})
            key = int if name in _BY_NUMBER else str
            getattr(made, name).update({key(each): count for each, count in counts.items()})
        return made


_BY_NAME = ("ended", "errors", "tokens")
_BY_NUMBER = ("wait", "latency", "first", "sizes")
_COUNTERS = _BY_NAME + _BY_NUMBER
_NUMBERS = ("padding", "batches", "busy", "open")


def total(measured: Iterable[Measures]) -> Measures:
    """Return the sum."""
    added = Measures()
    for each in measured:
        added.add(each)
    return added
