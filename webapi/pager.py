"""Tells engines at once of what cannot wait for a Celery message: realtime jobs, and jobs that nobody wants any more.

Like the doorbell it never holds a request up and never fails one. Where no engine hears of a realtime job, the
collector is rung for.
"""

from __future__ import annotations

import os
import threading

import redis
import structlog
from redis.backoff import NoBackoff
from redis.retry import Retry

from models import streams
from stoker.settings import Settings
from webapi import metrics
from webapi.doorbell import Doorbell

log = structlog.get_logger("stoker.web")

MOST_PENDING = 10_000


class Pager:
    """Publishes from a thread of its own, which starts with the first page of each process."""

    def __init__(self, settings: Settings, doorbell: Doorbell) -> None:
        self._url = settings.redis_client_url
        self._doorbell = doorbell
        self._pid = 0
        self._closed = False
        self._start_lock = threading.Lock()

    def realtime(self, model: str) -> None:
        """Ask an engine that serves a model to take its realtime jobs, now."""
        if not self._page(model, ""):
            self._doorbell.ring(model, "realtime")

    def stopped(self, job_id: str) -> None:
        """Tell that a job was ended from here, so that its engine lets go of it at once."""
        self._page("", job_id)

    def close(self) -> None:
        """Page no more, and let the thread end."""
        self._closed = True
        if self._pid == os.getpid():
            self._paged.set()

    def _page(self, model: str, job_id: str) -> bool:
        if self._pid != os.getpid() and not self._start():
            return False
        with self._lock:
            if len(self._models) + len(self._stopped) >= MOST_PENDING:
                return False
            if model:
                self._models[model] = None
            if job_id:
                self._stopped[job_id] = None
        self._paged.set()
        return True

    def _start(self) -> bool:
        with self._start_lock:
            if self._pid == os.getpid():
                return True
            # Nothing of a parent's is used after a fork: neither its lock nor its connections.
            self._lock = threading.Lock()
            self._models: dict[str, None] = {}
            self._stopped: dict[str, None] = {}
            self._paged = threading.Event()
            self._heard: dict[str, int] = {}
            # Once more at once, for a connection that has died unseen: the doorbell is the other way.
            once_more = Retry(NoBackoff(), 1)
            self._redis = redis.Redis.from_url(self._url, socket_timeout=1, socket_connect_timeout=1, retry=once_more)
            try:
                threading.Thread(target=self._run, name="pager", daemon=True).start()
            except RuntimeError:
                log.warning("no thread to page engines", note="the collector is rung for instead")
                return False
            self._pid = os.getpid()
            return True

    def _run(self) -> None:
        while True:
            self._paged.wait()
            if self._closed:
                break
            self._paged.clear()
            with self._lock:
                models, self._models = list(self._models), {}
                stopped, self._stopped = list(self._stopped), {}
            self._send(models, stopped)
        self._redis.close()

    def _send(self, models: list[str], stopped: list[str]) -> None:
        try:
            for model in models:
                # How many heard the last one tells each whether there is another that may be less busy.
                heard = int(self._redis.publish(streams.realtime(model), str(self._heard.get(model, 1))))
                self._heard[model] = heard
                if not heard:
                    self._doorbell.ring(model, "realtime")
            if stopped:
                self._redis.publish(streams.STOPPED, ",".join(stopped))
        except (redis.RedisError, OSError) as error:
            metrics.DOORBELL_FAILURES.inc()
            log.info("engines not paged", kind=type(error).__name__, note="the collector and the sweeper look, too")
            for model in models:
                self._doorbell.ring(model, "realtime")
