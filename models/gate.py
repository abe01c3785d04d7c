"""A gate in front of the database: so many use it at once, so many wait for that for a moment, the rest is refused.

Without it a crowd waits for a connection, each with a thread, longer than its clients do; and the more requests share
the interpreter, the less each of them gets done.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from models.errors import DatabaseBusy

PATIENT = 30.0


class Gate:
    """Lets `places` in at once, and `most_waiting` wait for at most `patience` seconds."""

    def __init__(self, places: int, most_waiting: int, patience: float) -> None:
        self._places = threading.BoundedSemaphore(places)
        self._waiting = threading.BoundedSemaphore(most_waiting)
        self._patience = patience

    @contextmanager
    def place(self, patient: bool = False) -> Iterator[None]:  # noqa: FBT001, FBT002  # in the place of a nullcontext
        """Take a place. Raises DatabaseBusy; for who is `patient`, since much was done for it already, much later."""
        if not self._places.acquire(blocking=False):
            if patient:
                self._take(PATIENT)
            else:
                self._wait()
        try:
            yield
        finally:
            self._places.release()

    def _wait(self) -> None:
        if not self._waiting.acquire(blocking=False):
            raise DatabaseBusy("too many wait for the database")
        try:
            self._take(self._patience)
        finally:
            self._waiting.release()

    def _take(self, patience: float) -> None:
        if not self._places.acquire(timeout=patience):
            raise DatabaseBusy(f"no turn at the database within {patience:g} s")
