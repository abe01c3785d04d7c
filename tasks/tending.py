"""What whoever tends a bulk works with: its database, storage, doorbell, pace, and a way to be stopped."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

from models import bulk_leases
from models.db import AnyRow, Database
from models.room import Room
from models.storage import Storage
from stoker.settings import Settings
from tasks.bulk_sources import Source
from tasks.doorbell import Doorbell
from tasks.holders import new_holder

_SQLITE_PAUSE = 0.02
"""Seconds between two writes on SQLite, at least: it has one writer, and every POST waits for it."""
_RENEW_EVERY = 2.0


class Stopped(Exception):
    """This process is shutting down; whoever tends the bulk next goes on where this one was."""


@dataclass(frozen=True, slots=True)
class Tending:
    """One holder of one bulk."""

    database: Database
    settings: Settings
    storage: Storage
    bell: Doorbell
    room: Room
    stopping: threading.Event
    me: str = field(default_factory=new_holder)

    @property
    def lease(self) -> float:
        """Return the seconds for which a bulk is held between two writes."""
        return self.settings.lease

    @property
    def sqlite(self) -> bool:
        """Tell whether there is only one writer."""
        return self.database.dialect == "sqlite"

    @property
    def chunk_lines(self) -> int:
        """Return how many lines become jobs in one transaction."""
        return 200 if self.sqlite else 10_000

    @property
    def chunk_bytes(self) -> int:
        """Return the bytes of bodies that one transaction stores, about."""
        return 1_000_000 if self.sqlite else 8_000_000

    @property
    def slice_lines(self) -> int:
        """Return how many waiting jobs are changed in one transaction."""
        return 200 if self.sqlite else 2000

    def source(self, bulk: AnyRow) -> Source:
        """Return the lines of a bulk that is held, and stays so while one reads, however far the next line is."""
        return Source(self.database, self.settings, self.storage, bulk, Grip(self, bulk))

    def check(self) -> None:
        """Raise Stopped when this process is shutting down."""
        if self.stopping.is_set():
            raise Stopped

    def pause(self, held: float) -> None:
        """Let the others write after having held the one write lock for so many seconds."""
        if self.sqlite:
            time.sleep(max(held, _SQLITE_PAUSE))


class Grip:
    """Keeps hold of a bulk while its input is read: called, it renews the lease when that is due."""

    def __init__(self, tending: Tending, held: AnyRow) -> None:
        self._tending = tending
        self._held = held
        self._every = min(_RENEW_EVERY, tending.lease / 4)
        self._due = time.monotonic() + self._every

    def __call__(self) -> None:
        """Raise Stopped when this process is shutting down, Superseded when the bulk is no longer as it was held."""
        tending = self._tending
        tending.check()
        if time.monotonic() >= self._due:
            with tending.database.transaction() as tx:
                bulk_leases.renew(tx, self._held, tending.me, tending.lease)
            self._due = time.monotonic() + self._every
