"""A worker whose broker dies between a message and its acknowledgement hears the next one."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator

import kombu
import pytest
import redis

from stoker.settings import load
from tasks import acks
from tests import servers


@pytest.fixture
def broker() -> Iterator[servers.Redis]:
    """Return a Redis that the test may kill."""
    with servers.redis() as server:
        yield server


@pytest.mark.parametrize("end", [kombu.Message.ack, kombu.Message.reject, kombu.Message.requeue])
def test_what_cannot_be_acknowledged_is_forgotten(broker: servers.Redis, end: Callable[[kombu.Message], None]) -> None:
    """It would count against the prefetch limit for ever, and the worker never ask for another one."""
    acks.install()
    options = load(redis_url=broker.url).broker_options
    with kombu.Connection(broker.url, transport_options=options) as connection:
        channel = connection.channel()
        channel.basic_qos(0, 1, False)  # kombu's signature
        queue = kombu.Queue("queue", channel=channel)
        queue.declare()
        came: list[kombu.Message] = []
        with kombu.Consumer(channel, [queue], on_message=came.append):
            kombu.Producer(channel).publish({}, routing_key="queue")
            connection.drain_events(timeout=10)
            (message,) = came
            assert not channel.qos.can_consume()
            broker.stop(signal.SIGKILL)
            with pytest.raises(redis.exceptions.ConnectionError):
                end(message)
            assert channel.qos.can_consume()
            broker.start()


def test_the_worker_counts_so() -> None:
    """Installed where the application is made."""
    from tasks import app  # noqa: F401  # what importing it does is what is tested

    assert kombu.transport.redis.Channel.QoS is acks.QoS
