"""Retention: jobs, results, bulks and files past their time go, in slices so short that the queue does not feel them.

A run is bounded and goes on where the last one ended. Nothing of it is remembered but in memory, and every slice is
whole in itself: a run that is cut off anywhere, or that two processes make at once, costs nothing.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import takewhile

import structlog
from celery import signals

from models import bulks, files, retention, samples, usage
from models.db import AnyRow, Database
from models.errors import StokerError
from models.retention import Kind
from models.storage import Storage
from stoker.settings import Settings
from tasks import metrics
from tasks.app import app, context
from tasks.clockwatch import ClockWatch
from tasks.doorbell import Doorbell, doorbell

log = structlog.get_logger(__name__)

SECONDS = {"jobs": 12.0}
SECONDS_OF_OTHERS = 2.0
"""What a run takes at the most for each of the kinds."""
AROUND_EVERY = 3600.0
"""Seconds after which old rows that were passed over, open or ended late, are looked at again."""
LEFT_AFTER = 3600.0
"""Seconds beyond the longest upload after which a half-written file counts as left by a crash."""

_DAY = 86400.0
_PAGE = 5000
_FIRST_SLICE, _SMALLEST_SLICE = 25, 5
_PAUSE = 0.02
_FILES = 100
_FRONT = (-math.inf, "")

_retaining = threading.Lock()
_stopping = threading.Event()


@app.task(name="tasks.retention.retain")
def retain() -> None:
    """Delete a bounded piece of what is past its time."""
    if _retaining.acquire(blocking=False):
        try:
            _retention().run()
        finally:
            _retaining.release()


@cache
def _retention() -> Retention:
    here = context()
    storage = Storage(here.settings.storage)
    return Retention(here.database, here.settings, storage, doorbell(), ClockWatch().trusts, _stopping)


@signals.worker_shutting_down.connect
def stop(**_: object) -> None:
    """Let the run of this process end behind its current slice."""
    _stopping.set()


class _Walk:
    """The way along the ids of one kind: how far it has come, and at what pace it deletes."""

    def __init__(self, kind: Kind, most: int, long: float) -> None:
        self.kind = kind
        self.behind = kind.start
        self.whole = False
        self.size = _FIRST_SLICE
        self._most = most
        self._long = long
        self._began = time.monotonic()

    def go_on(self) -> None:
        """Begin a new round, when the last one is at its end and it is time for it."""
        if self.whole and time.monotonic() - self._began >= AROUND_EVERY:
            self.behind, self._began = self.kind.start, time.monotonic()

    def took(self, held: float) -> None:
        """Learn from a slice that took so many seconds: answers may be short, or megabytes each."""
        if held > self._long:
            self.size = max(_SMALLEST_SLICE, self.size // 2)
        elif held < self._long / 2:
            self.size = min(self._most, self.size * 2)


class Retention:
    """What deletes in this process; `trusts` says whether the database's clock may be believed."""

    def __init__(
        self,
        database: Database,
        settings: Settings,
        storage: Storage,
        bell: Doorbell,
        trusts: Callable[[float], bool],
        stopping: threading.Event | None = None,
    ) -> None:
        """Prepare; nothing is opened before the first run."""
        self._database = database
        self._settings = settings
        self._storage = storage
        self._bell = bell
        self._trusts = trusts
        self._stopping = stopping or threading.Event()
        # While a slice of SQLite's is written, every POST waits; PostgreSQL's lock nothing that anybody wants.
        self._most, long = (200, 0.02) if database.dialect == "sqlite" else (1000, 0.1)
        self._walks = [_Walk(kind, self._most, long) for kind in retention.KINDS]
        self._behind_file = _FRONT

    def run(self) -> Counter[str]:
        """Delete for some seconds, unless the clock is not to be trusted; return how many of each kind."""
        gone: Counter[str] = Counter()
        with self._database.reading() as tx:
            clock = retention.clock(tx)
        if clock is None or not self._trusts(clock):
            return gone
        try:
            for walk in self._walks:
                for many in self._retire(walk, clock - self._settings.retention_days * _DAY):
                    _count(gone, walk.kind.name, many)
            for many in self._remove_files(clock):
                _count(gone, "files", many)
            for many in self._forget_usage(clock):
                _count(gone, "usage", many)
            for many in self._forget_samples():
                _count(gone, "samples", many)
        finally:
            if gone:
                log.info("past their time and deleted", **gone)
        return gone

    def _retire(self, walk: _Walk, before: float) -> Iterator[int]:
        """Go on along the ids of a kind and delete; yield the size of each slice."""
        in_time = self._time(SECONDS.get(walk.kind.name, SECONDS_OF_OTHERS))
        walk.go_on()
        walk.whole = False
        while not walk.whole and in_time():
            with self._gently(), self._database.reading() as tx:
                page = retention.page(tx, walk.kind, walk.behind, before, _PAGE)
            left = page.ids
            while left and in_time():
                ids, left = left[: walk.size], left[walk.size :]
                yield self._slice(walk, ids, before)
            if not left:
                walk.behind, walk.whole = page.upto, page.whole

    def _slice(self, walk: _Walk, ids: Sequence[str], before: float) -> int:
        with self._gently(walk.took), self._database.transaction() as tx:
            retired = retention.retire(tx, walk.kind, ids, before)
        if walk.kind.table is bulks.table:
            for bulk_id in retired:
                self._bell.bulk(bulk_id)
        return len(retired)

    def _remove_files(self, clock: float) -> Iterator[int]:
        """Hide files past their time, remove the bytes of hidden ones, then their rows; yield how many each time.

        One that cannot be removed ends it for this run; the next run goes on behind it.
        """
        in_time = self._time(SECONDS_OF_OTHERS)
        self._hide_files(clock)
        well = True
        while well and in_time():
            with self._database.reading() as tx:
                rows = retention.removable(tx, self._behind_file, _FILES)
            if not rows and self._behind_file == _FRONT:
                return
            if not rows:
                self._behind_file = _FRONT
                continue
            gone = [row.id for row in takewhile(self._remove, rows)]
            if gone:
                with self._gently(), self._database.transaction() as tx:
                    files.forget(tx, gone)
                yield len(gone)
            well = len(gone) == len(rows)

    def _forget_usage(self, clock: float) -> Iterator[int]:
        """Delete the usage of days long past; yield the size of each slice."""
        in_time, before = self._time(SECONDS_OF_OTHERS), int(clock / _DAY - self._settings.usage_days)
        while in_time():
            with self._database.reading() as tx:
                if not usage.any_before(tx, before):
                    return
            with self._gently(), self._database.transaction() as tx:
                many = usage.forget(tx, before, self._most)
            yield many

    def _forget_samples(self) -> Iterator[int]:
        """Delete what engines measured long ago; yield the size of each slice."""
        in_time, many = self._time(SECONDS_OF_OTHERS), 1
        while many and in_time():
            with self._gently(), self._database.transaction() as tx:
                many = samples.forget(tx, self._most)
            yield many

    def _hide_files(self, clock: float) -> None:
        age = self._settings.upload_timeout + LEFT_AFTER
        with self._database.reading() as tx:
            fading = retention.fading(tx, clock, age, self._most)
        if fading:
            with self._gently(), self._database.transaction() as tx:
                retention.hide(tx, fading, clock, age)

    def _remove(self, row: AnyRow) -> bool:
        self._behind_file = (row.created_at, row.id)
        try:
            self._storage.delete(row.key)
        except StokerError as error:
            log.warning("a file's bytes cannot be removed", file=row.id, error=str(error))
            return False
        return True

    def _time(self, seconds: float) -> Callable[[], bool]:
        until = time.monotonic() + seconds
        return lambda: time.monotonic() < until and not self._stopping.is_set()

    @contextmanager
    def _gently(self, took: Callable[[float], None] | None = None) -> Iterator[None]:
        """Leave the database to others for as long as this took, at the least for a moment."""
        began = time.monotonic()
        yield
        held = time.monotonic() - began
        if took is not None:
            took(held)
        self._stopping.wait(max(held, _PAUSE))


def _count(gone: Counter[str], kind: str, many: int) -> None:
    if many:
        gone[kind] += many
        metrics.retired.labels(kind).inc(many)
