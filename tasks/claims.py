"""Which batch an engine takes next: the best that lies READY, or realtime jobs that it cuts and claims in one go."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from typing import TypeVar

import sqlalchemy as sa

from models import batches, cohorts, queue
from models.db import Database
from models.engines import Incarnation
from models.errors import DatabaseUnavailable
from models.failpoints import failpoint
from stoker.settings import LANES, Settings
from tasks import batching, collector, metrics
from tasks.engines.base import Engine, reserved
from tasks.flights import Flight, Flights, clock
from tasks.outage import sit_out

T = TypeVar("T")


class Claims:
    """Claims batches for one engine, one at a time. Every method may be called from any thread."""

    def __init__(
        self,
        database: Database,
        settings: Settings,
        engine: Engine,
        mine: Incarnation,
        flights: Flights,
        closing: threading.Event,
    ) -> None:
        self._database = database
        self._settings = settings
        self._engine = engine
        self._mine = mine
        self._flights = flights
        self._closing = closing
        self._claiming = threading.Lock()
        self._turned_away = False
        self._passed_over: dict[str, None] = {}
        self._began = 0.0
        self.busy_since = time.monotonic()

    def reserve(self) -> int:
        """Return how many of the engine's slots are kept for realtime."""
        return reserved(self._engine.slots, self._settings.realtime_reserve)

    def best(self) -> Flight | None:
        """Claim the best READY batch; None when there is none that this engine has room for."""
        with self._claiming:
            ranks = self._ranks()
            if not ranks:
                return None
            with self._database.reading() as tx:
                # Most doorbells come for nothing: only looking takes no lock.
                if not batches.claimable(tx, self._mine.engine):
                    return None
            idle = not self._flights
            batch = self._claim(ranks, idle=idle)
            if batch is None and not idle:
                # A cohort, it may be, that waits until nothing else runs here. Noted before it is looked again: what
                # ends meanwhile either finds the note or has gone.
                self._turned_away = True
                batch = None if self._flights else self._claim(ranks, idle=True)
            return None if batch is None else self._take_off(batch)

    def _claim(self, ranks: Sequence[int], *, idle: bool) -> batches.Claimed | None:
        return self._try(lambda tx: batches.claim(tx, self._mine, ranks, self._settings.lease, idle=idle))

    def realtime(self, model: str) -> tuple[Flight | None, bool]:
        """Cut a realtime batch of a model's queue and claim it, in one transaction: a person waits.

        Returns it, and whether more are queued. What finds no room is remembered for `passed_over`.
        """
        waits = True

        def work(tx: sa.Connection) -> tuple[batches.Cut, batches.Claimed | None] | None:
            nonlocal waits
            waiting = queue.waiting(tx, model)
            waits = "realtime" in waiting
            room = self._room(model, waiting) if waits else 0
            # What a cohort is waiting for goes to nobody else, or it would wait for ever.
            if room < 1 or self._mine.engine in cohorts.busy_engines(tx):
                return None
            made = collector.cut_realtime(tx, self._settings, model, room, waiting)
            if made is None:
                return None
            batch_id, cut = made
            return cut, batches.claim_one(tx, self._mine, batch_id, self._settings.lease)

        with self._claiming:
            # Noted before the look: room that comes while it is looked is not missed.
            self._passed_over[model] = None
            made = self._try(work) if self._ranks() else None
            if made is not None or not waits:
                self._passed_over.pop(model, None)
            if made is None:
                return None, False
            cut, batch = made
            metrics.batches_cut.labels(model, cut.lane, cut.reason).inc()
            metrics.batch_size.labels(model, cut.lane).observe(len(cut.ids))
            flight = None if batch is None else self._take_off(batch)
            return flight, cut.reason != "waited"

    def _room(self, model: str, waiting: Sequence[str]) -> int:
        """Return how many more realtime jobs of a model the engine has room for, beside the lanes that wait."""
        own = {served.name: served.slots for served in self._engine.models}
        if model not in own:
            return 0
        slots = own[model]
        taken = self._flights.by_lane(None if slots is None else model)
        share = batching.below([*waiting, *taken], self._settings.lanes)
        most = self._engine.slots if slots is None else slots
        return batching.most_realtime(most, self._settings.ready_backlog, share) - taken["realtime"]

    def passed_over(self) -> list[str]:
        """Return the models whose realtime jobs found no room, once each."""
        passed = list(self._passed_over)
        for model in passed:
            self._passed_over.pop(model, None)
        return passed

    def close(self) -> None:
        """Wait for a claim that is under way; no other follows once the worker is closing."""
        with self._claiming:
            pass

    def wanted_room(self) -> bool:
        """Tell, once, that there is room again after some claim found none."""
        # Whoever was not turned away is not rung for: each ring is a message.
        if not self._turned_away or len(self._ranks()) < len(LANES):
            return False
        self._turned_away = False
        return True

    def _try(self, work: Callable[[sa.Connection], T]) -> T:
        self._began = clock()
        try:
            return self._database.retrying(work)
        except DatabaseUnavailable:
            self._return_unknown()
            raise

    def _take_off(self, batch: batches.Claimed) -> Flight:
        failpoint("worker.claimed")
        if not self._flights:
            self.busy_since = time.monotonic()
        return self._flights.add(batch, self._began)

    def _ranks(self) -> list[int]:
        """Return the lanes that may be claimed for now: none beside a cohort, realtime alone when enough wait."""
        if self._closing.is_set():
            return []
        flights = self._flights.all()
        most = self._settings.batches_in_flight
        if any(flight.batch.cohort for flight in flights) or (most is not None and len(flights) >= most):
            self._turned_away = True
            return []
        # A little more than fits: whoever leaves the engine finds the next one waiting at its gate, which alone keeps
        # the reserve free. Claimed only when there is room, a slot stood empty for as long as a claim takes.
        if not flights or self._flights.unfinished() < self._engine.slots + self.reserve() or self._owes_lower_lanes():
            return list(range(len(LANES)))
        self._turned_away = True
        return [0]

    def _owes_lower_lanes(self) -> bool:
        """Tell whether less of the lower lanes is here than their share of the slots, however much realtime is."""
        below = self._flights.by_lane()
        del below["realtime"]
        return below.total() < reserved(self._engine.slots, batching.below(LANES, self._settings.lanes))

    def _return_unknown(self) -> None:
        """Give back a batch whose claim may have been committed without our knowing; tries until that is known.

        Left alone its lease would run out, and with it all batches of this incarnation would count as lost.
        """
        held = list(self._flights.jobs())
        mine = (batches.table.c.incarnation == self._mine.id, batches.table.c.state == sa.literal("running"))
        if not self._closing.is_set():
            sit_out(
                lambda: self._database.retrying(
                    lambda tx: batches.give_back(tx, *mine, batches.table.c.id.not_in(held))
                ),
                "a claim waits for the database",
                given_up=self._closing,
            )
