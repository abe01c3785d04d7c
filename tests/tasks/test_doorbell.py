"""The tasks' doorbell: what waits for a broker that hangs is bounded."""

from __future__ import annotations

import socket
import threading
from typing import Any

import pytest
import redis

from models import streams
from stoker.settings import Settings
from tasks import doorbell, metrics
from tasks.app import make_app
from tasks.doorbell import Doorbell
from tests.tasks.inprocess import until


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.sqlite
def test_only_so_many_rings_wait(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many bulks are rung for while the broker hangs; and so many ids of ended jobs."""
    monkeypatch.setattr(doorbell, "_MOST_PENDING", 100)
    monkeypatch.setattr(doorbell, "_MOST_IDS", 100)
    hangs, sent = threading.Event(), []
    app = make_app(settings)

    def send_task(*_: object, **options: Any) -> None:
        sent.append(options["args"])
        hangs.wait(60)

    monkeypatch.setattr(app, "send_task", send_task)
    bell = Doorbell(app, settings)
    bell.collector("fake")
    until(lambda: sent)
    for nth in range(500):
        bell.bulk(f"bulk_{nth}")
    bell.ended(f"job_{nth}" for nth in range(500))
    assert len(bell._pending) == 100
    assert len(bell._ended) <= 100
    hangs.set()
    until(lambda: len(sent) == 101)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.sqlite
def test_a_rabbitmq_that_hangs_keeps_no_client_waiting(settings: Settings) -> None:
    """Who waits for a job is told by Redis, whatever the broker does; rings are given up, and more are taken."""
    with socket.create_server(("127.0.0.1", 0)) as hung, redis.Redis.from_url(settings.redis_url) as store:
        broker = f"amqp://guest@127.0.0.1:{hung.getsockname()[1]}//"
        settings = settings.model_copy(update={"broker_url": broker})
        bell = Doorbell(make_app(settings), settings)
        with store.pubsub(ignore_subscribe_messages=True) as channel:
            channel.subscribe(streams.ENDED)
            until(lambda: channel.subscribed)
            bell.engine("engine")
            held, _ = hung.accept()  # it waits for an answer now
            failed = metrics.rings_failed._value.get()
            told: list[object] = []
            bell.ended(["job_1"])
            until(lambda: told.extend(filter(None, [channel.get_message()])) or told)
            assert metrics.rings_failed._value.get() == failed
        until(lambda: metrics.rings_failed._value.get() > failed)
        held.close()
