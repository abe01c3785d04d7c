"""What engines measured over a window of time, kept by a process so that only what is new is read."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from models import samples
from models.measures import Measures, total
from models.samples import Sample

WINDOWS = {15: 10, 60: 10, 360: 300, 1440: 300, 10080: 300}
"""Minutes that can be asked for, and the width in seconds of the stretches that they are read in."""
NARROW = min(WINDOWS.values())
MOST_POINTS = 360
LATELY = 60
"""Seconds that count as lately, and up to a stretch more."""
LATE = 60.0
"""Seconds for which a stretch may still change: an engine writes at its heartbeat, or once the database is back."""


@dataclass(frozen=True, slots=True)
class Past:
    """What all engines measured in a window: from `start`, `step` seconds a point."""

    step: int
    start: int
    points: Sequence[Measures]


@dataclass(frozen=True, slots=True)
class Lately:
    """What each engine measured in the last so many seconds."""

    seconds: float
    engines: Mapping[str, Measures]


class History:
    """The samples of one width, as far as a window of them was asked for."""

    def __init__(self, width: int) -> None:
        self._width = width
        self._lock = threading.Lock()
        self._known: dict[int, list[Sample]] = {}
        self._upto = 0.0
        self._first = 0

    def past(self, tx: sa.Connection, minutes: int) -> Past:
        """Return the window that ends now."""
        clock = samples.clock(tx)
        step = self._width * max(1, -(-minutes * 60 // (self._width * MOST_POINTS)))
        start = samples.start(step, clock - minutes * 60) + step
        by_point: defaultdict[int, list[Measures]] = defaultdict(list)
        for sample in self._since_start(tx, clock, start):
            by_point[(sample.at - start) // step].append(sample.measures)
        count = int((clock - start) // step) + 1
        return Past(step, start, [total(by_point[n]) for n in range(count)])

    def lately(self, tx: sa.Connection) -> Lately:
        """Return what each engine measured in the last minute."""
        clock = samples.clock(tx)
        start = samples.start(self._width, clock) - LATELY
        by_engine: defaultdict[str, list[Measures]] = defaultdict(list)
        for sample in self._since_start(tx, clock, start):
            by_engine[sample.engine].append(sample.measures)
        return Lately(clock - start, {engine: total(measured) for engine, measured in by_engine.items()})

    def _since_start(self, tx: sa.Connection, clock: float, start: int) -> list[Sample]:
        with self._lock:
            self._read(tx, clock, start)
            return [one for at, found in self._known.items() if at >= start for one in found]

    def _read(self, tx: sa.Connection, clock: float, start: int) -> None:
        """Read what may have changed, and forget what no window reaches; a longer window than before is read whole."""
        if start < self._first or not self._known:
            since = self._first = start
        else:
            since = samples.start(self._width, self._upto - LATE)
        fresh: defaultdict[int, list[Sample]] = defaultdict(list)
        for sample in samples.read(tx, self._width, since):
            fresh[sample.at].append(sample)
        longest = max(minutes for minutes, width in WINDOWS.items() if width == self._width)
        oldest = samples.start(self._width, clock - longest * 60)
        self._first = max(self._first, oldest)
        self._known = {at: found for at, found in self._known.items() if oldest <= at < since} | fresh
        self._upto = clock
