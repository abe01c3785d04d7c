"""Listens for what cannot wait for a Celery message: realtime jobs, and jobs that nobody wants any more.

What is heard is only a hint, as a doorbell is: the database says what there is to do. Without Redis the collector and
the heartbeat do the same a little later.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection
from typing import Any, Protocol

import redis
import structlog
from redis.backoff import NoBackoff
from redis.retry import Retry

from models import streams
from models.errors import DatabaseUnavailable
from stoker.settings import Settings

log = structlog.get_logger(__name__)

PING_EVERY, DEAF_AFTER = 1.0, 5.0
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 5.0
YIELD = 0.02
"""Seconds that a full engine lets others go first with a realtime job that they have heard of as well."""


class Hearer(Protocol):
    """Who acts on what is heard: a worker."""

    def model_names(self) -> Collection[str]:
        """Return the models that the engine serves at the moment."""
        ...

    def serve(self, model: str) -> None:
        """Take the realtime jobs that are queued for a model, as far as there is room."""
        ...

    def load(self) -> float:
        """Return which part of the engine's places is taken, 1 at most."""
        ...

    def look_for_stopped(self) -> None:
        """Abort what runs here and has ended by other hands."""
        ...


class Ears:
    """A thread that listens for one worker."""

    def __init__(self, settings: Settings, hearer: Hearer) -> None:
        """Prepare; `start` starts the thread."""
        self._url = settings.redis_client_url
        self._hearer = hearer
        self._stop = threading.Event()
        self._news = threading.Condition()
        self._said: dict[str, bytes] = {}
        # Two: what is done about a word may take long, and what was said meanwhile is then one word.
        self._thread = threading.Thread(target=self._work, name="ears", daemon=True)
        self._actor = threading.Thread(target=self._act, name="ears-act", daemon=True)

    def start(self) -> None:
        """Begin to listen."""
        self._actor.start()
        self._thread.start()

    def stop(self) -> None:
        """Listen no more; does not wait."""
        self._stop.set()
        with self._news:
            self._news.notify()

    def _work(self) -> None:
        pause = FIRST_PAUSE
        while not self._stop.is_set():
            started = time.monotonic()
            try:
                self._listen()
            except (redis.RedisError, OSError) as error:
                log.info("not listening for realtime jobs", kind=type(error).__name__)
            except Exception as error:  # the thread's edge: deaf for good it would cost every later job its time
                log.exception("not listening for realtime jobs", error=type(error).__name__)
            pause = FIRST_PAUSE if time.monotonic() - started > LONGEST_PAUSE else min(pause * 2, LONGEST_PAUSE)
            self._stop.wait(pause)

    def _listen(self) -> None:
        client = redis.Redis.from_url(
            self._url,
            socket_timeout=2,
            socket_connect_timeout=1,
            socket_keepalive=True,
            health_check_interval=5,
            retry=Retry(NoBackoff(), 0),  # a new subscription asks what was missed, one mended unseen does not
        )
        with client, client.pubsub(ignore_subscribe_messages=True) as channel:  # type: ignore[no-untyped-call]
            subscribed = {streams.STOPPED}
            channel.subscribe(streams.STOPPED)
            heard = time.monotonic()
            while not self._stop.is_set() and time.monotonic() - heard < DEAF_AFTER:
                wanted = {streams.STOPPED, *map(streams.realtime, self._hearer.model_names())}
                self._change(channel, subscribed, wanted)
                subscribed = wanted
                message = channel.get_message(timeout=PING_EVERY)
                if message is None:
                    channel.ping()
                    continue
                heard = time.monotonic()
                if message["type"] == "message":
                    self._hear(message["channel"].decode(errors="replace"), message["data"])

    def _change(self, channel: Any, subscribed: set[str], wanted: set[str]) -> None:
        if new := wanted - subscribed:
            channel.subscribe(*new)
            # What was said before is not heard any more.
            for model in self._hearer.model_names():
                self._hear(streams.realtime(model), b"1")
        if gone := subscribed - wanted:
            channel.unsubscribe(*gone)

    def _hear(self, name: str, data: bytes) -> None:
        with self._news:
            self._said[name] = data
            self._news.notify()

    def _act(self) -> None:
        while True:
            with self._news:
                self._news.wait_for(lambda: self._said or self._stop.is_set())
                said, self._said = self._said, {}
            if self._stop.is_set():
                return
            if said.pop(streams.STOPPED, None) is not None:
                self.act(self._hearer.look_for_stopped)
            if any(data.isdigit() and data != b"1" for data in said.values()):
                # Others have heard it too: whoever has the most room comes first.
                self._stop.wait(self._hearer.load() * YIELD)
            for name in said:
                self.act(self._hearer.serve, name.removeprefix(streams.realtime("")))

    def act(self, work: Callable[..., None], *arguments: str) -> None:
        """Do what was heard; what goes wrong with it is recorded, and ends no thread."""
        try:
            work(*arguments)
        except DatabaseUnavailable as error:
            log.warning("what was heard waits for the database", error=str(error))
        except Exception as error:  # the thread's edge: deaf for good it would cost every later job its time
            log.exception("what was heard could not be done", error=type(error).__name__)
