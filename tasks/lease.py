"""The heartbeat of a worker: leases renewed, cancelled jobs aborted, a hung engine found out.

A live heartbeat must not keep a hung engine leased for ever: without a token or an outcome for `run_timeout` the engine
counts as broken.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

import structlog

from models import batches, engines, jobs
from models.db import Database
from models.engines import Incarnation
from models.errors import DatabaseUnavailable
from models.failpoints import failpoint
from models.silence import at_most
from stoker.settings import Settings
from tasks.flights import clock
from tasks.recording import Recorder

log = structlog.get_logger(__name__)


class Held(Protocol):
    """What the heartbeat looks after: a worker's batches in flight."""

    def in_flight(self) -> Mapping[str, Sequence[str]]:
        """Return the ids of the unfinished jobs of each batch."""
        ...

    def renewed(self, batch_ids: Collection[str], at: float) -> None:
        """Note which leases were renewed, by a transaction that began at `at` (`flights.clock`)."""
        ...

    def lose(self, batch_ids: Sequence[str]) -> None:
        """Stop batches that are no longer ours; nothing of them counts any more."""
        ...

    def abort(self, job_ids: Sequence[str]) -> None:
        """Abort jobs that have ended by other hands (cancelled, expired)."""
        ...

    def offer_what_changed(self) -> None:
        """Store what the engine serves if that has changed since it was last stored."""
        ...

    def record(self) -> None:
        """Bring the metrics up to date that nothing else does."""
        ...

    def hung_for(self) -> float:
        """Return the seconds since the engine's last sign of progress, 0 while it has nothing to do."""
        ...

    def fail(self, why: str) -> None:
        """Give up this process: its batches go back, it ends."""
        ...


class Keeper:
    """A thread that keeps a worker's leases."""

    def __init__(
        self, database: Database, settings: Settings, mine: Incarnation, held: Held, recorder: Recorder
    ) -> None:
        """Prepare; `start` starts the thread."""
        self._database = database
        self._settings = settings
        self._mine = mine
        self._held = held
        self._recorder = recorder
        self._stop = threading.Event()
        self._renewed = 0.0
        self._thread = threading.Thread(target=self._work, name="lease", daemon=True)

    def start(self) -> None:
        """Start the heartbeat."""
        self._thread.start()

    def stop(self) -> None:
        """End the heartbeat; wait for one that is under way."""
        self._stop.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(timeout=5)

    def _work(self) -> None:
        while not self._stop.wait(min(self._settings.cancel_poll, self._settings.heartbeat)):
            try:
                self.beat(time.monotonic())
            except DatabaseUnavailable as error:
                log.warning("heartbeat could not reach the database", error=str(error))
            except Exception as error:  # the thread's edge: without it every batch would be lost, and its jobs blamed
                log.exception("the heartbeat failed", error=type(error).__name__)
                self._held.fail(f"the heartbeat failed: {type(error).__name__}")

    def beat(self, now: float) -> None:
        """Do what is due at `now` (monotonic seconds)."""
        # First: it needs no database, and a long batch is to be seen while it runs.
        self._held.record()
        hung = self._held.hung_for()
        if hung > self._settings.run_timeout:
            self._held.fail(f"the engine gave no sign of progress for {hung:.0f} s")
            return
        due = now - self._renewed >= self._settings.heartbeat
        if due:
            self._renew()
            self._renewed = now
        self._held.offer_what_changed()
        self.abort_stopped()
        if due:
            # Last, and not for long: these are only statistics.
            with at_most(self._settings.heartbeat):
                self._recorder.store(self._database)

    def _renew(self) -> None:
        failpoint("lease.renewing")
        held = self._held.in_flight()
        started = clock()
        # While it waits the leases run out: better to try again on another connection.
        with at_most(self._settings.heartbeat), self._database.transaction() as tx:
            named = engines.seen(tx, self._mine)
            kept = batches.renew(tx, self._mine, held, self._settings.lease) if held else set()
        self._held.renewed(kept, started)
        lost = [batch_id for batch_id in held if batch_id not in kept]
        if lost:
            # A batch that ended in this moment is in here too: stopping it is harmless.
            self._held.lose(lost)
        if not named:
            self._held.fail("another process has taken this engine's name")

    def abort_stopped(self) -> None:
        """Look for jobs that have ended by other hands, and abort them."""
        held = self._held.in_flight()
        if held:
            with self._database.reading() as tx:
                stopped = jobs.stopped(tx, held)
            if stopped:
                self._held.abort(stopped)
