"""What `stoker doctor` looks at in Redis: does it answer and keep what it is told, and does somebody listen."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

import redis

from stoker.answer_time import usual
from stoker.finding import Finding, ok, problem, warning
from stoker.settings import Settings

TIMEOUT = 3.0
SLOW = 0.05
LOOK_AGAIN = 3.0
"""Seconds after which somebody should have taken the message at the head of a queue."""
MANY = 100
"""Messages in a queue of which nobody takes one."""
_FULL = 0.8


def broker(settings: Settings) -> Iterator[Finding]:
    """Look at Redis and at the doorbells in it."""
    client = redis.Redis.from_url(settings.redis_client_url, socket_timeout=TIMEOUT, socket_connect_timeout=TIMEOUT)
    with closing(client):
        try:
            yield _answers(client, settings)
            told: Mapping[str, Any] = client.info()
            yield _writable(client, told)
            yield _memory(told)
            if not settings.broker_url:  # else they lie in RabbitMQ
                yield from _queues(client, settings)
        except (redis.RedisError, OSError) as error:
            says = f"{shown(settings)} does not answer: {error}"
            do = "start Redis, or mend STOKER_REDIS_URL; jobs are accepted without it, and found every few seconds"
            yield problem("redis", says, do)


def shown(settings: Settings) -> str:
    """Return the address of Redis without name and password."""
    parts = urlsplit(settings.redis_url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def _answers(client: redis.Redis, settings: Settings) -> Finding:
    took = usual(client.ping)
    says = f"{shown(settings)} answers in {took * 1000:.1f} ms"
    if took > SLOW:
        return warning("redis", says, "look at its load (a slow command, a fork for saving) and at the network")
    return ok("redis", says)


def _writable(client: redis.Redis, told: Mapping[str, Any]) -> Finding:
    if told.get("role") not in {None, "master"}:
        return problem("redis-writes", "it is a replica and takes no doorbells", "name the primary in STOKER_REDIS_URL")
    try:
        client.set("stoker:doctor", "1", ex=1)
    except redis.ResponseError as error:
        return problem("redis-writes", f"it refuses what it is told: {error}", "make room on its disk or in its memory")
    return ok("redis-writes", "it takes what it is told; persistence is optional")


def _memory(told: Mapping[str, Any]) -> Finding:
    used, most, policy = int(told["used_memory"]), int(told["maxmemory"]), told.get("maxmemory_policy", "noeviction")
    if not most:
        return ok("redis-memory", f"{used / 1e6:.1f} MB, without a limit")
    says = f"{used / 1e6:.1f} MB of {most / 1e6:.0f}, {policy}"
    if policy != "noeviction":
        do = "set maxmemory-policy noeviction: else doorbells and streams of tokens are thrown away when it is full"
        return warning("redis-memory", says, do)
    if used > most * _FULL:
        do = "raise maxmemory, or shorten STOKER_STREAM_KEEP: when it is full, doorbells are refused and work is slower"
        return warning("redis-memory", says, do)
    return ok("redis-memory", says)


def _queues(client: redis.Redis, settings: Settings) -> Iterator[Finding]:
    """Look whether the message at the head of each queue is taken: nobody takes from one whose worker is gone."""
    names = {"collector": "collector", "default": "worker", "bulk": "bulk", f"engine.{settings.engine_name}": "engine"}
    before = {name: client.lindex(name, -1) for name in names}
    if any(head is not None for head in before.values()):
        time.sleep(LOOK_AGAIN)
    deaf = [name for name, head in before.items() if head is not None and client.lindex(name, -1) == head]
    for name in deaf:
        count = int(client.llen(name))
        says = f"nobody takes from the queue {name}, where {count} messages lie"
        do = f"is the process {names[name]} down, frozen, or busy with long work? `stoker restart {names[name]}`"
        yield problem("queues", says, do) if count >= MANY else warning("queues", says, do)
    if not deaf:
        yield ok("queues", "every doorbell is heard")
