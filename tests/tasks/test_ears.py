"""What engines hear at once: realtime jobs, and jobs that nobody wants any more."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import redis

from models import streams
from models.errors import DatabaseUnavailable
from stoker.settings import load
from tasks import ears as ears_module
from tasks.ears import Ears
from tests import servers
from tests.tasks.inprocess import until


class Hearer:
    """Records what it is asked for, and fails as it is told."""

    def __init__(self) -> None:
        self.models = ["fake"]
        self.served: list[str] = []
        self.looked = 0
        self.fails: list[Exception] = []
        self.busy = threading.Event()
        self.busy.set()

    def model_names(self) -> list[str]:
        """Return what the test says."""
        return self.models

    def serve(self, model: str) -> None:
        """Record."""
        self.served.append(model)
        assert self.busy.wait(60)
        if self.fails:
            raise self.fails.pop()

    def load(self) -> float:
        """Return that every place is taken."""
        return 1.0

    def look_for_stopped(self) -> None:
        """Record."""
        self.looked += 1


@pytest.fixture
def hearer() -> Hearer:
    """Return one who hears."""
    return Hearer()


@pytest.fixture
def ears(redis_url: str, hearer: Hearer) -> Iterator[Ears]:
    """Listen."""
    made = Ears(load(engine="fake", redis_url=redis_url), hearer)
    made.start()
    yield made
    made.stop()
    until(lambda: not made._thread.is_alive())


def say(url: str, channel: str) -> None:
    """Publish until somebody hears it."""
    with redis.Redis.from_url(url) as publisher:
        until(lambda: publisher.publish(channel, "x"))


def test_what_waited_before_it_listened_is_served(ears: Ears, hearer: Hearer) -> None:
    """Nobody pages again for what came before."""
    until(lambda: hearer.served == ["fake"])


def test_a_page_is_served(ears: Ears, hearer: Hearer, redis_url: str) -> None:
    """That of a model that the engine serves; another engine's is not heard."""
    until(lambda: hearer.served)
    say(redis_url, streams.realtime("fake"))
    until(lambda: len(hearer.served) == 2)
    with redis.Redis.from_url(redis_url) as publisher:
        assert publisher.publish(streams.realtime("other"), "x") == 0


def test_a_full_engine_lets_others_go_first(
    ears: Ears, hearer: Hearer, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When others hear of a job as well, it waits as long as it is full; alone it does not."""
    until(lambda: hearer.served)
    with redis.Redis.from_url(redis_url) as publisher:
        for others, pause, waits in (("2", 0.5, True), ("1", 600.0, False)):
            monkeypatch.setattr(ears_module, "YIELD", pause)
            before = len(hearer.served)
            began = time.monotonic()
            until(lambda others=others: publisher.publish(streams.realtime("fake"), others))  # type: ignore[misc]
            until(lambda before=before: len(hearer.served) > before)  # type: ignore[misc]
            assert (time.monotonic() - began >= pause) == waits


def test_stopped_jobs_are_looked_for(ears: Ears, hearer: Hearer, redis_url: str) -> None:
    """As soon as somebody says that one is."""
    until(lambda: hearer.served)
    say(redis_url, streams.STOPPED)
    until(lambda: hearer.looked == 1)


def test_what_is_said_a_hundred_times_is_done_once(ears: Ears, hearer: Hearer, redis_url: str) -> None:
    """Whoever is busy does not fall behind page by page: what came meanwhile is one page, and one look."""
    until(lambda: hearer.served)
    hearer.busy.clear()
    say(redis_url, streams.realtime("fake"))
    until(lambda: len(hearer.served) == 2)
    for _ in range(100):
        say(redis_url, streams.realtime("fake"))
        say(redis_url, streams.STOPPED)
    hearer.busy.set()
    until(lambda: hearer.looked >= 1 and len(hearer.served) >= 3)
    hearer.models = ["fake", "last"]
    until(lambda: "last" in hearer.served)
    assert hearer.looked < 50
    assert len(hearer.served) < 50


def test_models_come_and_go(ears: Ears, hearer: Hearer, redis_url: str) -> None:
    """A model that is new is listened for, and served at once; one that is gone is heard no more."""
    until(lambda: hearer.served)
    hearer.models = ["odd, \x01 name ☃"]
    until(lambda: "odd, \x01 name ☃" in hearer.served)
    hearer.served.clear()
    say(redis_url, streams.realtime("odd, \x01 name ☃"))
    until(lambda: hearer.served == ["odd, \x01 name ☃"])
    with redis.Redis.from_url(redis_url) as publisher:
        until(lambda: publisher.publish(streams.realtime("fake"), "x") == 0)


@pytest.mark.parametrize("error", [DatabaseUnavailable("away"), ValueError("a defect")])
def test_it_hears_on_after_a_failure(ears: Ears, hearer: Hearer, redis_url: str, error: Exception) -> None:
    """Whatever went wrong with one page, the next is served."""
    until(lambda: hearer.served)
    hearer.fails.append(error)
    say(redis_url, streams.realtime("fake"))
    until(lambda: not hearer.fails)
    say(redis_url, streams.realtime("fake"))
    until(lambda: len(hearer.served) == 3)


def test_it_comes_back_with_redis(hearer: Hearer) -> None:
    """Redis is killed and started again: it listens again, and serves what waited meanwhile."""
    with servers.redis() as server:
        ears = Ears(load(engine="fake", redis_url=server.url), hearer)
        ears.start()
        until(lambda: hearer.served)
        server.stop()
        hearer.served.clear()
        server.start()
        until(lambda: hearer.served)
        before = len(hearer.served)
        say(server.url, streams.realtime("fake"))
        until(lambda: len(hearer.served) > before)
        ears.stop()
        until(lambda: not ears._thread.is_alive())
