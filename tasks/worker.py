"""The engine worker: claims batches, runs them on its engine, hands each outcome to the settler as it comes.

Several batches are in flight on the one engine: the next fills it while the last one's tail drains. The worker ends in
one of three ways: drained (its unfinished batches are returned), failed (they are crashed, exit 70), or killed (its
next incarnation, or the sweeper, gives them back).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NoReturn

import sqlalchemy as sa
import structlog

from models import batches, cohorts, engines, queue
from models.db import Database
from models.ends import Settled
from models.engines import Incarnation
from models.errors import DatabaseUnavailable
from models.failpoints import failpoint
from stoker.settings import Settings
from tasks import outcomes
from tasks.claims import Claims
from tasks.doorbell import Doorbell
from tasks.ears import Ears
from tasks.engines.base import Engine, EngineFailure
from tasks.flights import Flight, Flights
from tasks.lease import Keeper
from tasks.offer import Offer
from tasks.outage import sit_out
from tasks.recording import Recorder
from tasks.settler import Settler
from tasks.tokens import Tokens

log = structlog.get_logger(__name__)

EXIT_FAILED = 70
MOST_REALTIME = 16384
"""Threads for realtime batches, started when needed. Far more than an engine's slots: what is claimed runs at once."""
LAND_WITHIN = 10.0
"""Seconds that stopped flights may take to end: the engine lets go within one, the rest is SQL."""


class Worker:
    """One engine and its batches in flight. Every method may be called from any thread."""

    def __init__(
        self, database: Database, settings: Settings, engine: Engine, mine: Incarnation, doorbell: Doorbell
    ) -> None:
        """Take over a started engine; `open` makes it known."""
        self._database = database
        self._settings = settings
        self._engine = engine
        self._mine = mine
        self._doorbell = doorbell
        self._flights = Flights(settings)
        self._recorder = Recorder(mine)
        self._closing = threading.Event()
        self._failing = threading.Lock()
        self._drainer = threading.Thread(target=self._drain, name="drain", daemon=True)
        self._claims = Claims(database, settings, engine, mine, self._flights, self._closing)
        self._offer = Offer(database, engine, mine, self._claims.reserve)
        self._settler = Settler(database, mine.engine, self._stored, self.fail)
        self._keeper = Keeper(database, settings, mine, self, self._recorder)
        self._tokens = Tokens(settings)
        self._ears = Ears(settings, self)
        # Threads of their own: a stream for each of an engine's slots would keep all of Celery's busy.
        self._realtime = ThreadPoolExecutor(MOST_REALTIME, "realtime")

    # The life of the process

    def open(self) -> None:
        """Open the engine for work and start the heartbeat."""
        self._say_so(self._offer.open)
        self._keeper.start()
        self._ears.start()

    def _say_so(self, offer: Callable[[], bool]) -> None:
        if not offer():
            self.fail("another process has taken this engine's name")
        self._ring_collector()

    def offer_what_changed(self) -> None:
        """Say what the engine serves if that has changed: its upstreams come and go."""
        if self._offer.changed():
            self._say_so(self._offer.renew)

    def drain(self) -> None:
        """Take no more work; give running jobs `drain_timeout` to finish, then return what is left."""
        if not self._closing.is_set():
            self._closing.set()
            self._ears.stop()
            self._drainer.start()

    def _drain(self) -> None:
        self._claims.close()
        self._offer.leave("draining")
        self._flights.wait(self._settings.drain_timeout)
        self._flights.stop()
        # Nobody else waits for those of the realtime lane: closed under them, the engine would count as crashed.
        self._flights.wait(LAND_WITHIN)

    def close(self) -> None:
        """End after a drain: nothing is in flight any more."""
        if self._drainer.is_alive():
            self._drainer.join()
        self._keeper.stop()
        self._tokens.stop()
        self._recorder.store(self._database)
        self._offer.leave("gone")
        self._engine.close()

    def fail(self, why: str) -> NoReturn:
        """Give up this process: store what arrived, give the batches back, end so that it is started again."""
        self._failing.acquire()  # never released: the first failure ends the process, others wait for that
        log.error("engine failed", engine=self._mine.engine, reason=why)
        try:
            self._closing.set()
            self._keeper.stop()
            self._settler.wait(timeout=5)
            self._crash()
            ender = threading.Thread(target=self._engine.close, daemon=True)
            ender.start()
            ender.join(5)
        finally:
            # Threads of a broken engine may hang for ever: no orderly exit waits for them.
            os._exit(EXIT_FAILED)

    def _crash(self) -> None:
        def work(tx: sa.Connection) -> None:
            limit = self._settings.max_attempts
            cohorts.crash(tx, self._mine.engine, self._mine.id, "crashed", max_attempts=limit)
            engines.leave(tx, self._mine, "gone")

        try:
            self._database.retrying(work)
        except DatabaseUnavailable as error:
            log.warning("the sweeper will give the batches back", error=str(error))

    # Claiming and running

    def run(self) -> None:
        """Claim the best READY batch and run it, again until there is none or no room: what a doorbell asks for."""
        flown = False
        while (flight := self._claims.best()) is not None:
            # Rings for several batches that were cut at once are one: this thread, which is busy now, wakes the next.
            self._doorbell.engine(self._mine.engine)
            if flight.batch.lane == "realtime":
                # The collector is not rung: it would take turns with `serve`, which is quicker, at every job.
                self._realtime.submit(self._serve_flight, flight)
                continue
            self._ring_collector()
            self._fly(flight)
            flown = True
        if flown:
            self._ring_collector()

    def serve(self, model: str) -> None:
        """Take the realtime jobs that are queued for a model, as far as there is room."""
        more = True
        while more:  # whoever came since has rung since
            flight, more = self._claims.realtime(model)
            if flight is not None:
                self._realtime.submit(self._serve_flight, flight)

    def _serve_flight(self, flight: Flight) -> None:
        self._fly(flight)
        try:
            with self._database.reading() as tx:
                # Behind a cohort there may be the next one, which is in no lane.
                waiting = flight.batch.cohort or queue.waiting(tx, flight.batch.model)
        except DatabaseUnavailable as error:
            log.warning("who waits is left to the sweeper", error=str(error))
        else:
            if waiting:
                self._doorbell.collector(flight.batch.model)

    def _fly(self, flight: Flight) -> None:
        try:
            self._run(flight)
            self._use_room()
        except EngineFailure as error:
            self.fail(str(error))
        except Exception as error:  # the thread's edge: in flight for ever, the batch would keep its lease
            log.exception("a batch did not end", batch=flight.batch.id, error=type(error).__name__)
            self.fail(f"a batch did not end: {type(error).__name__}")

    def _run(self, flight: Flight) -> None:
        batch = flight.batch
        self._recorder.claimed(flight)
        jobs = {job.id: job for job in batch.jobs}
        requests = outcomes.requests(flight, self._settings, self._tokens)
        try:
            for outcome in self._engine.generate(requests, flight.stop):
                if not flight.lost and flight.unfinished.pop(outcome.id, None) is not None:
                    if outcomes.is_final(outcome) and outcome.id in flight.streams:
                        flight.streams[outcome.id].end()
                    self._recorder.answered(outcome)
                    self._settler.put(batch.id, outcomes.settled(outcome, jobs[outcome.id], self._settings))
        except EngineFailure:
            raise
        except Exception as error:
            # An engine that raises anything else is broken as well; the worker's edge records it.
            log.exception("engine raised", engine=self._mine.engine, error=type(error).__name__)
            raise EngineFailure(f"the engine raised {type(error).__name__}") from error
        self._settler.wait(batch.id)
        self._end(flight)

    def _end(self, flight: Flight) -> None:
        """Finish the batch, or return what was stopped in the middle; a lost one is left alone."""
        batch_id = flight.batch.id
        failpoint("batch.ending")

        def work(tx: sa.Connection) -> str:
            if batches.finish(tx, batch_id):
                return "finished"
            mine = (batches.table.c.id == batch_id, batches.table.c.incarnation == self._mine.id)
            running = batches.table.c.state == sa.literal("running")
            return "returned" if batches.give_back(tx, *mine, running) else "lost"

        ended = sit_out(
            lambda: self._database.retrying(work), "the end of a batch waits for the database", batch=batch_id
        )
        self._recorder.ended(flight, ended)
        flight.stored = ended == "finished"
        for stream in flight.streams.values():
            stream.close()
        self._flights.remove(flight)
        for bulk_id in {job.bulk_id for job in flight.batch.jobs if job.bulk_id}:
            self._doorbell.bulk(bulk_id)  # it may be its last line, or one failed too many

    def _stored(self, stored: Sequence[Settled]) -> None:
        """Tell of what was committed, and use the slots that it freed."""
        self._recorder.stored(stored)
        if stored:
            self._doorbell.ended([outcome.job_id for outcome in stored])
            self._doorbell.deliver()
        self._use_room()

    def _use_room(self) -> None:
        """Give room that has come to those who were turned away."""
        if self._closing.is_set():
            return
        for model in self._claims.passed_over():
            self._realtime.submit(self._ears.act, self.serve, model)
        if self._claims.wanted_room():
            self._doorbell.engine(self._mine.engine)

    def _ring_collector(self) -> None:
        for model in self._offer.asked_for():
            self._doorbell.collector(model)

    # What the heartbeat and the ears need (tasks/lease.py: Held, tasks/ears.py: Hearer)

    def model_names(self) -> Collection[str]:
        """Return the models that the engine serves at the moment."""
        return [model.name for model in self._offer.models()]

    def in_flight(self) -> Mapping[str, Sequence[str]]:
        """Return the ids of the unfinished jobs of each batch."""
        return self._flights.jobs()

    def renewed(self, batch_ids: Collection[str], at: float) -> None:
        """Note which leases were renewed, by a transaction that began at `at` (`flights.clock`)."""
        self._flights.renewed(batch_ids, at)

    def record(self) -> None:
        """Bring the metrics up to date that nothing else does."""
        self._recorder.look(self._engine)

    def lose(self, batch_ids: Sequence[str]) -> None:
        """Stop batches that are no longer ours; nothing of them counts any more."""
        self._flights.lose(batch_ids)

    def abort(self, job_ids: Sequence[str]) -> None:
        """Abort jobs that have ended by other hands (cancelled, expired)."""
        self._flights.forget(job_ids)
        self._engine.abort(job_ids)
        self._use_room()

    def load(self) -> float:
        """Return which part of the engine's places is taken, 1 at most."""
        return min(1.0, self._flights.unfinished() / max(1, self._engine.slots))

    def look_for_stopped(self) -> None:
        """Abort at once what has ended by other hands: somebody said that something has."""
        self._keeper.abort_stopped()

    def hung_for(self) -> float:
        """Return the seconds since the engine's last sign of progress, 0 while it has nothing to do."""
        if not self._flights.unfinished():
            return 0.0
        return time.monotonic() - max(self._engine.last_progress(), self._claims.busy_since)
