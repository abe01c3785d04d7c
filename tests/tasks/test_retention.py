"""Retention: in slices, bounded, cut off anywhere, twice at once, and never by a clock that jumped."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain, repeat
from pathlib import Path
from typing import Any, cast

import pytest
import sqlalchemy as sa
from hypothesis import example
from hypothesis import given as examples
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from models import batches, bulks, deliveries, files, jobs, results, retention, sweeps, usage
from models.db import AnyRow, Database
from models.retention import Kind
from models.storage import Storage, StorageUnavailable
from stoker.settings import Settings
from tasks import clockwatch
from tasks import retention as tasks_retention
from tasks.app import make_app
from tasks.bulks import tend_bulk
from tasks.clockwatch import AFTER_JUMP, AT_FIRST, ClockWatch
from tasks.doorbell import Doorbell
from tasks.retention import Retention
from tests.models import aged, given
from tests.models.aged import DAY
from tests.tasks.inprocess import Bell

OLD = (40 * DAY, 31 * DAY)
JOBS = (jobs.table.c.id, jobs.bodies.c.job_id, results.table.c.job_id)


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each kind have the time that a busy machine takes for it, and the sweeper's last look count as long."""
    monkeypatch.setattr(tasks_retention, "SECONDS", {})
    monkeypatch.setattr(tasks_retention, "SECONDS_OF_OTHERS", 60.0)
    monkeypatch.setattr(sweeps, "MOST_GAP", 600.0)


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    """Return a folder for files."""
    return Storage(str(tmp_path / "files"))


def retiring(database: Database, settings: Settings, storage: Storage, bell: Bell | None = None) -> Retention:
    """Return what a process that has just been started deletes with; its clock is trusted."""
    aged.sweeping(database)
    return Retention(database, settings, storage, cast("Doorbell", bell or Bell()), lambda _: True)


def stored(database: Database, storage: Storage, age: float, state: str = "ready", **more: Any) -> AnyRow:
    """Store a file with its bytes; return its row."""
    file_id = aged.file(database, age, state, **more)
    (row,) = given.rows(database, files.table, files.table.c.id == file_id)
    with storage.writer(row.key) as out:
        out.write(b"bytes")
    return row


def there(tmp_path: Path, row: AnyRow) -> bool:
    """Tell whether a file's bytes are there."""
    return (tmp_path / "files" / row.key).exists()


@contextmanager
def slices(database: Database) -> Iterator[list[int]]:
    """Note how many rows of `jobs` each transaction deletes."""
    noted: list[int] = []

    def note(_conn: Any, cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("DELETE FROM jobs"):
            noted.append(cursor.rowcount)

    sa.event.listen(database.engine, "after_cursor_execute", note)
    yield noted
    sa.event.remove(database.engine, "after_cursor_execute", note)


def test_everything_past_its_time_goes(
    database: Database, settings: Settings, storage: Storage, tmp_path: Path
) -> None:
    """Jobs, batches, deliveries and files go at once; bulks are hidden, and their tender is rung."""
    bell = Bell()
    young, held = aged.job(database, 40 * DAY, DAY), aged.job(database, 90 * DAY, None)
    aged.many(database, 3, *OLD)
    aged.batch(database, 40 * DAY, "finished", 40 * DAY)
    batch = aged.batch(database, DAY, "finished", DAY)
    old, recent = aged.bulk(database, *_swapped("completed")), aged.bulk(database, 40 * DAY, "completed", DAY)
    aged.delivery(database, old, 31 * DAY)
    told = aged.delivery(database, recent, DAY)
    gone, kept = stored(database, storage, DAY, expired=60.0), stored(database, storage, DAY, expired=-60.0)
    before = _counted()
    done = retiring(database, settings, storage, bell).run()
    assert done == Counter(jobs=3, batches=1, bulks=1, deliveries=1, files=1)
    assert _counted() - before == done
    assert all(aged.ids(database, column) >= {young} for column in JOBS)
    assert aged.ids(database, jobs.table.c.id) == {young, held}
    assert aged.ids(database, batches.table.c.id) == {batch}
    assert aged.ids(database, deliveries.table.c.id) == {told}
    assert bell.rung == [("bulk", old)]
    assert [row.id for row in given.rows(database, bulks.table, bulks.table.c.deleted_at.is_(None))] == [recent]
    assert (there(tmp_path, gone), there(tmp_path, kept)) == (False, True)
    assert aged.ids(database, files.table.c.id) == {kept.id}


def _swapped(state: str) -> tuple[float, str, float]:
    return OLD[0], state, OLD[1]


def _counted() -> Counter[str]:
    kinds = ("jobs", "batches", "bulks", "deliveries", "files")
    return Counter(
        {kind: int(REGISTRY.get_sample_value("stoker_retired_total", {"kind": kind}) or 0) for kind in kinds}
    )


def test_a_bulk_goes_with_its_jobs_results_and_input(
    database: Database, settings: Settings, storage: Storage, tmp_path: Path
) -> None:
    """The tender deletes what a hidden bulk consists of; the next run removes its input's bytes."""
    bell = Bell()
    source = stored(database, storage, 40 * DAY)
    given.change(database, files.table, purpose=files.BULK_INPUT)
    bulk = aged.bulk(database, *_swapped("completed"), file_id=source.id, ingest_done=True)
    lines = aged.many(database, 2, *OLD)
    for number, line in enumerate(lines):
        given.change(database, jobs.table, jobs.table.c.id == line, bulk_id=bulk, line_no=number)
        values = {"bulk_id": bulk, "seq": number, "ok": True}
        given.change(database, results.table, results.table.c.job_id == line, **values)
    mine = retiring(database, settings, storage, bell)
    assert mine.run() == Counter(bulks=1)
    assert mine.run() == Counter()
    tend_bulk(database, settings, storage, cast("Doorbell", bell), bulk)
    assert [aged.ids(database, column) for column in (*JOBS, bulks.table.c.id)] == [set()] * 4
    assert there(tmp_path, source)
    assert mine.run() == Counter(files=1)
    assert not there(tmp_path, source)


def test_many_go_in_slices(database: Database, settings: Settings, storage: Storage) -> None:
    """No transaction deletes more than its share, however many are past their time."""
    aged.many(database, 2300, *OLD)
    most = 200 if database.dialect == "sqlite" else 1000
    with slices(database) as sizes:
        assert retiring(database, settings, storage).run() == Counter(jobs=2300)
    assert sum(sizes) == 2300
    assert max(sizes) <= most
    assert sizes[0] == 25


def test_slow_slices_become_smaller() -> None:
    """Answers of megabytes take long to delete: then fewer at once, and more again when it goes quickly."""
    walk = tasks_retention._Walk(retention.JOBS, 200, 0.05)
    for _ in range(10):
        walk.took(0.001)
    assert walk.size == 200
    walk.took(0.03)
    assert walk.size == 200
    for _ in range(10):
        walk.took(1.0)
    assert walk.size == 5


@pytest.mark.parametrize("statement", ["bodies", "results", "jobs", "COMMIT"])
def test_a_run_that_is_cut_off_leaves_whole_jobs(
    database: Database, settings: Settings, storage: Storage, statement: str
) -> None:
    """Killed in the middle of any slice: each job is there with all that belongs to it, or not at all."""
    aged.many(database, 60, *OLD)
    seen = Counter[str]()

    def kill(name: str) -> None:
        seen[name] += 1
        if seen[name] == 2 and name == statement:
            raise KeyboardInterrupt

    def before(_conn: Any, _cursor: Any, text: str, *_: Any) -> None:
        if text.startswith("DELETE FROM"):
            kill(text.split()[2])

    def at_commit(_conn: Any) -> None:
        if "jobs" in seen:
            kill("COMMIT")

    mine = retiring(database, settings, storage)
    sa.event.listen(database.engine, "before_cursor_execute", before)
    sa.event.listen(database.engine, "commit", at_commit)
    try:
        with pytest.raises(KeyboardInterrupt):
            mine.run()
    finally:
        sa.event.remove(database.engine, "before_cursor_execute", before)
        sa.event.remove(database.engine, "commit", at_commit)
    left = [aged.ids(database, column) for column in JOBS]
    assert left[0] == left[1] == left[2]
    assert 0 < len(left[0]) <= 35
    assert retiring(database, settings, storage).run() == Counter(jobs=len(left[0]))


def test_two_at_once_are_harmless(database: Database, settings: Settings, storage: Storage) -> None:
    """Three processes delete each row and each file once."""
    aged.many(database, 700, *OLD)
    for _ in range(20):
        stored(database, storage, DAY, expired=60.0)
    both = [retiring(database, settings, storage) for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        done = list(pool.map(Retention.run, both))
    assert sum(one["jobs"] for one in done) == 700
    assert [aged.ids(database, column) for column in (*JOBS, files.table.c.id)] == [set()] * 4
    assert retiring(database, settings, storage).run() == Counter()


def test_nothing_goes_by_a_clock_that_is_not_trusted(database: Database, settings: Settings, storage: Storage) -> None:
    """While the sweeper gives grace or stands still, and while the watch distrusts the clock."""
    aged.many(database, 3, *OLD)
    stored(database, storage, DAY, "deleted")
    looks: list[float] = []
    mine = retiring(database, settings, storage)
    given.change(database, sweeps.table, grace_until=time.time() + 10)
    assert mine.run() == Counter()
    aged.sweeping(database)
    mine._trusts = lambda clock: bool(looks.append(clock))
    assert mine.run() == Counter()
    assert looks == [pytest.approx(time.time(), abs=5)]
    mine._trusts = lambda _: True
    assert mine.run() == Counter(jobs=3, files=1)


def test_the_setting_says_how_long(database: Database, settings: Settings, storage: Storage) -> None:
    """Jobs are kept for STOKER_RETENTION_DAYS after their end."""
    ids = [aged.job(database, 9 * DAY, ended * DAY) for ended in (1, 3, 5)]
    shorter = settings.model_copy(update={"retention_days": 4.0})
    assert retiring(database, shorter, storage).run() == Counter(jobs=1)
    assert aged.ids(database, jobs.table.c.id) == set(ids[:2])


def test_jobs_that_ended_late_are_looked_at_again(
    database: Database, settings: Settings, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a round passed over is looked at in the next one; in between only what has come behind it."""
    late = aged.job(database, 90 * DAY, DAY)
    mine = retiring(database, settings, storage)
    mine.run()
    given.change(database, jobs.table, finished_at=time.time() - 31 * DAY)
    newer = aged.job(database, 30 * DAY + 1, 30 * DAY + 1)
    given.change(database, jobs.table, jobs.table.c.id == newer, id=aged.ident("job", 30 * DAY + 0.001))
    time.sleep(0.01)
    assert mine.run() == Counter(jobs=1)
    assert aged.ids(database, jobs.table.c.id) == {late}
    monkeypatch.setattr(tasks_retention, "AROUND_EVERY", 0.0)
    assert mine.run() == Counter(jobs=1)


def test_a_run_is_bounded_and_the_next_goes_on(
    database: Database, settings: Settings, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run ends when its time is up, in the middle of a page too; the next one goes on from there."""
    aged.many(database, 5, 90 * DAY, None)
    ids = aged.many(database, 60, *OLD)
    monkeypatch.setattr(tasks_retention, "_PAGE", 7)
    # Time for a new round, but only behind the end of this one.
    monkeypatch.setattr(tasks_retention, "AROUND_EVERY", 0.0)
    mine = retiring(database, settings, storage)
    walk = next(walk for walk in mine._walks if walk.kind is retention.JOBS)
    walk._most = 3
    places, sizes = [walk.behind], list[int]()
    while not walk.whole:
        clock = chain([True, True], repeat(False))
        monkeypatch.setattr(mine, "_time", lambda _, clock=clock: lambda: next(clock))
        walk.size = 3
        sizes += mine._retire(walk, time.time() - 30 * DAY)
        places.append(walk.behind)
        assert len(places) < 60
    assert places == sorted(places)
    assert len(sizes) >= 20
    assert max(sizes) == 3
    assert not aged.ids(database, jobs.table.c.id) & set(ids)


def test_old_usage_goes_after_its_own_time(database: Database, settings: Settings, storage: Storage) -> None:
    """Slice by slice, by the setting for it, whatever is kept of jobs."""
    with database.reading() as tx:
        today = usage.day(tx)
    rows = [{"owner": "alice", "day": today - age, "model": "m", "engine": ""} for age in range(5)]
    with database.transaction() as tx:
        tx.execute(sa.insert(usage.table), [row | dict.fromkeys(usage.STATES + usage.TOKENS, 1) for row in rows])
    kept = settings.model_copy(update={"usage_days": 2.0})
    assert retiring(database, kept, storage).run() == Counter(usage=2)
    assert retiring(database, kept, storage).run() == Counter()
    assert sorted(today - row.day for row in given.rows(database, usage.table)) == [0, 1, 2]


def test_a_process_that_stops_ends_its_run(
    database: Database, settings: Settings, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind the slice that it is in."""
    aged.many(database, 60, *OLD)
    stopping = threading.Event()
    aged.sweeping(database)
    mine = Retention(database, settings, storage, cast("Doorbell", Bell()), lambda _: True, stopping)
    really = retention.retire

    def retire(tx: sa.Connection, kind: Kind, ids: Sequence[str], before: float) -> Sequence[str]:
        stopping.set()
        return really(tx, kind, ids, before)

    monkeypatch.setattr(retention, "retire", retire)
    assert mine.run() == Counter(jobs=25)


def test_a_file_that_an_open_bulk_reads_stays(
    database: Database, settings: Settings, storage: Storage, tmp_path: Path
) -> None:
    """Deleted or expired, its bytes go when the last line was read."""
    deleted = stored(database, storage, DAY, "deleted")
    expired = stored(database, storage, DAY, expired=60.0)
    for row in (deleted, expired):
        aged.bulk(database, 60.0, "running", kind="batch", file_id=row.id)
    mine = retiring(database, settings, storage)
    assert mine.run() == Counter()
    with database.reading() as tx:
        assert files.get(tx, "alice", expired.id, in_use=True).key == expired.key
    assert there(tmp_path, deleted)
    assert there(tmp_path, expired)
    given.change(database, bulks.table, ingest_done=True)
    assert mine.run() == Counter(files=2)
    assert not there(tmp_path, expired)


def test_half_written_files_are_swept(database: Database, settings: Settings, storage: Storage, tmp_path: Path) -> None:
    """What a crash left goes an hour after the longest upload; what may still be written to stays."""
    old = stored(database, storage, settings.upload_timeout + 3700, "uploading")
    young = stored(database, storage, settings.upload_timeout + 3500, "uploading")
    never = aged.file(database, settings.upload_timeout + 3700, "uploading")
    assert retiring(database, settings, storage).run() == Counter(files=2)
    assert (there(tmp_path, old), there(tmp_path, young)) == (False, True)
    assert aged.ids(database, files.table.c.id) == {young.id}
    assert never != young.id


def test_a_crash_between_the_bytes_and_the_row_is_mended(
    database: Database, settings: Settings, storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row is still there: the next run removes nothing, and forgets it."""
    row = stored(database, storage, DAY, "deleted")
    with monkeypatch.context() as patch:
        patch.setattr(files, "forget", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            retiring(database, settings, storage).run()
    assert not there(tmp_path, row)
    assert aged.ids(database, files.table.c.id) == {row.id}
    assert retiring(database, settings, storage).run() == Counter(files=1)


def test_files_wait_for_a_storage_that_is_away(
    database: Database, settings: Settings, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows stay, nothing else is held up, and the next run takes the files."""
    rows = [stored(database, storage, DAY, "deleted") for _ in range(3)]
    aged.many(database, 3, *OLD)
    mine = retiring(database, settings, storage)
    asked: list[str] = []

    def away(key: str) -> None:
        asked.append(key)
        raise StorageUnavailable("no route")

    with monkeypatch.context() as patch:
        patch.setattr(storage, "delete", away)
        assert mine.run() == Counter(jobs=3)
    assert asked == [rows[0].key]
    assert mine.run() == Counter(files=3)


def test_one_bad_file_holds_up_no_other(
    database: Database, settings: Settings, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run ends at it, the next one goes on behind it, and it is tried again after the last."""
    rows = [stored(database, storage, DAY, "deleted") for _ in range(4)]
    really = storage.delete
    bad = rows[1].key

    def delete(key: str) -> None:
        if key == bad:
            raise StorageUnavailable("permission denied")
        really(key)

    monkeypatch.setattr(storage, "delete", delete)
    mine = retiring(database, settings, storage)
    assert [mine.run() for _ in range(3)] == [Counter(files=1), Counter(files=2), Counter()]
    monkeypatch.setattr(storage, "delete", really)
    assert mine.run() == Counter(files=1)


def test_a_clock_is_watched_before_it_is_trusted() -> None:
    """For a while after the start, and for longer after a jump, however small the rest of the time went."""
    steady, wall = [0.0], [1000.0]
    watch = ClockWatch(lambda: steady[0], lambda: wall[0])

    def later(seconds: float, jump: float = 0.0) -> bool:
        steady[0] += seconds
        wall[0] += seconds + jump
        return watch.trusts(wall[0])

    assert not later(0.0)
    assert not later(AT_FIRST - 1)
    assert later(1.0)
    assert later(60.0, jump=0.5)
    assert not later(60.0, jump=365 * DAY)
    assert not later(AFTER_JUMP - 1)
    assert later(1.0)
    assert not later(60.0, jump=-7200.0)


@pytest.mark.parametrize("apart", [-DAY, DAY])
def test_a_database_with_another_clock_is_not_believed(apart: float) -> None:
    """Its machine's clock and ours cannot both be right."""
    steady = [0.0]
    watch = ClockWatch(lambda: steady[0], lambda: 1e9)
    assert not watch.trusts(1e9 + apart)
    steady[0] = AT_FIRST + AFTER_JUMP
    assert not watch.trusts(1e9 + apart + steady[0])


@examples(st.lists(st.tuples(st.floats(0.0, 400.0), st.sampled_from([0.0, 0.1, -0.1, 3600.0, -3600.0, 3e7]))))
@example([(AT_FIRST, 0.0), (AT_FIRST, 3600.0), (AFTER_JUMP, 0.0)])
def test_no_jump_is_ever_followed_by_trust_at_once(steps: list[tuple[float, float]]) -> None:
    """Between a jump of the clock and the next deletion lies the time that an operator has to notice."""
    now, wall, jumped = 0.0, 1e9, 0.0
    watch = ClockWatch(lambda: now, lambda: wall)
    first = None
    for seconds, jump in steps:
        now, wall = now + seconds, wall + seconds + jump
        trusted = watch.trusts(wall)
        if abs(jump) > clockwatch.MOST_JUMP and first is not None:
            jumped = now + AFTER_JUMP
        first = now if first is None else first
        assert trusted == (now >= max(first + AT_FIRST, jumped))


def test_the_steady_clock_goes_on() -> None:
    """It is one that the machine has."""
    assert clockwatch.steady() <= clockwatch.steady()


def test_a_run_under_way_is_not_joined_by_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """One run at a time in a process; the message that comes meanwhile is done with."""
    monkeypatch.setattr(tasks_retention, "_retention", lambda: pytest.fail("a second run began"))
    with tasks_retention._retaining:
        tasks_retention.retain()
    with pytest.raises(pytest.fail.Exception):
        tasks_retention.retain()
    assert not tasks_retention._retaining.locked()


def test_beat_asks_for_it_where_bulks_are_tended(settings: Settings) -> None:
    """Not the collector's process: what is late is not worth doing."""
    conf = make_app(settings).conf
    entry = conf.beat_schedule["retain"]
    assert entry["task"] == tasks_retention.retain.name
    assert entry["options"]["expires"] <= entry["schedule"]
    assert conf.task_routes["tasks.retention.*"] == conf.task_routes["tasks.bulks.*"]
