"""Webhooks: send the deliveries that are due, and record how each try ended.

So many requests at once, so many to one host, each with its own time limit; as one ends another is claimed, and hosts
take turns: a receiver that hangs costs its own places and nobody else's. A crash at any line leaves claims that run
out: those deliveries are sent again, with the same id and the same bytes.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import sqlalchemy as sa
import structlog
from celery import signals

from models import endpoint_health, events, sending
from models.db import Database
from models.endpoint_health import News
from models.errors import DatabaseUnavailable
from models.failpoints import failpoint
from models.owed import Due, is_test
from models.sealing import seal_of
from models.sending import Delivery, Try
from stoker.settings import Settings
from tasks import backoff, egress, metrics, tracing
from tasks.app import app, context
from tasks.lineup import Busy, Lineup
from tasks.parcels import SLACK, Outcome, Parcel, Post

log = structlog.get_logger(__name__)

_AGAIN = 0.005
"""Seconds before a look that most likely finds nothing."""

_stopping = threading.Event()
_alone = threading.Lock()


class Bell:
    """Tells a sender that more is due: rung by any thread, heard by the one sender that listens."""

    def __init__(self) -> None:
        """Begin unrung."""
        self._lock = threading.Lock()
        self._rung = False
        self._wake: Callable[[], object] | None = None

    def ring(self) -> None:
        """Say that something is due."""
        with self._lock:
            self._rung = True
            if self._wake is not None:
                self._wake()

    @property
    def rung(self) -> bool:
        """Tell whether it was rung since it was last answered."""
        return self._rung

    def answer(self) -> bool:
        """Tell whether it was rung, and begin anew."""
        with self._lock:
            rung, self._rung = self._rung, False
            return rung

    @contextmanager
    def heard(self, wake: Callable[[], object]) -> Iterator[None]:
        """Call `wake` at each ring inside."""
        with self._lock:
            self._wake = wake
        try:
            yield
        finally:
            with self._lock:
                self._wake = None


_bell = Bell()


@app.task(name="tasks.webhook.deliver")
def deliver() -> None:
    """Send the deliveries that are due, until none is; where this process does so already, tell it of more."""
    here = context()
    _bell.ring()
    # Asked again once the lock is free: whoever rang before was not heard any more.
    while _bell.rung and not _stopping.is_set() and _alone.acquire(blocking=False):
        try:
            deliver_due(here.database, here.settings, bell=_bell, lineup=_lineup_of(*_limits(here.settings)))
        finally:
            _alone.release()


def _limits(settings: Settings) -> tuple[int, int]:
    return settings.webhook_per_host, settings.webhook_at_once


@functools.cache
def _lineup_of(per_host: int, at_once: int) -> Lineup:
    """Return this process's: a run goes on where the one before it was among the hosts."""
    return Lineup(per_host, at_once)


@signals.worker_shutting_down.connect
def stop(**_: object) -> None:
    """Let every sender of this process finish what is on its way, and claim no more: it shuts down."""
    _stopping.set()


def deliver_due(
    database: Database,
    settings: Settings,
    *,
    look: egress.Lookup = egress.lookup,
    stopping: threading.Event = _stopping,
    bell: Bell | None = None,
    lineup: Lineup | None = None,
) -> int:
    """Send the deliveries that are due, until none is; return the number of tries made. Any number may run at once.

    `look` resolves names; `lineup` is used by nobody else meanwhile. Raises DatabaseUnavailable when the database stays
    away; claims then run out by themselves.
    """
    return asyncio.run(
        _Sender(database, settings, stopping, bell or Bell(), lineup or Lineup(*_limits(settings))).run(look)
    )


class _Sender:
    """One run: keeps requests on their way until nothing is due."""

    def __init__(
        self, database: Database, settings: Settings, stopping: threading.Event, bell: Bell, lineup: Lineup
    ) -> None:
        self._database = database
        self._settings = settings
        self._stopping = stopping
        self._bell = bell
        self._seal = seal_of(settings)
        self._lineup = lineup
        self._on_way: dict[asyncio.Task[list[Outcome]], Parcel] = {}
        self._fault: BaseException | None = None

    async def run(self, look: egress.Lookup) -> int:
        """Send until nothing is due; return the number of tries."""
        rung, loop = asyncio.Event(), asyncio.get_running_loop()
        ways, at_once = self._settings.webhook_port_ranges, self._settings.webhook_at_once
        opened = egress.opened(self._settings.webhook_networks, look, ports=ways, at_once=at_once)
        with self._bell.heard(lambda: loop.call_soon_threadsafe(rung.set)):
            async with opened as way:
                try:
                    tries = await self._work(Post(self._settings, self._seal, way), rung)
                finally:
                    # What a fault leaves on its way is cancelled, and its end seen by nobody.
                    metrics.webhooks_in_flight.dec(len(self._on_way))
        if self._fault is not None:
            raise self._fault
        return tries

    async def _work(self, post: Post, rung: asyncio.Event) -> int:
        tries = 0
        ended: list[Outcome] = []
        while True:
            rung.clear()
            room = 0 if self._stopping.is_set() else self._settings.webhook_at_once - len(self._on_way)
            firsts = [parcel.first for parcel in self._on_way.values()]
            busy = Busy(Counter(one.host for one in firsts), Counter(one.owner for one in firsts))
            parcels, done = await asyncio.to_thread(self._turn, ended, room, busy)
            for parcel in parcels:
                self._on_way[asyncio.create_task(post.send(parcel))] = parcel
                metrics.webhooks_in_flight.inc()
                metrics.webhook_events.observe(len(parcel.deliveries))
                tries += len(parcel.deliveries)
            if done and not self._on_way:
                return tries
            ended = await self._wait(post, rung)

    async def _wait(self, post: Post, rung: asyncio.Event) -> list[Outcome]:
        """Wait until a request has ended, or for a ring, or until it is time to look again."""
        if not self._on_way:
            # What was found was taken by others, or the last one has ended: one look more, but not in haste.
            await asyncio.sleep(_AGAIN)
            return []
        ring = asyncio.ensure_future(rung.wait())
        done, _ = await asyncio.wait(
            {*self._on_way, ring}, timeout=self._lineup.pause, return_when=asyncio.FIRST_COMPLETED
        )
        ring.cancel()
        return [one for task in list(self._on_way) if task in done for one in self._collect(post, task)]

    def _collect(self, post: Post, task: asyncio.Task[list[Outcome]]) -> list[Outcome]:
        parcel = self._on_way.pop(task)
        metrics.webhooks_in_flight.dec()
        error = task.exception()
        if error is None:
            return task.result()
        # Our own fault. It is recorded as a failed try, so that the others go on and this one does not come back at
        # once, again and again; `run` raises it in the end.
        self._fault = error
        log.error("delivery hit a fault", delivery=parcel.first.id, error=type(error).__name__)
        tried = Try(ok=False, status=None, latency=0.0, error=f"internal error: {type(error).__name__}")
        return [post.failed(parcel.deliveries, tried, tells=False)]

    def _turn(self, ended: Sequence[Outcome], room: int, busy: Busy) -> tuple[list[Parcel], bool]:
        """Record what ended and claim as much as there is room for, in one commit; again while the database is away.

        Returns what was claimed, and whether nothing more was found.
        """
        gives_up = time.monotonic() + SLACK
        for attempt in itertools.count(1):
            try:
                return self._record_and_claim(ended, room, busy)
            except DatabaseUnavailable:
                if time.monotonic() > gives_up:
                    raise
            time.sleep(backoff.delay(attempt, jitter=random.random(), base=0.1, most=2.0))  # noqa: S311  # no secret
        raise AssertionError  # the loop returns or raises

    def _record_and_claim(self, ended: Sequence[Outcome], room: int, busy: Busy) -> tuple[list[Parcel], bool]:
        chosen = self._choose(room, busy) if room else []
        if not ended and not chosen:
            return [], not room or self._lineup.saw_all
        claimed_at = time.monotonic()
        lost, claimed, disabled = self._database.retrying(lambda tx: self._commit(tx, ended, chosen))
        _tell(ended, lost, disabled)
        if not claimed:
            # Others may have taken what was chosen; and what was recorded may be due again at once.
            return [], False
        failpoint("webhook.claimed")
        with self._database.reading() as tx:
            ends = events.endings(tx, [one for parcel in claimed for one in parcel], traced=tracing.wanted())
        return [Parcel(parcel, ends, claimed_at) for parcel in claimed], False

    def _choose(self, room: int, busy: Busy) -> list[Due]:
        if self._lineup.wants_look(room, busy, rung=self._bell.answer()):
            with self._database.reading() as tx:
                self._lineup.look(tx, busy)
        return self._lineup.take(room, busy)

    def _commit(
        self, tx: sa.Connection, ended: Sequence[Outcome], chosen: Sequence[Due]
    ) -> tuple[set[str], list[tuple[Delivery, ...]], dict[str, str]]:
        told = [one for outcome in ended for one in outcome.ended()]
        stored = sending.record(tx, told)
        disabled = endpoint_health.tell(tx, _news(ended, stored), self._settings.webhook_disable_days)
        claimed = sending.claim(tx, chosen, self._settings.webhook_timeout + SLACK) if chosen else []
        return {one.delivery.id for one in told} - stored, claimed, disabled


def _news(ended: Sequence[Outcome], stored: set[str]) -> News:
    """Return what tries say of endpoints: those that are recorded, and that nobody asked for to see what happens."""
    found: dict[str, set[endpoint_health.Tried]] = {"worked": set(), "failed": set(), "gone": set()}
    for outcome in ended:
        one = outcome.deliveries[0]
        if outcome.tells and one.endpoint_id and one.id in stored and not is_test(one.job_id):
            kind = {"delivered": "worked", "gone": "gone"}.get(outcome.label, "failed")
            found[kind].add((one.endpoint_id, one.url))
    return News(*map(frozenset, found.values()))


def _tell(ended: Sequence[Outcome], lost: set[str], disabled: dict[str, str]) -> None:
    for outcome in ended:
        for one in outcome.deliveries:
            metrics.deliveries.labels("lost" if one.id in lost else outcome.label).inc()
    for endpoint, why in disabled.items():
        metrics.endpoints_disabled.inc()
        log.warning("a webhook endpoint is disabled", endpoint=endpoint, why=why)
