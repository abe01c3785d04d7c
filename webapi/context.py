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
from models.storage import Storage
from stoker.settings import Settings
from webapi.auth import Keys
from webapi.doorbell import Doorbell
from webapi.errors import OutcomeUnknown
from webapi.following import Recorded
from webapi.known_models import KnownModels
from webapi.pager import Pager
from webapi.waiters import Waiters

EXTENSION = "stoker"


@dataclass(frozen=True, slots=True)
class Context:
    """The parts of one web process."""

    settings: Settings
    database: Database
    storage: Storage
    keys: Keys
    known: KnownModels
    doorbell: Doorbell
    pager: Pager
    waiters: Waiters
    recorded: Recorded
    uploads: BoundedSemaphore

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
        self.database.close()


def here() -> Context:
    """Return the context of the running application."""
    found = current_app.extensions[EXTENSION]
    assert isinstance(found, Context)  # noqa: S101  # for mypy: extensions are Any
    return found


@contextmanager
def writing(unknown: type[OutcomeUnknown]) -> Iterator[sa.Connection]:
    """Open a transaction; when the database goes away at its COMMIT, raise `unknown`."""
    written = False
    try:
        with here().database.transaction() as tx:
            yield tx
            written = True
    except DatabaseUnavailable as error:
        if written:
            raise unknown(str(error)) from error
        raise
