"""The promise under faults: real processes are killed, frozen and cut off; outside witnesses count what came of it.

The witnesses: the client's own list of 202s, the engine's own log of starts, and SQL on the database.
"""

from __future__ import annotations

import os
import signal
import statistics
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

import pytest
import sqlalchemy as sa

from models import batches, engines, jobs, results
from models.db import Database
from stoker.client import Client
from stoker.settings import load
from tests import servers
from tests.journeys.running import Up, left_of, stands_still
from tests.tasks.inprocess import states, until

pytestmark = [pytest.mark.journey, pytest.mark.timeout(600)]

QUICK = {"STOKER_LEASE": "8", "STOKER_HEARTBEAT": "1", "STOKER_SWEEP_EVERY": "0.5"}


class Run:
    """A service under test, its database, and what was accepted."""

    def __init__(self, data: Path, *options: str, **environment: str) -> None:
        self.data = data
        self.log = data.parent / "starts"
        self.up = Up(data, *(options or ("--engine", "fake")), STOKER_FAKE_LOG=str(self.log), **(QUICK | environment))
        self.url = self.up.url()
        self.client = Client(self.url)
        url = options[options.index("--database-url") + 1] if "--database-url" in options else ""
        self.database = Database(load(data=data, database_url=url).database)
        self.accepted: list[str] = []

    def submit(self, *prompts: str, lane: str = "bulk") -> None:
        """Hand in jobs and note each 202."""
        for prompt in prompts:
            self.accepted.append(self.client.submit(prompt=prompt, lane=lane).id)

    def kill(self, name: str, how: signal.Signals = signal.SIGKILL) -> int:
        """Send a signal to the whole group of a process, once it runs; return its pid."""
        return self.up.kill(name, how)

    def starts(self) -> Counter[str]:
        """Return how often the engine started each job, by its own log."""
        return Counter(line.split()[0] for line in self.log.read_text().splitlines())

    def check(self, seconds: float = 240.0) -> Counter[str]:
        """Wait until every accepted job has ended; check that none was lost or doubled; return the end states."""
        final = {"succeeded", "failed", "cancelled", "expired"}
        until(lambda: set(states(self.database)) <= final, seconds)
        with self.database.reading() as tx:
            ended = {row.id: row.state for row in tx.execute(sa.select(jobs.table.c.id, jobs.table.c.state))}
            stored = tx.execute(sa.select(results.table.c.job_id)).scalars().all()
        assert sorted(ended) == sorted(self.accepted)
        assert sorted(stored) == sorted(self.accepted)
        return Counter(ended.values())

    def batches(self) -> set[str]:
        """Return the states of all batches."""
        with self.database.reading() as tx:
            return set(tx.execute(sa.select(batches.table.c.state)).scalars())

    def opened(self, before: int) -> bool:
        """Tell whether another process than `before` is the engine, and open for work."""
        with self.database.reading() as tx:
            mine = engines.predecessor(tx, "engine")
            return mine is not None and mine.pid != before and bool(engines.live(tx, 15.0))

    def live(self) -> int:
        """Return how many engines are open for work."""
        with self.database.reading() as tx:
            return len(engines.live(tx, 15.0))

    def count(self, state: str) -> int:
        """Return how many jobs are in a state."""
        return states(self.database).get(state, 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the service; nothing is left of it."""
        self.client.close()
        self.database.close()
        assert self.up.end() == 0
        assert left_of(self.data) == []


@pytest.fixture
def run(data: Path) -> Iterator[Run]:
    """Run a service with the fake engine on SQLite."""
    with Run(data) as running:
        yield running


def words(count: int, mark: str = "") -> Sequence[str]:
    """Return so many prompts."""
    return [f"{mark} word{n}" for n in range(count)]


def test_an_engine_killed_five_times(data: Path) -> None:
    """`kill -9` of the engine's whole group in mid-batch, five times over 200 jobs: all end, none twice.

    Once the next one is open, work goes on soon: it waits for no lease.
    """
    waits = []
    with Run(data, STOKER_LEASE="60") as run:
        # Each death halves what runs: were that one job, two more kills would make it a poison.
        for running, mark in ((32, "[[slow:6]]"), *[(2, "[[slow:2]]")] * 4):
            run.submit(*words(40, mark))
            until(lambda running=running: run.count("running") >= running, 120)  # type: ignore[misc]  # as below
            done = run.count("succeeded")
            dead = run.kill("engine")
            until(lambda dead=dead: run.opened(dead), 120)  # type: ignore[misc]  # as below
            opened = time.monotonic()
            until(lambda done=done: run.count("succeeded") > done, 120)  # type: ignore[misc]  # the loop's variable
            waits.append(time.monotonic() - opened)
        assert run.check() == {"succeeded": 200}
        assert max(run.starts().values()) > 1, "nothing was interrupted: the kills proved nothing"
    assert statistics.median(waits) < 20


def test_a_frozen_engine_writes_nothing_when_it_wakes(run: Run) -> None:
    """An engine that is stopped for longer than its lease loses its batch, and wakes up to nothing of it."""
    run.submit(*words(5, "[[slow:6]]"))
    until(lambda: run.count("running") == 5, 60)
    engine = run.up.pids()["engine"]
    with run.database.transaction():
        # Not frozen while it holds SQLite's only write lock: that would hold up everybody else. So this one is held
        # until the last thread stands still: one within a system call would still be given the lock.
        os.killpg(engine, signal.SIGSTOP)
        until(lambda: stands_still(engine))
    until(lambda: run.count("queued") == 5, 90)
    os.killpg(engine, signal.SIGCONT)
    assert run.check() == {"succeeded": 5}
    assert set(run.starts().values()) == {2}
    with run.database.reading() as tx:
        assert "lost" in tx.execute(sa.select(batches.table.c.state)).scalars().all()


def test_a_drained_engine_charges_nobody(data: Path) -> None:
    """SIGTERM: what cannot finish in time is returned, and runs again with the next engine process."""
    with Run(data, STOKER_DRAIN_TIMEOUT="0.5") as run:
        run.submit("[[slow:0.1]] quick", "[[slow:6]] slow")
        until(lambda: run.count("running") >= 1 and run.count("running") + run.count("succeeded") == 2, 60)
        run.kill("engine", signal.SIGTERM)
        assert run.check() == {"succeeded": 2}
        with run.database.reading() as tx:
            assert tx.execute(sa.select(sa.func.sum(jobs.table.c.lone_deaths))).scalar_one() == 0
        # A batch is finished in a transaction of its own, soon after its last result.
        until(lambda: run.batches() == {"returned", "finished"}, 60)


def test_redis_forgets_dies_and_hangs(run: Run) -> None:
    """FLUSHALL, kill -9 and a frozen Redis cost time, never a job, and never a POST."""
    run.submit(*words(10, "[[slow:0.2]]"))
    run.kill("redis")
    run.submit(*words(10))
    until(lambda: run.count("succeeded") == 20, 90)
    redis = run.kill("redis", signal.SIGSTOP)
    took = []
    for word in words(10):
        started = time.monotonic()
        run.submit(word)
        took.append(time.monotonic() - started)
    os.killpg(redis, signal.SIGCONT)
    # The least that a POST would wait for a hung Redis are its connection's five seconds.
    assert statistics.median(took) < 1, took
    assert run.check() == {"succeeded": 30}


def test_a_killed_collector_is_replaced(run: Run) -> None:
    """Whatever a collector held when it was killed, the next one cuts the queue."""
    for _ in range(3):
        run.submit(*words(20, "[[slow:0.05]]"))
        run.kill("collector")
    assert run.check() == {"succeeded": 60}


def test_poison_is_found(run: Run) -> None:
    """A prompt that kills the engine fails as poison; the others of its batch succeed."""
    run.submit(*words(7), "[[kill]]", *words(8))
    assert run.check(300) == {"succeeded": 15, "failed": 1}
    with run.database.reading() as tx:
        code = tx.execute(sa.select(results.table.c.error_code).where(results.table.c.status == 500)).scalar_one()
        crashes = tx.execute(
            sa.select(sa.func.count(batches.table.c.id)).where(batches.table.c.state == "crashed")
        ).scalar_one()
    assert code == "poison"
    assert crashes <= 8


@pytest.mark.postgres
def test_postgres_is_killed_under_load(data: Path) -> None:
    """Immediate restarts of PostgreSQL while jobs run: accepted jobs end once; a refused POST left nothing."""
    with (
        servers.postgres(fsync=True) as postgres,
        Run(data, "--engine", "fake", "--database-url", postgres.create("stoker")) as run,
    ):
        run.submit(*words(40, "[[slow:0.3]]"))
        for _ in range(2):
            postgres.stop(signal.SIGQUIT)
            time.sleep(0.5)
            postgres.start()
            run.database.close()
            run.submit(*words(10, "[[slow:0.3]]"))
        assert run.check() == {"succeeded": 60}


def test_the_web_server_killed_in_mid_post(run: Run) -> None:
    """A web server that dies under load loses no job that it answered with 202."""
    run.submit(*words(20))
    run.kill("web")
    run.submit(*words(20))
    assert run.check() == {"succeeded": 40}
