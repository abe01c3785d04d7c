"""The engine worker: claims batches, runs them on its engine, hands each outcome to the settler as it comes.

Several batches are in flight on the one engine: the next fills it while the last one's tail drains. The worker ends in
one of three ways: drained (its unfinished batches are returned), failed (they are crashed, exit 70), or killed (its
next incarnation, or the sweeper, gives them back).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NoReturn

import sqlalchemy as sa
import structlog

from models import batches, cohorts, engines
from models.db import Database
from models.ends import Settled
from models.engines import Incarnation
from models.errors import DatabaseUnavailable
from stoker.settings import LANES, Settings
from tasks import metrics, outcomes
from tasks.doorbell import Doorbell
from tasks.engines.base import Engine, EngineFailure, reserved
from tasks.lease import Keeper
from tasks.outage import sit_out
from tasks.settler import Settler

log = structlog.get_logger(__name__)

EXIT_FAILED = 70


@dataclass(slots=True)
class Flight:
    """A batch in flight: the jobs of it that have no outcome yet."""

    batch: batches.Claimed
    unfinished: dict[str, int]
    stop: threading.Event = field(default_factory=threading.Event)
    lost: bool = False


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
        self._flights: dict[str, Flight] = {}
        self._lock = threading.Lock()
        self._claiming = threading.Lock()
        self._closing = threading.Event()
        self._failing = threading.Lock()
        self._drainer = threading.Thread(target=self._drain, name="drain", daemon=True)
        self._busy_since = time.monotonic()
        self.reserve = reserved(engine.slots, settings.realtime_reserve)
        self._settler = Settler(database, mine.engine, self._stored, self.fail)
        self._keeper = Keeper(database, settings, mine, self)

    # The life of the process

    def open(self) -> None:
        """Open the engine for work and start the heartbeat."""
        names = [model.name for model in self._engine.models]
        with self._database.transaction() as tx:
            for model in self._engine.models:
                engines.remember(tx, model.name, model.max_model_len, model.tokenizer)
            named = engines.go_live(tx, self._mine, self._engine.slots, self.reserve, names)
        if not named:
            self.fail("another process has taken this engine's name")
        self._keeper.start()
        self._ring_collector()

    def drain(self) -> None:
        """Take no more work; give running jobs `drain_timeout` to finish, then return what is left."""
        if not self._closing.is_set():
            self._closing.set()
            self._drainer.start()

    def _drain(self) -> None:
        self._leave("draining")
        until = time.monotonic() + self._settings.drain_timeout
        while self._flights and time.monotonic() < until:
            time.sleep(0.05)
        for flight in self._copy():
            flight.stop.set()

    def close(self) -> None:
        """End after a drain: nothing is in flight any more."""
        if self._drainer.is_alive():
            self._drainer.join()
        self._keeper.stop()
        self._leave("gone")
        self._engine.close()

    def _leave(self, state: str) -> None:
        try:
            with self._database.transaction() as tx:
                engines.leave(tx, self._mine, state)
        except DatabaseUnavailable as error:
            # Silence says the same, after `engine_gone_after`.
            log.warning("could not say that the engine is leaving", state=state, error=str(error))

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
        while (flight := self._claim()) is not None:
            # Rings for several batches that were cut at once are one: this thread, which is busy now, wakes the next.
            self._doorbell.engine(self._mine.engine)
            self._ring_collector()
            try:
                self._run(flight)
            except EngineFailure as error:
                self.fail(str(error))
        self._ring_collector()

    def _claim(self) -> Flight | None:
        with self._claiming:
            ranks = self._ranks()
            if not ranks or self._closing.is_set():
                return None
            with self._database.reading() as tx:
                # Most doorbells come for nothing: only looking takes no lock.
                if not batches.claimable(tx, self._mine.engine):
                    return None
            idle = not self._flights
            lease = self._settings.lease
            try:
                batch = self._database.retrying(lambda tx: batches.claim(tx, self._mine, ranks, lease, idle=idle))
            except DatabaseUnavailable:
                self._return_unknown()
                raise
            if batch is None:
                return None
            flight = Flight(batch, dict.fromkeys((job.id for job in batch.jobs), 0))
            with self._lock:
                if idle:
                    self._busy_since = time.monotonic()
                self._flights[batch.id] = flight
            return flight

    def _return_unknown(self) -> None:
        """Give back a batch whose claim may have been committed without our knowing; tries until that is known.

        Left alone its lease would run out, and with it all batches of this incarnation would count as lost.
        """
        held = list(self._flights)
        mine = (batches.table.c.incarnation == self._mine.id, batches.table.c.state == sa.literal("running"))
        if not self._closing.is_set():
            sit_out(
                lambda: self._database.retrying(
                    lambda tx: batches.give_back(tx, *mine, batches.table.c.id.not_in(held))
                ),
                "a claim waits for the database",
                given_up=self._closing,
            )

    def _ranks(self) -> list[int]:
        """Return the lanes that may be claimed for now: none beside a cohort, realtime alone when enough wait."""
        flights = self._copy()
        if any(flight.batch.cohort for flight in flights):
            return []
        unfinished = sum(len(flight.unfinished) for flight in flights)
        # A little more than fits: whoever leaves the engine finds the next one waiting at its gate, which alone keeps
        # the reserve free. Claimed only when there is room, a slot stood empty for as long as a claim takes.
        free = unfinished < self._engine.slots + self.reserve
        return list(range(len(LANES))) if free or not flights else [0]

    def _run(self, flight: Flight) -> None:
        batch = flight.batch
        metrics.executions.inc(len(batch.jobs))
        deferrals = {job.id: job.deferrals for job in batch.jobs}
        try:
            for outcome in self._engine.generate(outcomes.requests(batch, self._settings), flight.stop):
                if not flight.lost and flight.unfinished.pop(outcome.id, None) is not None:
                    self._settler.put(batch.id, outcomes.settled(outcome, deferrals[outcome.id], self._settings))
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

        def work(tx: sa.Connection) -> str:
            if batches.finish(tx, batch_id):
                return "finished"
            mine = (batches.table.c.id == batch_id, batches.table.c.incarnation == self._mine.id)
            running = batches.table.c.state == sa.literal("running")
            return "returned" if batches.give_back(tx, *mine, running) else "lost"

        ended = sit_out(
            lambda: self._database.retrying(work), "the end of a batch waits for the database", batch=batch_id
        )
        metrics.batches_ended.labels(ended).inc()
        with self._lock:
            self._flights.pop(batch_id, None)
        for bulk_id in {job.bulk_id for job in flight.batch.jobs if job.bulk_id}:
            self._doorbell.bulk(bulk_id)  # it may be its last line, or one failed too many

    def _stored(self, stored: Sequence[Settled]) -> None:
        """Tell of what was committed, and use the slots that it freed."""
        for outcome in stored:
            metrics.jobs_settled.labels(outcome.state).inc()
            if outcome.result is not None:
                metrics.tokens.labels("prompt").inc(outcome.result.prompt_tokens)
                metrics.tokens.labels("completion").inc(outcome.result.completion_tokens)
        if stored:
            self._doorbell.ended([outcome.job_id for outcome in stored])
            self._doorbell.deliver()
        if len(self._ranks()) > 1:
            self._doorbell.engine(self._mine.engine)

    def _ring_collector(self) -> None:
        for model in self._engine.models:
            self._doorbell.collector(model.name)

    # What the heartbeat needs (tasks/lease.py: Held)

    def _copy(self) -> list[Flight]:
        with self._lock:
            return list(self._flights.values())

    def in_flight(self) -> Mapping[str, Sequence[str]]:
        """Return the ids of the unfinished jobs of each batch."""
        return {flight.batch.id: list(flight.unfinished) for flight in self._copy()}

    def lose(self, batch_ids: Sequence[str]) -> None:
        """Stop batches that are no longer ours; nothing of them counts any more."""
        for flight in self._copy():
            if flight.batch.id in batch_ids and flight.unfinished:
                log.warning("lost the lease of a batch", batch=flight.batch.id, unfinished=len(flight.unfinished))
                flight.lost = True
                flight.stop.set()

    def abort(self, job_ids: Sequence[str]) -> None:
        """Abort jobs that have ended by other hands (cancelled, expired)."""
        for flight in self._copy():
            for job_id in job_ids:
                flight.unfinished.pop(job_id, None)
        self._engine.abort(job_ids)

    def hung_for(self) -> float:
        """Return the seconds since the engine's last sign of progress, 0 while it has nothing to do."""
        if not any(flight.unfinished for flight in self._copy()):
            return 0.0
        return time.monotonic() - max(self._engine.last_progress(), self._busy_since)
