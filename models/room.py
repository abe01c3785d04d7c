"""Room in the queue: how many more jobs may wait, of one owner and of all. What is let in is the caller's to store.

Nobody counts for each job. A process remembers what it counted last, adds what it has let in since, and counts again
when a sixteenth of the room that was left is used up, or a minute has passed; one thread at a time for each owner, and
for no more than a twentieth of the time. Alone it never lets in too many. Of several, which know nothing of each other,
each may let in a sixteenth of the limit too much, or near the limit what comes during twenty times a count.

Refused are only new jobs: one that a crash puts back is queued again whatever the limit.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import structlog

from models import waiting
from models.db import Database
from models.errors import DatabaseUnavailable, QueueFull

log = structlog.get_logger(__name__)

STEP = 16
"""A new count is due when this part of the room is used up."""
KEEP = 60.0
"""Seconds after which one is due whatever was used."""
LEAST_PAUSE = 0.5
MOST_SHARE = 0.05
"""Of the time, spent on counting one owner's jobs."""
FIRST_WITHIN = 5.0
"""Seconds that others wait for the first count of all."""
FOR_BULKS = 0.9
"""Of each limit, what the lines of bulks may fill: the rest is for whoever submits jobs meanwhile."""
FLOOR = 10_000
"""An owner with less than this part of the total waiting is let in although others have filled the queue."""
HUNDREDTH = 0.01
"""Of a limit, what is to be free again when a refused client comes back."""
UNKNOWN_PACE, LONGEST_PAUSE = 10, 60
"""Seconds after which to come back: where nothing seems to end, and at most."""
MOST_REMEMBERED = 10_000
"""Owners whose counts a process remembers."""


class _Line:
    """The jobs that wait, of one owner or of all."""

    def __init__(self, whose: str, limit: int, count: Callable[[int], int]) -> None:
        self.whose = whose
        self.limit = limit
        self._count = count
        self._changed = threading.Condition()
        self._counted: int | None = None
        self._counted_at = 0.0
        self._counting = False
        self._pause = 0.0
        self._since = 0
        self._under_way = 0
        self._pace = 0.0
        self._wanted = False

    @property
    def waiting(self) -> int:
        """Return how many wait, as far as this process knows."""
        return (self._counted or 0) + self._since

    def look(self) -> None:
        """Count, if that is due and no other thread does. Raises DatabaseUnavailable when nothing is known yet."""
        with self._changed:
            if not self._due():
                return
            if self._counting:
                if self._counted is None:
                    self._changed.wait_for(lambda: not self._counting, FIRST_WITHIN)
                    if self._counted is None:
                        raise DatabaseUnavailable("the waiting jobs could not be counted")
                return
            self._counting = True
            stored = self._since - self._under_way
        started = time.monotonic()
        found: int | None = None
        try:
            found = self._count(self.limit + 1)
        except DatabaseUnavailable as error:
            if self._counted is None:
                raise
            log.warning("the waiting jobs could not be counted", reason=str(error))
        finally:
            with self._changed:
                self._note(found, stored, started)
                self._counting = False
                self._changed.notify_all()

    def _due(self) -> bool:
        if self._counted is None:
            return True
        age = time.monotonic() - self._counted_at
        used = self._since * STEP >= self.limit - self._counted
        return age >= self._pause and (used or self._wanted or age > KEEP)

    def _note(self, found: int | None, stored: int, started: float) -> None:
        now = time.monotonic()
        self._pause = max(LEAST_PAUSE, (now - started) / MOST_SHARE)
        if found is not None:
            if self._counted is not None:
                ended = self._counted + stored - found
                self._pace = (self._pace + max(0.0, ended / max(started - self._counted_at, LEAST_PAUSE))) / 2
            # What was under way may be among what was found: rather too many than too few.
            self._counted, self._since, self._wanted = found, self._since - stored, False
        if self._counted is not None:
            self._counted_at = now

    def free(self, most: float, wanted: int = 1) -> float:
        """Return how many more there may be until `most` wait; where that is less than `wanted` it is counted soon."""
        free = most - self.waiting
        if free < wanted:
            self._wanted = True
        return free

    def is_worth_while(self, share: float) -> bool:
        """Tell whether a sixteenth of the limit is free."""
        wanted = max(1, self.limit // STEP)
        return self.free(_part(self.limit, share), wanted) >= wanted

    def check(self, jobs: int, most: float) -> None:
        """Raise QueueFull when with so many more than `most` would wait."""
        if jobs and self.free(most, jobs) < jobs:
            raise QueueFull(self.whose, self.limit, self._come_back())

    def take(self, jobs: int, most: float) -> None:
        """Let in so many, unless more than `most` would wait then. Raises QueueFull."""
        with self._changed:
            self.check(jobs, most)
            self._since += jobs
            self._under_way += jobs

    def end(self, jobs: int, *, stored: bool) -> None:
        """Note that so many that were let in are stored, or are not."""
        with self._changed:
            self._under_way -= jobs
            if not stored:
                self._since -= jobs

    def _come_back(self) -> int:
        if not self._pace:
            return UNKNOWN_PACE
        return max(1, min(LONGEST_PAUSE, math.ceil(self.limit * HUNDREDTH / self._pace)))


class Room:
    """What one process knows of the room in the queue. Safe to share between threads; not across a fork."""

    def __init__(self, database: Database, of_owner: int, of_all: int) -> None:
        """Take the limits: how many jobs may wait of one owner, and of all."""
        self._database = database
        self._of_owner = of_owner
        self._floor = of_all // FLOOR
        self._lock = threading.Lock()
        self._lines: dict[str, _Line] = {}
        self._all = _Line("", of_all, self._count_all)

    @contextmanager
    def place(self, owner: str, jobs: int = 1, share: float = 1.0) -> Iterator[None]:
        """Take room for jobs that the block stores; when it fails they are not counted. Raises QueueFull.

        `share` is the part of the limits up to which these may fill the queue.
        """
        mine = self._looked(owner)
        mine.take(jobs, _part(mine.limit, share))
        stored = False
        try:
            self._all.take(jobs, self._most_of_all(mine.waiting, share))
        except QueueFull:
            mine.end(jobs, stored=False)
            raise
        try:
            yield
            stored = True
        finally:
            mine.end(jobs, stored=stored)
            self._all.end(jobs, stored=stored)

    def check(self, owner: str, *, skip: bool = False) -> None:
        """Take nothing. Raises QueueFull when there is no room for one more job, unless none is to come of it."""
        if skip:
            return
        mine = self._looked(owner)
        mine.check(1, mine.limit)
        self._all.check(1, self._most_of_all(mine.waiting + 1, 1.0))

    def left(self, owner: str, share: float = 1.0) -> int:
        """Return for how many more jobs of an owner there is room, up to a share of the limits."""
        mine = self._looked(owner)
        of_all = max(self._all.free(_part(self._all.limit, share)), self._floor - mine.waiting)
        return max(0, int(min(mine.free(_part(mine.limit, share)), of_all)))

    def enough(self, owner: str, share: float = 1.0) -> bool:
        """Tell whether it is worth while to go on with lines that wait for room: to find one's place again may be dear.

        That is when a sixteenth of a limit is free, and of the total limit also when the owner has next to nothing
        waiting: the others may never leave so much.
        """
        mine = self._looked(owner)
        spared = mine.waiting * 2 < self._floor
        return all(line.is_worth_while(share) for line in ((mine,) if spared else (mine, self._all)))

    def _looked(self, owner: str) -> _Line:
        with self._lock:
            if (mine := self._lines.get(owner)) is None:
                if len(self._lines) >= MOST_REMEMBERED:
                    self._lines.clear()
                mine = self._lines[owner] = _Line(owner, self._of_owner, partial(self._count_owner, owner))
        mine.look()
        self._all.look()
        return mine

    def _most_of_all(self, waiting_then: int, share: float) -> float:
        return math.inf if waiting_then <= self._floor else _part(self._all.limit, share)

    def _count_owner(self, owner: str, most: int) -> int:
        with self._database.reading() as tx:
            return waiting.of_owner(tx, owner, most)

    def _count_all(self, most: int) -> int:
        with self._database.reading() as tx:
            return waiting.of_all(tx, most)


def _part(limit: int, share: float) -> int:
    return max(1, int(limit * share))
