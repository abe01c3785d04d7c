"""A read replica of the database: for what may be a few seconds old, as long as it is not older than that.

A thread looks every second how far it is behind: the primary's clock against the last sweep that the replica knows of.
That holds for every kind of replication, needs no rights, and an open connection to a primary that is gone does not
look fresh. Behind too far, down, or without a sweeper: the primary is read, as without a replica.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable
from typing import TypeVar

import sqlalchemy as sa
import structlog
from sqlalchemy.exc import DBAPIError

from models import diagnosis, sweeps
from models.db import Database
from models.errors import DatabaseBusy, DatabaseUnavailable, NotFound
from models.gate import Gate
from models.silence import at_most
from stoker.settings import Settings

T = TypeVar("T")

log = structlog.get_logger("stoker.web")

EVERY = 1.0
GOOD_FOR = 3.0
"""Seconds that a look holds: what one that hangs is worth."""
PLACES, MOST_WAITING, PATIENCE = 24, 512, 2.0
SILENCE = 10.0
LOOK_FOR = 2.0
_FAILS = (DatabaseUnavailable, DBAPIError)
"""It is away, or cannot answer what the primary can: a table has not come there yet, or may not be read."""


class Replica:
    """The primary, and where there is one its replica, for reading."""

    def __init__(self, primary: Database, clock: Database, settings: Settings) -> None:
        """Open lazily; a thread starts with the first reader of each process. `clock`: the primary, without a crowd."""
        url = settings.database_replica
        gate = Gate(PLACES, MOST_WAITING, PATIENCE)
        self.primary = primary
        self._clock = clock
        self._replica = Database(url, pool_size=PLACES, gate=gate, silence=SILENCE) if url else None
        self._looker = Database(url, pool_size=1, silence=LOOK_FOR) if url else None
        self._most = settings.sweep_every + sweeps.MOST_LAG
        self._good_until = 0.0
        self._why = ""
        self._pid = 0
        self._start_lock = threading.Lock()
        self._closed = threading.Event()

    def chosen(self) -> Database:
        """Return the replica while it is fresh, else the primary."""
        if self._replica is None:
            return self.primary
        if self._pid != os.getpid():
            self._start()
        return self._replica if time.monotonic() < self._good_until else self.primary

    def read(self, work: Callable[[sa.Connection], T], primary: Database | None = None) -> T:
        """Return what is read from the one that is chosen; from the primary, if the replica fails meanwhile.

        `primary`: another way to it. Raises DatabaseBusy where too many read the replica: they would not fit there.
        """
        database = self.chosen()
        if database is not self.primary:
            try:
                with database.reading() as tx:
                    return work(tx)
            except DatabaseBusy:
                raise
            except _FAILS:
                self._good_until = 0.0
        with (primary or self.primary).reading() as tx:
            return work(tx)

    def if_ended(self, read: Callable[[sa.Connection], T], ended: Callable[[T], bool]) -> tuple[Database, T] | None:
        """Return what the replica knows, and the replica, if it has ended there: then it stays as it is.

        None when the primary is to be asked: whoever looks may have seen more already than the replica has. Raises
        DatabaseBusy, as `read` does.
        """
        database = self.chosen()
        if database is self.primary:
            return None
        try:
            with database.reading() as tx:
                found = read(tx)
        except DatabaseBusy:
            raise
        except (NotFound, *_FAILS):
            return None
        return (database, found) if ended(found) else None

    def of_ended(self, read: Callable[[sa.Connection], T], ended: Callable[[T], bool]) -> tuple[Database, T]:
        """Do the same, and ask the primary where it is to be asked. Raises what `read` raises."""
        if (known := self.if_ended(read, ended)) is not None:
            return known
        with self.primary.reading() as tx:
            return self.primary, read(tx)

    def close(self) -> None:
        """End the thread and the connections: first the thread, which has one of them."""
        self._closed.set()
        if self._pid == os.getpid():
            self._thread.join(LOOK_FOR * 2)
        for database in (self._replica, self._looker):
            if database is not None:
                database.close()

    def _start(self) -> None:
        with self._start_lock:
            if self._pid != os.getpid():
                self._good_until = 0.0
                self._thread = threading.Thread(target=self._run, name="replica", daemon=True)
                self._thread.start()
                self._pid = os.getpid()

    def _run(self) -> None:
        good: bool | None = None
        while not self._closed.is_set():
            behind = self._behind()
            if (behind <= self._most) is not good:
                good = behind <= self._most
                log.info("replica is read" if good else "replica is not read", behind=round(behind, 1), kind=self._why)
            if good:
                self._good_until = time.monotonic() + GOOD_FOR
            self._closed.wait(EVERY)

    def _behind(self) -> float:
        """Return how many seconds the replica is behind at most; infinity when that cannot be told."""
        assert self._looker is not None  # noqa: S101  # for mypy
        try:
            with at_most(LOOK_FOR):
                began = time.monotonic()
                with self._looker.reading() as tx:
                    last, its_clock = sweeps.last(tx), diagnosis.clock(tx)
                with self._clock.reading() as tx:
                    clock = diagnosis.clock(tx)
                took = time.monotonic() - began
        except Exception as error:  # noqa: BLE001  # whatever it is must not end the thread
            self._why = type(error.__cause__ or error).__name__
            return math.inf
        if abs(clock - its_clock) > sweeps.LEAST_STEP + took:
            # Ages that are told there, of engines and of those who wait, would be wrong.
            self._why = "its clock is another"
            return math.inf
        self._why = ""
        return sweeps.lag(last, clock)
