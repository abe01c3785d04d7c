"""The doorbell: tells of new jobs, bulks that changed, and deliveries. The only file of the web side that knows Celery.

A ring is lost without harm, since the sweeper rings again. So it never holds a request up: `ring` puts a call into a
set, and one thread a process sends what is in it, at most every 20 ms, however slow the broker is.
"""

from __future__ import annotations

import os
import threading
import time
from typing import NamedTuple

import structlog
from celery import Celery
from kombu.exceptions import OperationalError

from stoker.settings import Settings
from webapi import metrics

log = structlog.get_logger("stoker.web")

EVERY = 0.02
MOST_PENDING = 10_000
FIRST_PAUSE, LONGEST_PAUSE = 0.2, 3.0
EXPIRES = 60.0
"""Seconds that RabbitMQ keeps a ring that nobody takes, by its own clock. Redis keeps it."""
QUIET = 30.0
"""Seconds between two log lines about a broker that is away."""


class _Ring(NamedTuple):
    task: str
    queue: str
    arguments: tuple[str, ...]


class Doorbell:
    """Rings from a thread of its own, which starts with the first ring of each process."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._pid = 0
        self._closed = False
        self._complained_at = -QUIET
        self._start_lock = threading.Lock()

    def ring(self, model: str, lane: str) -> None:
        """Ask for a look at a model's lane, soon; never waits and never fails."""
        self._ring(_Ring("tasks.collector.collect", "collector", (model, lane)))

    def ring_bulk(self, bulk_id: str) -> None:
        """Ask for a look at a bulk, soon; never waits and never fails."""
        self._ring(_Ring("tasks.bulks.tend", "bulk", (bulk_id,)))

    def ring_deliver(self) -> None:
        """Ask for what is due to be delivered, soon; never waits and never fails."""
        self._ring(_Ring("tasks.webhook.deliver", "default", ()))

    def _ring(self, ring: _Ring) -> None:
        if self._pid != os.getpid() and not self._start():
            return
        with self._lock:
            if len(self._pending) < MOST_PENDING:
                self._pending[ring] = None
        self._rung.set()

    def close(self) -> None:
        """Ring no more, and let the thread end."""
        self._closed = True
        if self._pid == os.getpid():
            self._rung.set()

    def _start(self) -> bool:
        with self._start_lock:
            if self._pid == os.getpid():
                return True
            # Nothing of a parent's is used after a fork: neither its lock nor its connections.
            self._lock = threading.Lock()
            self._pending: dict[_Ring, None] = {}
            self._rung = threading.Event()
            try:
                threading.Thread(target=self._run, name="doorbell", daemon=True).start()
            except RuntimeError as error:  # no thread to be had; the next ring tries again
                self._failed(error)
                return False
            self._pid = os.getpid()
            return True

    def _run(self) -> None:
        celery = _celery(self._settings)
        pause = FIRST_PAUSE
        while True:
            self._rung.wait()
            if self._closed:
                break
            self._rung.clear()
            if self._send_all(celery):
                pause = FIRST_PAUSE
                time.sleep(EVERY)
            else:
                self._rung.set()
                time.sleep(pause)
                pause = min(pause * 2, LONGEST_PAUSE)
        celery.close()

    def _send_all(self, celery: Celery) -> bool:
        with self._lock:
            rings, self._pending = list(self._pending), {}
        for at, (task, queue, arguments) in enumerate(rings):
            try:
                celery.send_task(
                    task, args=list(arguments), queue=queue, ignore_result=True, retry=False, expiration=EXPIRES
                )
            except (OperationalError, OSError) as error:
                self._failed(error)
                with self._lock:
                    self._pending = dict.fromkeys(rings[at:]) | self._pending
                return False
            except Exception as error:  # noqa: BLE001  # it would end the thread, and with it every later ring
                self._failed(error)  # not kept: it may be this ring that cannot be sent
        return True

    def _failed(self, error: Exception) -> None:
        metrics.DOORBELL_FAILURES.inc()
        if time.monotonic() - self._complained_at >= QUIET:
            self._complained_at = time.monotonic()
            log.warning("doorbell not sent", kind=type(error).__name__, note="the sweeper rings again")


def _celery(settings: Settings) -> Celery:
    celery = Celery("stoker-web", broker=settings.broker, set_as_current=False)
    celery.conf.update(
        task_ignore_result=True,
        task_serializer="json",
        broker_connection_timeout=1,
        broker_transport_options=settings.hasty_broker_options,
        task_default_delivery_mode="transient",
    )
    return celery
