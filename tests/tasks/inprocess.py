"""The path behind the 202 in one process, without Celery: doorbells are recorded, the test calls what they would."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from typing import Any, cast

import sqlalchemy as sa

from models import engines, jobs
from models.db import Database, new_id
from models.engines import Incarnation
from models.jobs import NewJob
from stoker.settings import Settings
from tasks.doorbell import Doorbell
from tasks.engines.base import Engine
from tasks.engines.fake import FakeEngine
from tasks.worker import Worker


class Bell:
    """Records what was rung instead of ringing it."""

    def __init__(self) -> None:
        self.rung: list[tuple[str, str]] = []
        self.told: list[str] = []

    def collector(self, model: str, lane: str | None = None) -> None:
        """Record a ring for a collector."""
        self.rung.append(("collector", f"{model}/{lane or ''}"))

    def engine(self, name: str) -> None:
        """Record a ring for an engine."""
        self.rung.append(("engine", name))

    def deliver(self) -> None:
        """Record a ring for the deliveries."""
        self.rung.append(("deliver", ""))

    def bulk(self, bulk_id: str) -> None:
        """Record a ring for a bulk's tender."""
        self.rung.append(("bulk", bulk_id))

    def ended(self, ids: Iterable[str]) -> None:
        """Record which jobs were said to have ended."""
        self.told.extend(ids)


def submit(database: Database, *prompts: str, **more: Any) -> list[str]:
    """Store a chat job for each prompt."""
    fields = {"owner": "owner", "lane": "standard", **more}
    with database.transaction() as tx:
        return [
            jobs.submit(tx, NewJob(model="fake", endpoint="/v1/chat/completions", body=chat(p), **fields)).id
            for p in prompts
        ]


def chat(prompt: str) -> str:
    """Return the body of a chat request."""
    return json.dumps({"model": "fake", "messages": [{"role": "user", "content": prompt}]})


def incarnation(name: str = "engine") -> Incarnation:
    """Return an incarnation that is no process."""
    return Incarnation(name, new_id("run"), "fake", "nowhere", 1, 1, "0:0")


def alive(database: Database, name: str = "engine", slots: int = 16, reserve: int = 2) -> Incarnation:
    """Make an engine known as live, without a worker behind it."""
    mine = incarnation(name)
    with database.transaction() as tx:
        engines.register(tx, mine)
        engines.remember(tx, "fake", None, None)
        engines.go_live(tx, mine, slots, reserve, {"fake": None})
    return mine


def worker(database: Database, settings: Settings, bell: Bell, engine: Engine | None = None) -> Worker:
    """Start a worker on a fake engine and open it."""
    mine = incarnation(settings.engine_name)
    with database.transaction() as tx:
        engines.register(tx, mine)
    if engine is None:
        engine = FakeEngine(settings)
        engine.start()
    made = Worker(database, settings, engine, mine, cast("Doorbell", bell))
    made.open()
    return made


def end(one: Worker) -> None:
    """End a worker as its process would, and wait for its threads: they look at the queue behind their last batch."""
    one.drain()
    until(lambda: not one.in_flight())
    one.close()
    one._realtime.shutdown()


def states(database: Database) -> dict[str, int]:
    """Return the number of jobs in each state."""
    counted = sa.select(jobs.table.c.state, sa.func.count()).group_by(jobs.table.c.state)
    with database.reading() as tx:
        return {row[0]: row[1] for row in tx.execute(counted)}


def until(true: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait until something is true; fail when it does not become so."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not become true in time"
        time.sleep(0.01)
