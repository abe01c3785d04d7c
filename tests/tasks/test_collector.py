"""The collector over a real database: when batches are cut, how large, for whom, and by how many at once."""

from __future__ import annotations

import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy as sa

from models import batches, engines, jobs, queue
from models.db import Database
from stoker.settings import Settings
from tasks import collector
from tests.tasks.inprocess import Bell, alive, states, submit


@pytest.fixture
def bell(monkeypatch: pytest.MonkeyPatch) -> Bell:
    """Record the collector's doorbells."""
    made = Bell()
    monkeypatch.setattr(collector, "doorbell", lambda: made)
    return made


def cut(database: Database) -> list[Any]:
    """Return the batches, oldest first."""
    with database.reading() as tx:
        return list(tx.execute(sa.select(batches.table).order_by(batches.table.c.created_at)))


def test_jobs_wait_while_no_engine_is_live(database: Database, settings: Settings, bell: Bell) -> None:
    """Without a live engine nothing is cut and nobody keeps looking: its start rings."""
    submit(database, "one", "two")
    assert collector.cut_all(database, settings, "fake") is None
    assert states(database) == {"queued": 2}
    assert bell.rung == []


def test_a_batch_is_cut_and_its_engine_rung(database: Database, settings: Settings, bell: Bell) -> None:
    """A due batch takes the queued jobs with it and wakes the engine."""
    alive(database)
    submit(database, *"abcd", lane="realtime")
    assert collector.cut_all(database, settings, "fake") is None
    assert states(database) == {"batched": 4}
    assert ("engine", "engine") in bell.rung


def test_an_underfilled_batch_is_promised(database: Database, settings: Settings, bell: Bell) -> None:
    """A young job of the standard lane waits for company; the collector says how long."""
    alive(database)
    submit(database, "one")
    seconds = collector.cut_all(database, settings, "fake")
    assert seconds is not None
    assert 0 < seconds <= settings.standard_wait
    time.sleep(seconds)
    assert collector.cut_all(database, settings, "fake") is None
    assert [batch.reason for batch in cut(database)] == ["waited"]


def test_ready_is_a_small_backlog(database: Database, settings: Settings, bell: Bell) -> None:
    """However long the queue, READY holds no more than one engine's slots."""
    alive(database, slots=16, reserve=2)
    submit(database, *map(str, range(200)), lane="bulk")
    collector.cut_all(database, settings, "fake")
    assert sum(batch.size for batch in cut(database)) <= 16
    assert states(database)["queued"] >= 184


def test_realtime_overtakes_a_full_backlog(database: Database, settings: Settings, bell: Bell) -> None:
    """With READY full of bulk work a realtime job is cut at once, and claimed first."""
    mine = alive(database, slots=16, reserve=2)
    submit(database, *map(str, range(100)), lane="bulk")
    collector.cut_all(database, settings, "fake")
    (urgent,) = submit(database, "now", lane="realtime")
    collector.cut_all(database, settings, "fake")
    with database.transaction() as tx:
        claimed = batches.claim(tx, mine, [0, 1, 2], 15.0, idle=True)
    assert claimed is not None
    assert [job.id for job in claimed.jobs] == [urgent]


def test_an_upload_does_not_hold_up_another_owner(database: Database, settings: Settings, bell: Bell) -> None:
    """Another owner's ten jobs are in the next batch, behind ten of the thousand that were first."""
    alive(database, slots=64, reserve=4)
    submit(database, *map(str, range(1000)), owner="large", lane="bulk")
    few = submit(database, *map(str, range(10)), owner="small", lane="bulk")
    collector.cut_all(database, settings, "fake")
    with database.reading() as tx:
        first = cut(database)[0].id
        taken = tx.execute(sa.select(jobs.table.c.id).where(jobs.table.c.batch_id == first)).scalars().all()
    assert set(few) <= set(taken)


def test_five_collectors_at_once(database: Database, settings: Settings, bell: Bell) -> None:
    """Any number of collectors at once is correct: each job is in one batch, and the bounds hold."""
    alive(database, slots=64, reserve=4)
    submit(database, *map(str, range(300)), lane="bulk")
    with ThreadPoolExecutor(5) as pool:
        list(pool.map(lambda _: collector.cut_all(database, settings, "fake"), range(5)))
    made = cut(database)
    with database.reading() as tx:
        owned = Counter(
            tx.execute(sa.select(jobs.table.c.batch_id).where(jobs.table.c.batch_id.is_not(None))).scalars()
        )
    assert {batch.id: batch.size for batch in made} == owned
    assert sum(owned.values()) <= 64


def test_one_collector_waits_for_all(database: Database, settings: Settings, bell: Bell) -> None:
    """A ring for a lane that another collector will look at in time costs one look at its promise."""
    alive(database)
    submit(database, "one", lane="bulk")
    first = threading.Thread(target=collector.collect_model, args=(database, settings, "fake", "bulk"))
    first.start()
    time.sleep(0.2)
    started = time.monotonic()
    collector.collect_model(database, settings, "fake", "bulk")
    assert time.monotonic() - started < 0.3
    assert states(database) == {"queued": 1}
    first.join()
    assert states(database) == {"batched": 1}


def test_a_dead_collectors_promise_is_not_trusted(database: Database, settings: Settings, bell: Bell) -> None:
    """A collector that died while it waited delays a job by a second, not for ever."""
    alive(database)
    with database.transaction() as tx:
        assert queue.promise(tx, "fake", "dead", 0.0)
    submit(database, "one", lane="bulk")
    time.sleep(1.1)
    collector.collect_model(database, settings, "fake", "bulk")
    assert states(database) == {"batched": 1}


def test_a_draining_engine_gets_nothing(database: Database, settings: Settings, bell: Bell) -> None:
    """Nothing is cut for an engine that is leaving."""
    mine = alive(database)
    with database.transaction() as tx:
        engines.leave(tx, mine, "draining")
    submit(database, "one", lane="realtime")
    assert collector.cut_all(database, settings, "fake") is None
    assert states(database) == {"queued": 1}
