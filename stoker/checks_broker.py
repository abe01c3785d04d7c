"""What `stoker doctor` looks at in a RabbitMQ: does it answer and take rings, and does somebody listen to them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import kombu
from amqp.exceptions import AMQPError, NotFound

from stoker.answer_time import usual
from stoker.finding import Finding, ok, problem, warning
from stoker.settings import Settings

TIMEOUT = 3.0
SLOW = 0.05
LOOK_AGAIN = 3.0
"""Seconds after which some of the messages that lie in a queue should have been taken."""
MANY = 100
"""Messages in a queue of which nobody takes one."""
FAILURES = (AMQPError, OSError)
"""What speaking to RabbitMQ raises."""


class Queue(NamedTuple):
    """How many messages wait in a queue, those not counted that a worker has already; and how many workers listen."""

    messages: int
    workers: int


def queues(settings: Settings, names: Mapping[str, str] | list[str]) -> dict[str, Queue]:
    """Return how queues are, by name; one that nobody has ever listened to is empty. Raises one of FAILURES."""
    with closing(_connection(settings)) as connection:
        return {name: _look(connection, name) for name in names}


def rabbitmq(settings: Settings) -> Iterator[Finding]:
    """Look at RabbitMQ and at the doorbells in it; where Redis is the broker there is nothing to see."""
    if not settings.broker_url:
        return
    try:
        with closing(_connection(settings)) as connection:
            yield _answers(connection, settings)
            yield _takes(connection)
        yield from _heard(settings)
    except FAILURES as error:
        says = f"{shown(settings)} does not answer: {str(error) or type(error).__name__}"
        do = "start RabbitMQ, or mend STOKER_BROKER_URL; jobs are accepted without it, and begun when it is back"
        yield problem("broker", says, do)


def shown(settings: Settings) -> str:
    """Return the address of the broker without name and password."""
    parts = urlsplit(settings.broker)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _connection(settings: Settings) -> kombu.Connection:
    options = settings.hasty_broker_options
    return kombu.Connection(settings.broker, connect_timeout=TIMEOUT, transport_options=options)


def _channel(connection: kombu.Connection) -> Any:
    return connection.channel()  # py-amqp's own: kombu's type knows half of it


def _look(connection: kombu.Connection, name: str) -> Queue:
    # A channel each: asking for a queue that is not there closes it.
    channel = _channel(connection)
    try:
        found = channel.queue_declare(name, passive=True)
    except NotFound:
        return Queue(0, 0)
    channel.close()
    return Queue(found.message_count, found.consumer_count)


def _answers(connection: kombu.Connection, settings: Settings) -> Finding:
    took = usual(lambda: _channel(connection).close())
    says = f"{shown(settings)} answers in {took * 1000:.1f} ms"
    if took > SLOW:
        return warning("broker", says, "look at its load and at the network")
    return ok("broker", says)


def _takes(connection: kombu.Connection) -> Finding:
    """Look whether it takes a message; it lets everybody wait who sends while its memory or disk is short."""
    channel = _channel(connection)
    try:
        # To no queue: it is thrown away.
        kombu.Producer(channel).publish("", routing_key="stoker.doctor", delivery_mode=1)
    except TimeoutError:
        do = "free memory or disk there, or raise its limits (`rabbitmqctl list_alarms` names them)"
        return problem("broker-writes", "it takes no messages: an alarm of its memory or disk is on", do)
    return ok("broker-writes", "it takes what it is told; nothing in it needs to be kept")


def _heard(settings: Settings) -> Iterator[Finding]:
    """Look whether each queue has a worker, and what lies there is taken."""
    names = {"collector": "collector", "default": "worker", "bulk": "bulk", f"engine.{settings.engine_name}": "engine"}
    before = queues(settings, names)
    after = before
    if any(queue.messages for queue in before.values()):
        time.sleep(LOOK_AGAIN)
        after = queues(settings, names)
    deaf = False
    for name, process in names.items():
        count = after[name].messages
        do = f"is the process {process} down, frozen, or busy with long work? `stoker restart {process}`"
        if not after[name].workers:
            says = f"nobody listens to the queue {name}, where {count} messages lie"
        elif 0 < before[name].messages <= count:
            says = f"nobody takes from the queue {name}, where {count} messages lie"
        else:
            continue
        deaf = True
        yield problem("queues", says, do) if count >= MANY else warning("queues", says, do)
    if not deaf:
        yield ok("queues", "every doorbell is heard")
