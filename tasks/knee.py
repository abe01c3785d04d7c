"""How many jobs a batch of the policy `adaptive` has: the knee of throughput against batch size. Pure.

Only batches that had their engine nearly to themselves say what a size is worth: where several run at once, each is
slowed down by the others whatever its own size. Sizes are told apart by powers of two.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from statistics import median
from typing import Protocol

REACH = 4
"""The largest batch is at most so many times that of the lane's setting."""
GOOD = 0.95
"""The knee is the smallest size with so much of the best throughput."""
ENOUGH = 3
"""Batches of a size that are measured before it counts."""
EXPLORE = 8
"""Of so many batches one tries a neighbouring size: what is learned grows old."""
_ALONE = 0.1


class Took(Protocol):
    """A batch that ran: where, from when to when (seconds), of how many jobs and tokens; `done`: to its end."""

    @property
    def engine(self) -> str: ...  # noqa: D102
    @property
    def model(self) -> str: ...  # noqa: D102
    @property
    def lane(self) -> str: ...  # noqa: D102
    @property
    def size(self) -> int: ...  # noqa: D102
    @property
    def tokens(self) -> int: ...  # noqa: D102
    @property
    def began(self) -> float: ...  # noqa: D102
    @property
    def ended(self) -> float: ...  # noqa: D102
    @property
    def done(self) -> bool: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Sample:
    """What a batch of `size` jobs did in how many seconds."""

    size: int
    seconds: float
    tokens: int


def samples(took: Sequence[Took], model: str, lane: str) -> list[Sample]:
    """Return what the batches of a model and lane that had their engine to themselves tell."""
    engines: dict[str, list[Took]] = defaultdict(list)
    for batch in sorted(took, key=lambda batch: batch.began):
        engines[batch.engine].append(batch)
    found: list[Sample] = []
    for batches in engines.values():
        for nth in _lone(batches):
            one = batches[nth]
            if one.done and (one.model, one.lane) == (model, lane) and one.ended > one.began:
                found.append(Sample(one.size, one.ended - one.began, one.tokens))
    return found


def _lone(batches: Sequence[Took]) -> Iterable[int]:
    """Yield which of an engine's batches, by their beginnings, overlap others for a tenth of their time at most."""
    ended = -math.inf
    for nth, one in enumerate(batches):
        left = _ALONE * (one.ended - one.began) - max(0.0, min(ended, one.ended) - one.began)
        for later in islice(batches, nth + 1, None):
            # On an engine with many in flight the first few say enough.
            if left < 0 or later.began >= one.ended:
                break
            left -= min(later.ended, one.ended) - later.began
        if left >= 0:
            yield nth
        ended = max(ended, one.ended)


def size(found: Iterable[Sample], largest: int, nth: int) -> int:
    """Return the size of a lane's `nth` batch, 1 to `REACH` times its setting; that setting itself while unmeasured."""
    best = knee(found, largest)
    if nth % EXPLORE == EXPLORE - 1:
        best = best * 2 if nth // EXPLORE % 2 else best // 2
    return min(max(1, best), REACH * largest)


def knee(found: Iterable[Sample], largest: int) -> int:
    """Return the smallest size with nearly the best throughput, in tokens a second.

    When the largest that was measured is the best one, the knee lies above it: the next is at least the setting.
    """
    sizes = _measured(found)
    if not sizes:
        return largest
    best = max(throughput for _, throughput in sizes)
    place = next(nth for nth, (_, throughput) in enumerate(sizes) if throughput >= GOOD * best)
    chosen = sizes[place][0]
    if place < len(sizes) - 1 or chosen >= REACH * largest:
        return chosen
    return max(largest, 2 * chosen)


def _measured(found: Iterable[Sample]) -> list[tuple[int, float]]:
    """Return each size that was measured often enough, smallest first, with its throughput."""
    alike: dict[int, list[Sample]] = defaultdict(list)
    for one in found:
        alike[round(math.log2(one.size))].append(one)
    return [
        (round(median(one.size for one in group)), median(one.tokens / one.seconds for one in group))
        for _, group in sorted(alike.items())
        if len(group) >= ENOUGH
    ]
