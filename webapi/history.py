"""What engines measured over a window of time, kept by a process so that only what is new is read."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from models import samples
from models.measures import Measures, total

WINDOWS = {15: 10, 60: 10, 360: 300, 1440: 300, 10080: 300}
"""Minutes that can be asked for, and the width in seconds of the stretches that they are read in."""
NARROW = min(WINDOWS.values())
MOST_POINTS = 360
LATELY = 60
"""Seconds that count as lately, and up to a stretch more."""
LATE = 60.0
"""Seconds for which a stretch may still change: an engine writes at its heartbeat, or once the database is back."""
ENOUGH = 60.0
"""Seconds that a stretch must have lasted before rates are made of it: in fewer there are too few heartbeats."""


@dataclass(frozen=True, slots=True)
class Past:
    """What all engines measured in a window: the whole of it, and in points of `step` seconds from `start`.

    The newest stretch is a point once it has lasted long enough; `newest` is how many seconds the last point has.
    """

    step: int
    start: int
    points: Sequence[Measures]
    newest: float
    whole: Measures


@dataclass(frozen=True, slots=True)
class Lately:
    """What each engine measured in the last so many seconds."""

    seconds: float
    engines: Mapping[str, Measures]


class History:
    """What all engines together measured in each stretch of one width, as far back as a window was asked for."""

    def __init__(self, width: int) -> None:
        self._width = width
        self._lock = threading.Lock()
        self._known: dict[int, Measures] = {}
        self._upto = 0.0
        self._first = 0

    def past(self, tx: sa.Connection, minutes: int) -> Past:
        """Return the window that ends now."""
        clock = samples.clock(tx)
        step = self._width * max(1, -(-minutes * 60 // (self._width * MOST_POINTS)))
        start = samples.start(step, clock - minutes * 60) + step
        points = [Measures() for _ in range(int((clock - start) // step) + 1)]
        for at, measures in self._since(tx, clock, start).items():
            # A clock that was set back has left stretches in the future.
            if (n := (at - start) // step) < len(points):
                points[n].add(measures)
        whole, newest = total(points), (clock - start) % step
        if newest < ENOUGH:
            del points[-1]
            newest = step
        return Past(step, start, points, newest, whole)

    def _since(self, tx: sa.Connection, clock: float, start: int) -> dict[int, Measures]:
        with self._lock:
            self._read(tx, clock, start)
            return {at: measures for at, measures in self._known.items() if at >= start}

    def _read(self, tx: sa.Connection, clock: float, start: int) -> None:
        """Read what may have changed, and forget what no window reaches; a longer window than before is read whole."""
        if start < self._first or not self._known:
            since = first = start
        else:
            since, first = samples.start(self._width, self._upto - LATE), self._first
        # Added up as it is read: many engines over a week are more than one process should hold.
        fresh: defaultdict[int, Measures] = defaultdict(Measures)
        for sample in samples.read(tx, self._width, since):
            fresh[sample.at].add(sample.measures)
        longest = max(minutes for minutes, width in WINDOWS.items() if width == self._width)
        oldest = samples.start(self._width, clock - longest * 60)
        # Only now: a longer window whose reading failed has not been read.
        self._first = max(first, oldest)
        self._known = {at: found for at, found in self._known.items() if oldest <= at < since} | fresh
        self._upto = clock


def lately(tx: sa.Connection) -> Lately:
    """Return what each engine measured in the last minute."""
    clock = samples.clock(tx)
    start = samples.start(NARROW, clock) - LATELY
    by_engine: defaultdict[str, Measures] = defaultdict(Measures)
    for sample in samples.read(tx, NARROW, start):
        by_engine[sample.engine].add(sample.measures)
    return Lately(clock - start, by_engine)
