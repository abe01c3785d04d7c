"""When keys were last used: gathered, and written by a thread of its own, in nobody's way."""

from __future__ import annotations

import os
import threading

import structlog

from models import keys
from models.db import Database
from models.errors import DatabaseUnavailable

log = structlog.get_logger("stoker.web")

GATHER = 5.0
"""Seconds for which uses are gathered before they are written together."""
MOST = 10_000
"""Keys that wait to be written, at most: a use that is not noted is noted with the next one."""


class KeyUses:
    """What is to be noted of this process. Safe to share between threads; nothing runs before the first use."""

    def __init__(self, database: Database, gather: float = GATHER) -> None:
        self._database = database
        self._gather = gather
        self._lock = threading.Lock()
        self._used: set[str] = set()
        self._pid = 0
        self._closing = threading.Event()

    def note(self, key_id: str) -> None:
        """Note that a key was used; never waits for the database and never fails."""
        with self._lock:
            if len(self._used) < MOST:
                self._used.add(key_id)
            if self._pid == os.getpid():
                return
            try:
                threading.Thread(target=self._run, name="key-uses", daemon=True).start()
                self._pid = os.getpid()
            except RuntimeError:
                log.warning("no thread to note the use of keys")

    def write(self) -> None:
        """Write what was gathered; what cannot be written is dropped."""
        with self._lock:
            used, self._used = self._used, set()
        if not used:
            return
        try:
            with self._database.transaction() as tx:
                keys.note_used(tx, used)
        except DatabaseUnavailable as error:
            log.warning("the use of keys could not be noted", reason=str(error))

    def close(self) -> None:
        """End the thread; what it has gathered it writes no more, for the database is about to close."""
        self._closing.set()

    def _run(self) -> None:
        while not self._closing.wait(self._gather):
            try:
                self.write()
            except Exception as error:  # the thread's edge: without it nothing is noted any more
                log.exception("the use of keys could not be noted", error=type(error).__name__)
