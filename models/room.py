"""Room in the queue: how many more jobs may wait, of one owner and of all, and how many tokens of an owner.

What is let in is the caller's to store. Tokens are limited only where somebody has said so; what they are is an
estimate, and where none wait any one job is let in.

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
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Most:
    """How many jobs, and tokens, of one owner may wait; 0: no limit but that of all."""

    jobs: int
    tokens: int = 0


class _Line:
    """The jobs that wait, of one owner or of all; or their tokens."""

    def __init__(self, whose: str, limit: int, count: Callable[[int], int], unit: str = "jobs") -> None:
        self.whose = whose
        self.limit = limit
        self.unit = unit
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

    def look(self, most: int) -> None:
        """Count, if that is due for a limit and no other thread does.

        Raises DatabaseUnavailable when nothing is known yet.
        """
        with self._changed:
            if not self._due(most):
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

    def _due(self, most: int) -> bool:
        if self._counted is None:
            return True
        age = time.monotonic() - self._counted_at
        used = self._since * STEP >= most - self._counted
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

    def is_worth_while(self, most: int, share: float) -> bool:
        """Tell whether a sixteenth of a limit is free."""
        wanted = max(1, most // STEP)
        return self.free(_part(most, share), wanted) >= wanted

    def check(self, many: int, most: float, least: int | None = None) -> None:
        """Raise QueueFull when with so many more than `most` would wait; `least`: how many of them must fit."""
        needed = many if least is None else min(many, least)
        lone = self.unit == "tokens" and self.waiting <= 0  # larger than the limit itself, it would never fit
        if many and self.free(most, needed) < needed and not lone:
            raise QueueFull(self.whose, int(most), self._come_back(most), self.unit)

    def take(self, many: int, most: float, least: int | None = None) -> None:
        """Let in so many, unless more than `most` would wait then. Raises QueueFull."""
        with self._changed:
            self.check(many, most, least)
            self._since += many
            self._under_way += many

    def end(self, many: int, *, stored: bool) -> None:
        """Note that so many that were let in are stored, or are not."""
        with self._changed:
            self._under_way -= many
            if not stored:
                self._since -= many

    @contextmanager
    def taken(self, many: int, most: float, least: int | None = None) -> Iterator[None]:
        """Let in what the block stores; when it fails it is not counted. Raises QueueFull."""
        self.take(many, most, least)
        stored = False
        try:
            yield
            stored = True
        finally:
            self.end(many, stored=stored)

    def _come_back(self, most: float) -> int:
        if not self._pace:
            return UNKNOWN_PACE
        return max(1, min(LONGEST_PAUSE, math.ceil(most * HUNDREDTH / self._pace)))


class Room:
    """What one process knows of the room in the queue. Safe to share between threads; not across a fork."""

    def __init__(self, database: Database, of_owner: int, of_all: int, tokens_of_owner: int = 0) -> None:
        """Take the limits: how many jobs may wait of one owner, and of all; and tokens of one owner, 0: any."""
        self._database = database
        self._usual = Most(of_owner, tokens_of_owner)
        self._floor = of_all // FLOOR
        self._lock = threading.Lock()
        self._lines: dict[tuple[str, str], _Line] = {}
        self._all = _Line("", of_all, self._count_all)

    @contextmanager
    def place(
        self, owner: str, jobs: int = 1, share: float = 1.0, *, tokens: int = 0, most: Most | None = None
    ) -> Iterator[None]:
        """Take room for jobs that the block stores; when it fails they are not counted. Raises QueueFull.

        `share` is the part of the limits up to which these may fill the queue, `most` the limits where they are not
        the usual ones. Of many jobs' tokens one must fit: how long lines are is not theirs to choose who read them.
        """
        mine, limit = self._looked(owner, most)
        heap, limit_of_tokens = self._tokens_looked(owner, most)
        with ExitStack() as held:
            held.enter_context(mine.taken(jobs, _part(limit, share)))
            waiting_then = mine.waiting
            if heap is not None:
                least = 1 if share < 1 else None
                held.enter_context(heap.taken(tokens, _part(limit_of_tokens, share), least))
            held.enter_context(self._all.taken(jobs, self._most_of_all(waiting_then, share)))
            yield

    def check(self, owner: str, *, skip: bool = False, most: Most | None = None) -> None:
        """Take nothing. Raises QueueFull when there is no room for one more job, unless none is to come of it."""
        if skip:
            return
        mine, limit = self._looked(owner, most)
        heap, limit_of_tokens = self._tokens_looked(owner, most)
        mine.check(1, limit)
        if heap is not None:
            heap.check(1, limit_of_tokens)
        self._all.check(1, self._most_of_all(mine.waiting + 1, 1.0))

    def left(self, owner: str, share: float = 1.0) -> int:
        """Return for how many more jobs of an owner there is room, up to a share of the limits."""
        mine, limit = self._looked(owner)
        of_all = max(self._all.free(_part(self._all.limit, share)), self._floor - mine.waiting)
        return max(0, int(min(mine.free(_part(limit, share)), of_all)))

    def tokens_left(self, owner: str, share: float = 1.0) -> float:
        """Return for how many more tokens of an owner there is room, up to a share of the limit."""
        heap, limit = self._tokens_looked(owner)
        return math.inf if heap is None else heap.free(_part(limit, share))

    def tokens_waiting(self, owner: str, most: Most) -> int | None:
        """Return how many tokens of an owner wait, as far as this process knows; None where they are not limited."""
        heap, _ = self._tokens_looked(owner, most)
        return None if heap is None else max(0, heap.waiting)

    def enough(self, owner: str, share: float = 1.0) -> bool:
        """Tell whether it is worth while to go on with lines that wait for room: to find one's place again may be dear.

        That is when a sixteenth of a limit is free, and of the total limit also when the owner has next to nothing
        waiting: the others may never leave so much.
        """
        mine, limit = self._looked(owner)
        heap, limit_of_tokens = self._tokens_looked(owner)
        if heap is not None and not heap.is_worth_while(limit_of_tokens, share):
            return False
        spared = mine.waiting * 2 < self._floor
        return mine.is_worth_while(limit, share) and (spared or self._all.is_worth_while(self._all.limit, share))

    def _looked(self, owner: str, most: Most | None = None) -> tuple[_Line, int]:
        """Return an owner's line, counted, and how many jobs it may have."""
        limit = (most or self._usual).jobs or self._all.limit
        mine = self._line(owner, "jobs", limit, partial(self._count_owner, owner))
        mine.look(limit)
        self._all.look(self._all.limit)
        return mine, limit

    def _tokens_looked(self, owner: str, most: Most | None = None) -> tuple[_Line | None, int]:
        """Return the same of an owner's tokens; None where they are not limited."""
        if not (limit := (most or self._usual).tokens):
            return None, 0
        heap = self._line(owner, "tokens", limit, partial(self._count_tokens, owner))
        heap.look(limit)
        return heap, limit

    def _line(self, owner: str, unit: str, limit: int, count: Callable[[int], int]) -> _Line:
        with self._lock:
            line = self._lines.get((owner, unit))
            if line is None or line.limit < limit:  # counted no further than to the lesser limit
                if len(self._lines) >= MOST_REMEMBERED:
                    self._lines.clear()
                line = self._lines[owner, unit] = _Line(owner, limit, count, unit)
            return line

    def _most_of_all(self, waiting_then: int, share: float) -> float:
        return math.inf if waiting_then <= self._floor else _part(self._all.limit, share)

    def _count_owner(self, owner: str, most: int) -> int:
        with self._database.reading() as tx:
            return waiting.of_owner(tx, owner, most)

    def _count_tokens(self, owner: str, _most: int) -> int:
        with self._database.reading() as tx:
            return waiting.tokens_of_owner(tx, owner, self._all.limit)

    def _count_all(self, most: int) -> int:
        with self._database.reading() as tx:
            return waiting.of_all(tx, most)


def _part(limit: int, share: float) -> int:
    return max(1, int(limit * share))
