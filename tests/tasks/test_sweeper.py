"""The sweeper: what a crash or a lost doorbell left lying, found again; harmless twice and twice at once."""

from __future__ import annotations

import os
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import cast

import pytest
import sqlalchemy as sa

from models import batches, bulk_leases, bulks, ends, engines, idempotency, jobs, owed, sweeps, views
from models.bulks import NewBulk
from models.db import Database, new_id, now
from models.engines import Incarnation
from models.jobs import Webhook
from stoker.settings import Settings
from tasks import collector, reaper, sweeper
from tasks.doorbell import Doorbell
from tasks.holders import new_holder
from tasks.sweeper import sweep_once
from tests.tasks.inprocess import Bell, alive, incarnation, states, submit, until


@pytest.fixture
def bell(monkeypatch: pytest.MonkeyPatch) -> Bell:
    """Record all doorbells."""
    made = Bell()
    monkeypatch.setattr(collector, "doorbell", lambda: made)
    return made


def sweep(database: Database, settings: Settings, bell: Bell) -> None:
    """Sweep once, as if the sweeper had run all the time."""
    with database.transaction() as tx:
        sweeps.begin(tx, settings.lease)
        tx.execute(sa.update(sweeps.table).values(last_at=now(), grace_until=0.0))
    sweep_once(database, settings, cast("Doorbell", bell))


def test_an_expired_lease_gives_the_jobs_back(database: Database, settings: Settings, bell: Bell) -> None:
    """A silent engine's jobs are queued again, in cohorts, and its batch is lost."""
    mine = alive(database)
    submit(database, "a", "b", "c", lane="realtime")
    collector.cut_all(database, settings, "fake")
    with database.transaction() as tx:
        assert batches.claim(tx, mine, [0], 15.0, idle=True)
    sweep(database, settings, bell)
    assert states(database) == {"running": 3}
    with database.transaction() as tx:
        tx.execute(sa.update(batches.table).values(lease_until=1.0))
    sweep(database, settings, bell)
    assert states(database) == {"queued": 3}
    with database.reading() as tx:
        assert tx.execute(sa.select(batches.table.c.state)).scalar_one() == "lost"
    assert ("collector", "fake/") in bell.rung


def test_a_dead_engine_of_this_machine_is_ended_at_once(database: Database, settings: Settings, bell: Bell) -> None:
    """Its lease may run for long: who sees that its process is gone gives its jobs back; one that lives keeps them."""
    ended = subprocess.Popen(["true"])
    ended.wait()
    pid = os.getpid()
    here = Incarnation("here", new_id("run"), "fake", socket.gethostname(), pid, pid, reaper.process_start(pid))
    gone = replace(here, engine="gone", id=new_id("run"), pid=ended.pid)
    for mine in (here, gone):
        with database.transaction() as tx:
            engines.register(tx, mine)
            engines.go_live(tx, mine, 4, 0, {"fake": None})
        submit(database, mine.engine, lane="realtime")
        collector.cut_all(database, settings, "fake")
        with database.transaction() as tx:
            assert batches.claim(tx, mine, [0], 600.0, idle=True)
    sweep(database, settings, bell)
    assert states(database) == {"running": 1, "queued": 1}
    with database.reading() as tx:
        assert [engine.id for engine in engines.live(tx, 15.0)] == ["here"]
        assert tx.execute(sa.select(batches.table.c.state).where(batches.table.c.engine_id == "gone")).scalar_one() == (
            "crashed"
        )
    assert ("collector", "fake/") in bell.rung


def test_no_lease_expires_after_a_pause(database: Database, settings: Settings, bell: Bell) -> None:
    """After a gap between sweeps (a suspended machine, a jump of the clock) every lease gets one more chance."""
    mine = alive(database)
    submit(database, "a", lane="realtime")
    collector.cut_all(database, settings, "fake")
    with database.transaction() as tx:
        assert batches.claim(tx, mine, [0], 15.0, idle=True)
        tx.execute(sa.update(batches.table).values(lease_until=1.0))
    sweep_once(database, settings, cast("Doorbell", bell))
    assert states(database) == {"running": 1}


def test_ready_without_an_engine_goes_back(database: Database, settings: Settings, bell: Bell) -> None:
    """A READY batch that no live engine could take is returned after a while, uncharged."""
    mine = alive(database)
    submit(database, "a", lane="realtime")
    collector.cut_all(database, settings, "fake")
    with database.transaction() as tx:
        engines.leave(tx, mine, "gone")
    sweep(database, settings, bell)
    assert states(database) == {"batched": 1}
    with database.transaction() as tx:
        tx.execute(sa.update(batches.table).values(created_at=batches.table.c.created_at - settings.ready_timeout - 1))
    sweep(database, settings, bell)
    assert states(database) == {"queued": 1}
    with database.reading() as tx:
        assert tx.execute(sa.select(jobs.table.c.cohort_id)).scalar_one() is None


def test_due_jobs_expire_and_come_back(database: Database, settings: Settings, bell: Bell) -> None:
    """Jobs past their time expire in whatever open state, delayed ones whose time has come are queued."""
    (old,) = submit(database, "old", expires_in=0.001)
    submit(database, *"abc")
    with database.transaction() as tx:
        later = submit_delayed(tx)
    until(lambda: _past(database, old))
    sweep(database, settings, bell)
    assert states(database) == {"expired": 1, "queued": 3}
    assert bell.told == [old]
    with database.reading() as tx:
        assert views.get(tx, "owner", later).state == "queued"


def submit_delayed(tx: sa.Connection) -> str:
    """Put off the newest job until a moment that has passed."""
    (newest,) = tx.execute(sa.select(jobs.table.c.id).order_by(jobs.table.c.id.desc()).limit(1)).scalars()
    tx.execute(sa.update(jobs.table).where(jobs.table.c.id == newest).values(state="delayed", run_at=1.0))
    return str(newest)


def _past(database: Database, job_id: str) -> bool:
    with database.reading() as tx:
        due = sa.select(jobs.table.c.expires_at < now()).where(jobs.table.c.id == job_id)
        return bool(tx.execute(due).scalar_one())


def test_a_million_overdue_jobs_go_in_slices(database: Database, settings: Settings, bell: Bell) -> None:
    """More overdue jobs than one slice holds all expire in one sweep, in several transactions."""
    submit(database, *map(str, range(450)), expires_in=0.001)
    until(lambda: _past(database, _newest(database)))
    sweep(database, settings, bell)
    assert states(database) == {"expired": 450}


def _newest(database: Database) -> str:
    with database.reading() as tx:
        return str(tx.execute(sa.select(sa.func.max(jobs.table.c.id))).scalar_one())


def test_lost_doorbells_are_rung_again(database: Database, settings: Settings, bell: Bell) -> None:
    """Queued jobs ring the collector, READY batches their engine, due deliveries their sender."""
    alive(database)
    submit(database, "a", lane="realtime")
    collector.cut_all(database, settings, "fake")
    (done,) = submit(database, "b", webhook=Webhook("http://127.0.0.1:9/hook"))
    submit(database, "c")
    with database.transaction() as tx:
        ends.cancel(tx, "owner", done)
        assert owed.any_due(tx)
    bell.rung.clear()
    sweep(database, settings, bell)
    assert set(bell.rung) == {("collector", "fake/"), ("engine", "engine"), ("deliver", "")}


def test_nothing_is_rung_for_an_empty_house(database: Database, settings: Settings, bell: Bell) -> None:
    """A sweep over nothing rings nobody, and a model without a live engine wakes no collector."""
    sweep(database, settings, bell)
    submit(database, "a")
    sweep(database, settings, bell)
    assert bell.rung == []


def test_old_idempotency_keys_are_forgotten(database: Database, settings: Settings, bell: Bell) -> None:
    """A key lives as long as the setting says."""
    with database.transaction() as tx:
        idempotency.begin(tx, "owner", "key", "print")
        idempotency.finish(tx, "owner", "key", "{}")
    sweep(database, settings, bell)
    with database.transaction() as tx:
        assert idempotency.begin(tx, "owner", "key", "print") == "{}"
        tx.execute(sa.update(idempotency.table).values(created_at=1.0))
    sweep(database, settings, bell)
    with database.transaction() as tx:
        assert idempotency.begin(tx, "owner", "key", "print") is None


def test_sweeping_twice_at_once_is_harmless(database: Database, settings: Settings, bell: Bell) -> None:
    """Five sweepers at once end a lost batch once."""
    mine = alive(database)
    submit(database, *map(str, range(8)), lane="realtime")
    collector.cut_all(database, settings, "fake")
    with database.transaction() as tx:
        assert batches.claim(tx, mine, [0], 15.0, idle=True)
        tx.execute(sa.update(batches.table).values(lease_until=1.0))
    with ThreadPoolExecutor(5) as pool:
        list(pool.map(lambda _: sweep(database, settings, bell), range(5)))
    assert states(database) == {"queued": 8}
    with database.reading() as tx:
        sizes = tx.execute(sa.select(sa.func.count(jobs.table.c.id)).group_by(jobs.table.c.cohort_id)).scalars().all()
    assert sorted(sizes) == [4, 4]


def test_a_stale_incarnation_is_swept_once_renewed_it_is_not(
    database: Database, settings: Settings, bell: Bell
) -> None:
    """A lease that expired but was renewed before the sweep stays."""
    mine = alive(database)
    submit(database, "a", lane="realtime")
    collector.cut_all(database, settings, "fake")
    with database.transaction() as tx:
        claimed = batches.claim(tx, mine, [0], 15.0, idle=True)
        assert claimed is not None
        tx.execute(sa.update(batches.table).values(lease_until=1.0))
        assert batches.renew(tx, mine, [claimed.id], 15.0) == {claimed.id}
        assert batches.renew(tx, incarnation(), [claimed.id], 15.0) == set()
    sweep(database, settings, bell)
    assert states(database) == {"running": 1}


def test_a_sweep_under_way_is_not_joined_by_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the database holds up a sweep, later ones leave the collector its threads: they end at once."""
    monkeypatch.setattr(sweeper, "context", lambda: pytest.fail("a second sweep began"))
    with sweeper._sweeping:
        sweeper.sweep()
    with pytest.raises(pytest.fail.Exception):
        sweeper.sweep()


def test_a_bulk_whose_tender_has_died_is_free_at_once(database: Database, settings: Settings, bell: Bell) -> None:
    """On this machine nobody waits for the lease; a tender that lives keeps it."""
    dead = f"{new_holder().partition('.')[0]}.999999999.1.00000000"
    with database.transaction() as tx:
        ids = [bulks.create(tx, NewBulk("owner", "bulk", "bulk")).id for _ in range(2)]
        for bulk_id, holder in zip(ids, (dead, new_holder()), strict=True):
            assert bulk_leases.hold(tx, bulk_id, holder, 60.0)
    sweep(database, settings, bell)
    assert [rung for rung in bell.rung if rung[0] == "bulk"] == [("bulk", ids[0])]
