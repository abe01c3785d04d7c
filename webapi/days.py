"""What owners have used of the tokens of a day, as far as this process knows."""

from __future__ import annotations

from models import usage
from models.db import Database
from models.usage import Today
from webapi.remembered import Remembered

KEEP = 1.0
"""Seconds for which an owner's usage is not read again."""


class Days:
    """The usage of owners whose tokens of a day are limited. Safe to share between threads."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known: Remembered[str, Today] = Remembered(KEEP)

    def today(self, owner: str) -> Today:
        """Return what an owner has used today, and how long the day lasts. Raises DatabaseUnavailable."""
        return self._known.get(owner, lambda: self._read(owner))

    def _read(self, owner: str) -> tuple[Today, float]:
        with self._database.reading() as tx:
            found = usage.today(tx, owner)
        return found, found.left  # never beyond the day that it is of
