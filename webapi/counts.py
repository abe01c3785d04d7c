"""What a process has counted lately, for the metrics page and the overview: seldom, however many ask."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

import sqlalchemy as sa

from models.census import Census, take
from models.db import Database
from models.errors import DatabaseUnavailable
from models.overview import Now, look
from stoker.settings import Settings
from webapi.history import WINDOWS, History, Lately, Past, lately
from webapi.replica import Replica

T = TypeVar("T")

KEEP = 5.0
MOST_SHARE = 0.05
"""Of the time, spent on counting: on a very large queue the counts are older instead."""


class Kept(Generic[T]):
    """The last answer to one question to the database; who asks while it is being asked waits for that answer."""

    def __init__(
        self,
        database: Database,
        ask: Callable[[sa.Connection], T],
        keep: float = KEEP,
        replica: Replica | None = None,
    ) -> None:
        self._database = database
        self._replica = replica
        self._ask = ask
        self._keep = keep
        self._lock = threading.Lock()
        self._found: T | None = None
        self.until = 0.0

    def get(self) -> T | None:
        """Return the answer, a new one when it is time for that; None while the database is away."""
        with self._lock:
            if time.monotonic() >= self.until:
                started = time.monotonic()
                try:
                    self._found = self._read()
                    keep = max(self._keep, (time.monotonic() - started) / MOST_SHARE)
                except DatabaseUnavailable:
                    # A timeout found out nothing, so it is not held against the share.
                    self._found, keep = None, KEEP
                self.until = time.monotonic() + keep
            return self._found

    def _read(self) -> T:
        if self._replica is not None:
            return self._replica.read(self._ask, self._database)
        with self._database.reading() as tx:
            return self._ask(tx)


class Counts:
    """What one web process counts."""

    def __init__(self, database: Database, lists: Replica, settings: Settings) -> None:
        # The one that counts all that is open; what adds up, row for row, is asked of one database alone.
        replica = lists if settings.database_replica else None
        self.census: Kept[Census] = Kept(database, lambda tx: take(tx, settings.engine_gone_after), replica=replica)
        self.now: Kept[Now] = Kept(database, look, keep=1.0)
        histories = {width: History(width) for width in set(WINDOWS.values())}
        self.lately: Kept[Lately] = Kept(database, lately)
        self.past = {minutes: self._past(database, histories[width], minutes) for minutes, width in WINDOWS.items()}

    @staticmethod
    def _past(database: Database, history: History, minutes: int) -> Kept[Past]:
        return Kept(database, lambda tx: history.past(tx, minutes))
