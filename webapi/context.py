"""What every request of a process shares."""

from __future__ import annotations

from dataclasses import dataclass

from flask import current_app

from models.db import Database
from stoker.settings import Settings
from webapi.auth import Keys
from webapi.doorbell import Doorbell
from webapi.known_models import KnownModels
from webapi.waiters import Waiters

EXTENSION = "stoker"


@dataclass(frozen=True, slots=True)
class Context:
    """The parts of one web process."""

    settings: Settings
    database: Database
    keys: Keys
    known: KnownModels
    doorbell: Doorbell
    waiters: Waiters

    def close(self) -> None:
        """End its threads and connections."""
        self.doorbell.close()
        self.waiters.stop()
        self.database.close()


def here() -> Context:
    """Return the context of the running application."""
    found = current_app.extensions[EXTENSION]
    assert isinstance(found, Context)  # noqa: S101  # for mypy: extensions are Any
    return found
