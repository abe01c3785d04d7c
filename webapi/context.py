"""What every request of a process shares."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import BoundedSemaphore

import sqlalchemy as sa
from flask import current_app

from models.db import Database
from models.errors import DatabaseUnavailable
from models.failpoints import failpoint
from models.gate import Gate
from models.room import Room
from models.sealing import Seal
from models.storage import Storage
from stoker.settings import Settings
from webapi.auth import Keys
from webapi.counts import Counts
from webapi.days import Days
from webapi.doorbell import Doorbell
from webapi.errors import OutcomeUnknown
from webapi.following import Recorded
from webapi.known_models import KnownModels
from webapi.pager import Pager
from webapi.rates import Rates
from webapi.replica import Replica
from webapi.sessions import Sessions
from webapi.waiters import Waiters

EXTENSION = "stoker"

POOL, SQLITE_POOL = 24, 4
"""Requests that use the database at once. SQLite has one writer, for which the others would wait by trying."""
MOST_WAITING, PATIENCE = 512, 2.0
"""How many more wait for that, and for how many seconds; the rest is refused at once, and keeps no thread."""
SILENCE = 10.0
"""Seconds after which an answer of the database is no longer waited for."""


@dataclass(frozen=True, slots=True)
class Context:
    """The parts of one web process."""

    settings: Settings
    database: Database
    reserve: Database
    """For health checks and for those who wait for jobs, whatever crowd is at the other: few use it at once."""
    lists: Replica
    """For lists and counts, which may be a few seconds old: a read replica, or the first one where there is none."""
    storage: Storage
    keys: Keys
    seal: Seal
    sessions: Sessions
    known: KnownModels
    counts: Counts
    room: Room
    doorbell: Doorbell
    pager: Pager
    waiters: Waiters
    recorded: Recorded
    uploads: BoundedSemaphore
    rates: Rates
    days: Days

    def ring(self, model: str, lane: str) -> None:
        """Tell that a job has come, in the way of its lane; never waits and never fails."""
        if lane == "realtime":
            self.pager.realtime(model)
        else:
            self.doorbell.ring(model, lane)

    def close(self) -> None:
        """End its threads and connections."""
        self.pager.close()
        self.doorbell.close()
        self.recorded.close()
        self.waiters.stop()
        self.keys.close()
        self.lists.close()
        self.database.close()
        self.reserve.close()


def shared(settings: Settings) -> Database:
    """Open the database for all requests of a process, with a gate in front."""
    places = SQLITE_POOL if settings.database.startswith("sqlite") else POOL
    return Database(settings.database, pool_size=places, gate=Gate(places, MOST_WAITING, PATIENCE), silence=SILENCE)


def here() -> Context:
    """Return the context of the running application."""
    found = current_app.extensions[EXTENSION]
    assert isinstance(found, Context)  # noqa: S101  # for mypy: extensions are Any
    return found


@contextmanager
def writing(unknown: type[OutcomeUnknown], *, patient: bool = False) -> Iterator[sa.Connection]:
    """Open a transaction; when the database goes away at its COMMIT, raise `unknown`.

    It is `patient` behind an upload: that was not to be in vain when the database is only busy.
    """
    written = False
    try:
        with here().database.transaction(patient=patient) as tx:
            yield tx
            failpoint("accept.storing")
            written = True
        failpoint("accept.committed")
    except DatabaseUnavailable as error:
        if written:
            raise unknown(str(error)) from error
        raise
