"""Requests that wait for a job to end: one hub a process, and nothing held for each but a thread.

Two ways to hear of an end: the ids that workers publish in Redis, at once; and one query a second over all jobs that
are waited for, which is enough without Redis.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import redis
import structlog

from models import views
from models.db import Database
from models.errors import DatabaseUnavailable
from stoker.settings import Settings
from webapi.errors import Problem

log = structlog.get_logger("stoker.web")

CHANNEL = "stoker:ended"
LOOK_EVERY = 1.0
PING_EVERY, DEAF_AFTER = 1.0, 5.0
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 10.0
SPARE = 64
"""Threads of a process that are not for waiting, or half of them where there are few."""


class Waiters:
    """Wakes requests when their job may have ended. `stop` wakes all, for the process is to end."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self._url = settings.redis_client_url
        # However many may wait, some threads are left for those who look or submit.
        self._most = min(settings.max_waiters, settings.web_threads - min(SPARE, settings.web_threads // 2))
        self._database = database
        self._lock = threading.Lock()
        self._waiting: dict[str, set[threading.Event]] = {}
        self._count = 0
        self._pid = 0
        self._to_start: list[Callable[[], None]] = []
        self._anybody = threading.Event()
        self.stopping = False

    @contextmanager
    def registered(self, job_id: str) -> Iterator[threading.Event]:
        """Register for a job's end; the event is set when it may have come. Raises Problem 503 when too many wait."""
        event = threading.Event()
        self._add(job_id, event)
        try:
            yield event
        finally:
            self._remove(job_id, event)

    def stop(self) -> None:
        """Wake everybody and let nobody wait again; takes no lock that a signal's handler could meet."""
        self.stopping = True
        self._anybody.set()
        for events in list(self._waiting.values()):
            for event in list(events):
                event.set()

    def _add(self, job_id: str, event: threading.Event) -> None:
        with self._lock:
            if self._count >= self._most:
                raise _refused(
                    f"This process holds {self._most} waiting requests already (STOKER_MAX_WAITERS, "
                    "STOKER_WEB_THREADS); poll instead."
                )
            self._start()
            self._count += 1
            self._waiting.setdefault(job_id, set()).add(event)
        self._anybody.set()

    def _start(self) -> None:
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._to_start = [self._listen, self._look]
        try:
            while self._to_start:
                work = self._to_start[-1]
                threading.Thread(target=work, name=f"waiters{work.__name__}", daemon=True).start()
                self._to_start.pop()
        except RuntimeError as error:
            log.warning("no thread for those who wait")
            raise _refused("This process can start no more threads at the moment; poll instead.") from error

    def _remove(self, job_id: str, event: threading.Event) -> None:
        with self._lock:
            self._count -= 1
            events = self._waiting[job_id]
            events.discard(event)
            if not events:
                del self._waiting[job_id]
                if not self._waiting:
                    self._anybody.clear()

    def _wake(self, ids: Iterable[str]) -> None:
        with self._lock:
            for job_id in ids:
                for event in self._waiting.get(job_id, ()):
                    event.set()

    def _look(self) -> None:
        while True:
            self._anybody.wait()
            if self.stopping:
                return
            time.sleep(LOOK_EVERY)
            with self._lock:
                ids = list(self._waiting)
            if not ids:
                continue
            try:
                with self._database.reading() as tx:
                    ended = views.ended(tx, ids)
            except DatabaseUnavailable as error:
                log.warning("cannot look for ended jobs", reason=str(error))
                continue
            self._wake(ended)

    def _listen(self) -> None:
        pause = FIRST_PAUSE
        while not self.stopping:
            started = time.monotonic()
            try:
                self._hear()
            except (redis.RedisError, OSError) as error:
                log.info("not subscribed to ended jobs", kind=type(error).__name__)
            pause = FIRST_PAUSE if time.monotonic() - started > LONGEST_PAUSE else min(pause * 2, LONGEST_PAUSE)
            time.sleep(pause)

    def _hear(self) -> None:
        client = redis.Redis.from_url(
            self._url, socket_timeout=2, socket_connect_timeout=1, socket_keepalive=True, health_check_interval=5
        )
        with client, client.pubsub(ignore_subscribe_messages=True) as channel:  # type: ignore[no-untyped-call]
            channel.subscribe(CHANNEL)
            heard = time.monotonic()
            while not self.stopping and time.monotonic() - heard < DEAF_AFTER:
                message = channel.get_message(timeout=PING_EVERY)
                if message is None:
                    channel.ping()
                    continue
                heard = time.monotonic()
                if message["type"] == "message":
                    self._wake(message["data"].decode(errors="replace").split(","))


def _refused(why: str) -> Problem:
    return Problem(503, "too_many_waiters", why, headers={"Retry-After": "1"})
