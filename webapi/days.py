"""What owners have used of the tokens of a day, as far as this process knows."""

from __future__ import annotations

import threading
import time

from models import usage
from models.db import Database
from models.usage import Today

KEEP = 1.0
"""Seconds for which an owner's usage is not read again."""
GRACE = 0.4
"""Seconds beyond that for which what is known still serves, while one reads for all."""
MOST_REMEMBERED = 10_000


class Days:
    """The usage of owners whose tokens of a day are limited. Safe to share between threads."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._lock = threading.Lock()
        # Each with the moment from which it is read again, and the one from which it serves nobody.
        self._known: dict[str, tuple[Today, float, float]] = {}
        self._reading: set[str] = set()

    def today(self, owner: str) -> Today:
        """Return what an owner has used today, and how long the day lasts. Raises DatabaseUnavailable."""
        since = time.monotonic()
        with self._lock:
            known = self._known.get(owner)
            if known and since < (known[2] if owner in self._reading else known[1]):
                return known[0]  # one reads for all
            self._reading.add(owner)
        try:
            with self._database.reading() as tx:
                found = usage.today(tx, owner)
        finally:
            with self._lock:
                self._reading.discard(owner)
        with self._lock:
            if len(self._known) >= MOST_REMEMBERED:
                self._known.clear()
            # Never beyond the day that it is of.
            again, over = since + min(KEEP, found.left), since + min(KEEP + GRACE, found.left)
            self._known[owner] = (found, again, over)
        return found
