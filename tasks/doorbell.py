"""The tasks' side of the doorbell: wake collectors and engines, tell waiting clients which jobs ended.

Threads of their own do it, so that a broker or Redis that is down or hung never holds up the storing of results; two,
since waiting clients need not wait for a broker that is another server. Rings for the same thing within 20 ms are one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from functools import cache, partial

import redis
import structlog
from celery import Celery
from kombu.exceptions import OperationalError
from redis.backoff import NoBackoff
from redis.retry import Retry

from models import streams
from stoker.settings import Settings
from tasks import metrics

log = structlog.get_logger(__name__)

EXPIRES = 300.0
"""Seconds after which a worker drops a ring: by its own clock, from which the sender's may differ by nearly as much."""
_MOST_IDS = 10_000
_MOST_PENDING = 10_000
"""Rings that wait for a slow broker; what is beyond them the sweeper rings for again."""
_PAUSE = 0.02


class Doorbell:
    """Rings in the background, never blocks, never raises."""

    def __init__(self, app: Celery, settings: Settings) -> None:
        """Prepare; the threads start with the first ring."""
        self._app = app
        self._redis = redis.Redis.from_url(
            settings.redis_client_url,
            socket_timeout=1,
            socket_connect_timeout=1,
            retry=Retry(NoBackoff(), 1),  # for a connection that has died unseen
        )
        self._pending: dict[tuple[str, ...], Callable[[], object]] = {}
        self._ended: list[str] = []
        self._wake = threading.Condition()
        self._started = False

    def collector(self, model: str, lane: str | None = None) -> None:
        """Ask a collector to look at a model's queue; with a lane, only a job of that lane is new."""
        self._ring(("collector", model, lane or ""), "tasks.collector.collect", [model, lane], "collector")

    def engine(self, name: str) -> None:
        """Ask an engine's worker to claim what lies READY."""
        self._ring(("engine", name), "tasks.worker.run_batch", [], f"engine.{name}")

    def deliver(self) -> None:
        """Ask for the due deliveries to be sent."""
        self._ring(("deliver",), "tasks.webhook.deliver", [], "default")

    def bulk(self, bulk_id: str) -> None:
        """Ask for a bulk to be tended."""
        self._ring(("bulk", bulk_id), "tasks.bulks.tend", [bulk_id], "bulk")

    def ended(self, ids: Iterable[str]) -> None:
        """Tell whoever waits that these jobs have ended."""
        with self._wake:
            self._ended = [*self._ended, *ids][-_MOST_IDS:]
            self._start()

    def _ring(self, what: tuple[str, ...], task: str, args: list[str | None], queue: str) -> None:
        with self._wake:
            if len(self._pending) >= _MOST_PENDING and what not in self._pending:
                return
            self._pending[what] = lambda: self._app.send_task(
                task, args=args, queue=queue, ignore_result=True, retry=False, expires=EXPIRES
            )
            self._start()

    def _start(self) -> None:
        if not self._started:
            for name, work in (("doorbell", self._ring_all), ("doorbell-ended", self._tell_all)):
                threading.Thread(target=work, name=name, daemon=True).start()
            self._started = True
        self._wake.notify_all()

    def _ring_all(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._pending)
                rings, self._pending = self._pending, {}
            for ring in rings.values():
                if not self._try(ring):
                    break  # the others would each wait as long for the same broker, and the next ones behind them
            time.sleep(_PAUSE)

    def _tell_all(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._ended)
                ended, self._ended = self._ended, []
            self._try(partial(self._redis.publish, streams.ENDED, ",".join(ended)))
            time.sleep(_PAUSE)

    def _try(self, send: Callable[[], object]) -> bool:
        """Send; return whether there was somebody to send to."""
        try:
            send()
        except (OperationalError, redis.RedisError, OSError) as error:
            metrics.rings_failed.inc()
            log.warning("doorbell not heard; the sweeper rings again", error=type(error).__name__)
            return False
        except Exception as error:  # the thread's edge: without it nobody is rung for any more
            metrics.rings_failed.inc()
            log.exception("doorbell not rung; the sweeper rings again", error=type(error).__name__)
        return True


@cache
def _doorbell() -> Doorbell:
    # Imported here since tasks/app.py lists the tasks, which ring.
    from tasks.app import app, context

    return Doorbell(app, context().settings)


def doorbell() -> Doorbell:
    """Return this process's doorbell."""
    return _doorbell()
