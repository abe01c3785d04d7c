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
from models.db import Database, now
from models.jobs import NewJob
from stoker.settings import Settings
from tasks import collector, sizes
from tests.tasks.inprocess import Bell, alive, chat, states, submit, until


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
    patient = settings.model_copy(update={"standard_wait": 60.0})
    seconds = collector.cut_all(database, patient, "fake")
    assert seconds is not None
    assert 0 < seconds <= 60
    with database.transaction() as tx:
        tx.execute(sa.update(jobs.table).values(pos=jobs.table.c.pos - int(seconds * 1e6)))
    assert collector.cut_all(database, patient, "fake") is None
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


def busy(database: Database, settings: Settings, mine: engines.Incarnation, *prompts: str) -> None:
    """Bring bulk jobs to where they run on an engine."""
    submit(database, *prompts, lane="bulk")
    until(lambda: collector.cut_all(database, settings, "fake") is None)
    with database.transaction() as tx:
        while batches.claim(tx, mine, [0, 1, 2], 15.0, idle=False) is not None:
            pass


def test_realtime_gets_room_on_an_engine_full_of_bulk(database: Database, settings: Settings, bell: Bell) -> None:
    """Bulk jobs that run beyond an engine's slots do not hold up a realtime job until their tail ends."""
    mine = alive(database, slots=16, reserve=2)
    for _ in range(3):
        busy(database, settings, mine, *map(str, range(20)))
    assert states(database)["running"] >= 16
    submit(database, "now", lane="realtime")
    until(lambda: collector.cut_all(database, settings, "fake") is None)
    assert [batch.lane for batch in cut(database)].count("realtime") == 1


def test_a_worker_may_cut_realtime_itself(database: Database, settings: Settings, bell: Bell) -> None:
    """Only that lane, no more than it has room for, and claimed in the same transaction."""
    mine = alive(database, slots=16, reserve=2)
    busy(database, settings, mine, *map(str, range(16)))
    submit(database, *map(str, range(40)), lane="bulk")
    with database.transaction() as tx:
        assert collector.cut_realtime(tx, settings, "fake", 16, queue.waiting(tx, "fake")) is None
    first, second = submit(database, "now", "and now", lane="realtime")
    with database.transaction() as tx:
        made = collector.cut_realtime(tx, settings, "fake", 1, queue.waiting(tx, "fake"))
        assert made is not None
        batch_id, cut_ = made
        claimed = batches.claim_one(tx, mine, batch_id, 15.0)
    assert list(cut_.ids) == [first]
    assert claimed is not None
    assert [job.id for job in claimed.jobs] == [first]
    with database.transaction() as tx:
        again = collector.cut_realtime(tx, settings, "fake", 15, queue.waiting(tx, "fake"))
        assert again is not None
        assert list(again[1].ids) == [second]
        assert collector.cut_realtime(tx, settings, "fake", 14, queue.waiting(tx, "fake")) is None


def test_what_a_worker_cuts_for_itself_is_paid_for(database: Database, settings: Settings, bell: Bell) -> None:
    """The lanes below earn their share of it while they wait."""
    alive(database)
    submit(database, "lower", lane="bulk")
    submit(database, *map(str, range(8)), lane="realtime")
    with database.transaction() as tx:
        assert collector.cut_realtime(tx, settings, "fake", 8, queue.waiting(tx, "fake")) is not None
        turns = queue.lock(tx, "fake")
    assert turns["bulk"].deficit == pytest.approx(8 * settings.bulk_share)
    assert turns["realtime"].deficit == 0


def other(database: Database, count: int) -> None:
    """Store bulk jobs for another model."""
    with database.transaction() as tx:
        for _ in range(count):
            endpoint = "/v1/chat/completions"
            jobs.submit(tx, NewJob(owner="o", model="other", endpoint=endpoint, body=chat("x"), lane="bulk"))


@pytest.mark.parametrize("own", [None, 16])
def test_a_models_backlog_leaves_the_next_model_room(
    database: Database, settings: Settings, bell: Bell, own: int | None
) -> None:
    """Of two models behind one engine the one with the full READY backlog does not keep the other out."""
    mine = alive(database, slots=16, reserve=2)
    with database.transaction() as tx:
        engines.change(tx, mine, 16, 2, {"fake": own, "other": own})
    submit(database, *map(str, range(100)), lane="bulk")
    other(database, 100)
    collector.cut_all(database, settings, "fake")
    collector.cut_all(database, settings, "other")
    sizes = Counter[str]()
    for batch in cut(database):
        sizes[batch.model] += batch.size
    assert sizes["fake"] == sizes["other"] > 0


def test_only_its_own_jobs_take_up_a_models_own_slots(database: Database, settings: Settings, bell: Bell) -> None:
    """What runs of another model on the same engine counts where they share slots, and only there."""
    mine = alive(database, slots=16, reserve=0)
    for own, room in ((8, 8), (None, 4)):
        with database.transaction() as tx:
            tx.execute(sa.delete(jobs.table))
            tx.execute(sa.delete(batches.table))
            engines.change(tx, mine, 16, 0, {"fake": None, "other": own})
        busy(database, settings, mine, *map(str, range(16)))
        other(database, 100)
        until(lambda: collector.cut_all(database, settings, "other") is None)
        assert sum(batch.size for batch in cut(database) if batch.model == "other") == room


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


def test_bucketed_cuts_what_is_alike_together(database: Database, settings: Settings, bell: Bell) -> None:
    """By prefix first, then by length, from a window that is larger than the batch."""
    mine = settings.model_copy(update={"bulk_policy": "bucketed", "bulk_batch": 8})
    alive(database, slots=64, reserve=4)
    for nth in range(8):
        submit(database, f"long{nth}", lane="bulk", tokens=2000)
        submit(database, f"short{nth}", lane="bulk", tokens=20)
        submit(database, f"alike{nth}", lane="bulk", tokens=40 if nth else 3000, prefix=7)
    collector.cut_all(database, mine, "fake")
    with database.reading() as tx:
        groups = [
            {tuple(row) for row in tx.execute(sa.select(jobs.table.c.tokens, jobs.table.c.prefix).where(of_batch))}
            for batch in cut(database)
            for of_batch in [jobs.table.c.batch_id == batch.id]
        ]
    assert groups == [{(2000, 0)}, {(20, 0)}, {(3000, 7), (40, 7)}]


def test_a_token_budget_is_not_bounded_by_jobs(database: Database, settings: Settings, bell: Bell) -> None:
    """A batch has as many jobs as fit into the lane's tokens and the room."""
    mine = settings.model_copy(
        update={"bulk_policy": "token_budget", "bulk_batch": 8, "bulk_tokens": 1000, "ready_backlog": 0.0}
    )
    alive(database, slots=64, reserve=4)
    submit(database, *map(str, range(100)), lane="bulk", tokens=20)
    collector.cut_all(database, mine, "fake")
    assert [(batch.size, batch.reason) for batch in cut(database)] == [(50, "full"), (10, "full")]


def test_adaptive_goes_by_what_batches_took(
    database: Database, settings: Settings, bell: Bell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fixed without data; then the size that is best on this engine; what was read is not read again at once."""
    mine = settings.model_copy(update={"bulk_policy": "adaptive", "bulk_batch": 16, "ready_backlog": 0.0})
    alive(database, slots=16, reserve=0)
    with database.transaction() as tx:
        assert sizes.learned(tx, "fake", "bulk", 16) == 16
        row = {"model": "fake", "lane": "bulk", "rank": 2, "state": "finished", "reason": "full", "engine_id": "engine"}
        clock = tx.execute(sa.select(now())).scalar_one()
        for nth, size in enumerate([4, 8, 16, 32] * 4):
            began = clock - 400 + 10 * nth
            times = {"claimed_at": began, "finished_at": began + max(4, size) / 4, "created_at": began}
            row = {**row, **times, "id": f"batch_{nth}", "size": size, "tokens": 10 * size}
            tx.execute(sa.insert(batches.table).values(row))
        assert sizes.learned(tx, "fake", "bulk", 16) == 16
    monkeypatch.setattr(sizes, "READ_EVERY", 0.0)
    submit(database, *map(str, range(100)), lane="bulk")
    collector.cut_all(database, mine, "fake")
    assert [batch.size for batch in cut(database) if batch.state == "ready"] == [4, 4, 4, 4]


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
    patient = settings.model_copy(update={"bulk_wait": 4.0})
    first = threading.Thread(target=collector.collect_model, args=(database, patient, "fake", "bulk"))
    first.start()

    def promised() -> bool:
        with database.reading() as tx:
            return queue.promised(tx, "fake", patient.bulk_wait)

    until(promised)
    collector.collect_model(database, patient, "fake", "bulk")
    assert first.is_alive()
    assert states(database) == {"queued": 1}
    first.join(60)
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
