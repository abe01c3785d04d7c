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
from stoker.settings import Settings

T = TypeVar("T")

KEEP = 5.0
MOST_SHARE = 0.05
"""Of the time, spent on counting: on a very large queue the counts are older instead."""


class Kept(Generic[T]):
    """The last answer to one question to the database; who asks while it is being asked waits for that answer."""

    def __init__(self, database: Database, ask: Callable[[sa.Connection], T]) -> None:
        self._database = database
        self._ask = ask
        self._lock = threading.Lock()
        self._found: T | None = None
        self.until = 0.0

    def get(self) -> T | None:
        """Return the answer, a new one when it is time for that; None while the database is away."""
        with self._lock:
            if time.monotonic() >= self.until:
                started = time.monotonic()
                try:
                    with self._database.reading() as tx:
                        self._found = self._ask(tx)
                    keep = max(KEEP, (time.monotonic() - started) / MOST_SHARE)
                except DatabaseUnavailable:
                    # A timeout found out nothing, so it is not held against the share.
                    self._found, keep = None, KEEP
                self.until = time.monotonic() + keep
            return self._found


class Counts:
    """What one web process counts."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self.census: Kept[Census] = Kept(database, lambda tx: take(tx, settings.engine_gone_after))
