"""Retention: nothing open goes, nothing before its time, and all that is past it; asked again under the lock."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, settings
from hypothesis import given as examples
from hypothesis import strategies as st

from models import batches, bulks, deliveries, files, jobs, results, retention, sweeps
from models.db import Database, new_id
from models.errors import NotFound
from models.retention import BATCHES, BULKS, BULKS_OF_OPENAI, DELIVERIES, JOBS, KINDS, Kind
from models.states import BATCH, BULK, JOB
from tests.models import aged, given
from tests.models.aged import DAY

KEPT = 30 * DAY
AGES = st.sampled_from([0.0, DAY, KEPT - 600, KEPT + 600, 90 * DAY])
HELD = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


def emptied(database: Database) -> None:
    """Delete whatever an example before left."""
    with database.transaction() as tx:
        for table in (
            jobs.table,
            jobs.bodies,
            results.table,
            deliveries.table,
            bulks.table,
            batches.table,
            files.table,
        ):
            tx.execute(sa.delete(table))


def walked(database: Database, kind: Kind, size: int, slices: int = 1000) -> set[str]:
    """Go once along all ids of a kind, ending what is past its time; return what was ended."""
    before, behind, gone = time.time() - KEPT, kind.start, set[str]()
    while True:
        with database.reading() as tx:
            page = retention.page(tx, kind, behind, before, size)
        assert len(page.ids) <= size or page.whole
        for first in range(0, len(page.ids), slices):
            with database.transaction() as tx:
                gone.update(retention.retire(tx, kind, page.ids[first : first + slices], before))
        if page.whole:
            return gone
        assert page.upto > behind
        behind = page.upto


@st.composite
def _lives(draw: st.DrawFn, final: frozenset[str], still: frozenset[str]) -> tuple[float, str, float | None]:
    """Return (age, state, seconds since the end)."""
    age, state = draw(AGES), draw(st.sampled_from(sorted(final | still)))
    return age, state, min(age, draw(AGES)) if state in final else None


@HELD
@examples(
    lives=st.lists(
        st.tuples(
            _lives(JOB.final, JOB.open),
            st.sampled_from(["", "kept", "gone"]),
            st.sampled_from(["", "pending", "sending", "delivered", "failed"]),
        ),
        max_size=12,
    ),
    size=st.integers(1, 5),
    slices=st.integers(1, 3),
)
def test_the_jobs_that_go_are_those_of_a_naive_look(
    database: Database, lives: list[tuple[tuple[float, str, float | None], str, str]], size: int, slices: int
) -> None:
    """Ended longer ago than they are kept, no bulk that still has them, no event on its way: those go, and no other."""
    emptied(database)
    kept = aged.bulk(database, 0.0, "running")
    expected, everything = set[str](), set[str]()
    for number, ((age, state, ended), bulk, event) in enumerate(lives):
        bulk_id = {"": None, "kept": kept, "gone": "bulk_gone"}[bulk]
        line = {"bulk_id": bulk_id, "line_no": number if bulk_id else None}
        job_id = aged.job(database, age, ended, state=state, notify=bool(number % 2), **line)
        everything.add(job_id)
        if event:
            aged.delivery(database, job_id, ended or 0.0, event)
        if ended is not None and ended > KEPT and bulk != "kept" and event not in {"pending", "sending"}:
            expected.add(job_id)
    # However that came about: what is open stays.
    given.change(database, jobs.table, jobs.OPEN, finished_at=1.0)
    assert walked(database, JOBS, size, slices) == expected
    assert aged.ids(database, jobs.table.c.id) == everything - expected
    assert walked(database, JOBS, size) == set()


@HELD
@examples(
    lives=st.lists(
        st.tuples(
            _lives(BULK.final, BULK.open),
            st.sampled_from(["bulk", "batch"]),
            st.sampled_from(["", "hidden", "pending", "delivered", "retried", "retry read it"]),
        ),
        max_size=8,
    ),
    size=st.integers(1, 3),
)
def test_the_bulks_that_go_are_those_of_a_naive_look(
    database: Database, lives: list[tuple[tuple[float, str, float | None], str, str]], size: int
) -> None:
    """Ended longer ago than they are kept, no event on its way, no retry that still reads their lines."""
    emptied(database)
    expected = set[str]()
    for (age, state, ended), kind, more in lives:
        dry = {"dry_run": state == "completed"}
        bulk_id = aged.bulk(database, age, state, ended, kind=kind, deleted_at=1.0 if more == "hidden" else None, **dry)
        if more in {"pending", "delivered"}:
            aged.delivery(database, bulk_id, ended or 0.0, more)
        if more.startswith("retr"):
            aged.bulk(database, 0.0, "running", retry_of=bulk_id, ingest_done=more == "retry read it")
        if ended is not None and ended > KEPT and more not in {"hidden", "pending", "retried"}:
            expected.add(bulk_id)
    assert walked(database, BULKS, size) | walked(database, BULKS_OF_OPENAI, size) == expected
    hidden = {row.id for row in given.rows(database, bulks.table, bulks.table.c.deleted_at > 1.0)}
    assert hidden == expected


@HELD
@examples(lives=st.lists(_lives(BATCH.final, BATCH.open), max_size=8), size=st.integers(1, 3))
def test_the_batches_that_go_are_those_of_a_naive_look(
    database: Database, lives: list[tuple[float, str, float | None]], size: int
) -> None:
    """A batch that ended longer ago than results are kept is of no use to anybody."""
    emptied(database)
    made = {aged.batch(database, age, state, ended): ended for age, state, ended in lives}
    expected = {batch_id for batch_id, ended in made.items() if ended is not None and ended > KEPT}
    assert walked(database, BATCHES, size) == expected
    assert aged.ids(database, batches.table.c.id) == set(made) - expected


@HELD
@examples(
    lives=st.lists(st.tuples(AGES, st.sampled_from(["pending", "sending", "delivered", "failed", "noted"])), max_size=8)
)
def test_the_deliveries_that_go_are_those_of_a_naive_look(database: Database, lives: list[tuple[float, str]]) -> None:
    """Those of bulks, and of jobs that are gone, go by their own age, once they have ended."""
    emptied(database)
    made = {aged.delivery(database, f"bulk_{nth}", age, state): (age, state) for nth, (age, state) in enumerate(lives)}
    expected = {
        ident for ident, (age, state) in made.items() if age > KEPT and state in {"delivered", "failed", "noted"}
    }
    assert walked(database, DELIVERIES, 3) == expected
    assert aged.ids(database, deliveries.table.c.id) == set(made) - expected


FILES = st.tuples(
    st.sampled_from([0.0, 7000.0, 7400.0, 90 * DAY]),
    st.sampled_from(["uploading", "ready", "deleted"]),
    st.sampled_from([None, -60.0, 60.0]),
    st.sampled_from(["", "reads", "has read", "ended", "hidden"]),
)


@HELD
@examples(lives=st.lists(FILES, max_size=8), limit=st.integers(1, 3))
def test_the_files_that_go_are_those_of_a_naive_look(
    database: Database, lives: list[tuple[float, str, float | None, str]], limit: int
) -> None:
    """Deleted, expired and half-written ones are hidden; their bytes may go once no open bulk reads them."""
    emptied(database)
    bulk_of = {
        "reads": {"state": "running"},
        "has read": {"state": "running", "ingest_done": True},
        "ended": {"state": "failed"},
        "hidden": {"state": "running", "deleted_at": 1.0},
    }
    hidden, removable = set[str](), set[str]()
    for age, state, expired, reader in lives:
        file_id = aged.file(database, age, state, expired)
        if reader:
            aged.bulk(database, 0.0, file_id=file_id, **bulk_of[reader])
        left = state == "uploading" and age > 7200
        if state == "deleted" or left or (state == "ready" and expired == 60.0):
            hidden.add(file_id)
            removable |= {file_id} if reader != "reads" else set()
    _hide_all(database, limit)
    assert {row.id for row in given.rows(database, files.table, files.table.c.state == "deleted")} == hidden
    assert [row.id for row in _removable(database, limit)] == sorted(removable, key=lambda one: _place(database, one))


def _hide_all(database: Database, limit: int) -> None:
    clock = time.time()
    while True:
        with database.transaction() as tx:
            fading = retention.fading(tx, clock, 7200.0, limit)
            assert len(fading) <= 2 * limit
            if not fading:
                return
            assert retention.hide(tx, fading, clock, 7200.0) == len(fading)


def _removable(database: Database, limit: int) -> Iterator[sa.Row[tuple[str, str, float]]]:
    behind = (-1.0, "")
    while True:
        with database.reading() as tx:
            rows = retention.removable(tx, behind, limit)
        if not rows:
            return
        yield from rows
        behind = (rows[-1].created_at, rows[-1].id)


def _place(database: Database, file_id: str) -> tuple[float, str]:
    (row,) = given.rows(database, files.table, files.table.c.id == file_id)
    return row.created_at, row.id


def test_all_that_belongs_to_a_job_goes_with_it(database: Database) -> None:
    """Body, result, deliveries and their tries of the old job; those of another stay."""
    old, young = aged.job(database, 40 * DAY, 31 * DAY), aged.job(database, 40 * DAY, 29 * DAY)
    for job_id in (old, young):
        tried = {"delivery_id": aged.delivery(database, job_id, 31 * DAY), "at": 1.0, "latency_ms": 1, "try": 1}
        with database.transaction() as tx:
            tx.execute(sa.insert(deliveries.tries).values(tried))
    assert walked(database, JOBS, 10) == {old}
    for column in (jobs.table.c.id, jobs.bodies.c.job_id, results.table.c.job_id, deliveries.table.c.job_id):
        assert aged.ids(database, column) == {young}
    assert aged.ids(database, deliveries.tries.c.delivery_id) == aged.ids(database, deliveries.table.c.id)


def test_what_is_no_longer_due_is_not_ended(database: Database) -> None:
    """Between the look and the deletion an event was sent again: the job waits for it."""
    job_id = aged.job(database, 40 * DAY, 31 * DAY, notify=True)
    aged.delivery(database, job_id, 31 * DAY)
    before = time.time() - KEPT
    with database.reading() as tx:
        page = retention.page(tx, JOBS, JOBS.start, before, 10)
    assert page.ids == [job_id]
    given.change(database, deliveries.table, state="pending")
    with database.transaction() as tx:
        assert retention.retire(tx, JOBS, page.ids, before) == []
    assert aged.ids(database, jobs.bodies.c.job_id) == {job_id}


def test_a_file_that_is_finished_in_time_is_not_hidden(database: Database) -> None:
    """An upload that ends between the look and the hiding stays; one that was hidden cannot be finished any more."""
    slow, slower = aged.file(database, 9000.0, "uploading"), aged.file(database, 9000.0, "uploading")
    clock = time.time()
    with database.transaction() as tx:
        fading = retention.fading(tx, clock, 7200.0, 10)
        files.finish(tx, slow, filename="f", purpose="batch", size=1, expires_in=None)
        assert retention.hide(tx, fading, clock, 7200.0) == 1
        assert files.get(tx, "alice", slow).state == "ready"
        with pytest.raises(NotFound):
            files.finish(tx, slower, filename="f", purpose="batch", size=1, expires_in=None)


def test_rows_that_another_is_ending_are_left_to_it(postgres_database: Database) -> None:
    """Two processes at once do not wait for each other."""
    ids = aged.many(postgres_database, 4, 40 * DAY, 31 * DAY)
    before = time.time() - KEPT
    with postgres_database.transaction() as mine:
        assert retention.retire(mine, JOBS, ids[:3], before) == ids[:3]
        with postgres_database.transaction() as other:
            assert retention.retire(other, JOBS, ids, before) == ids[3:]
    assert aged.ids(postgres_database, jobs.table.c.id) == set()


def test_a_page_reads_no_more_than_it_was_told_to(database: Database) -> None:
    """Rows that are passed over count as well: no statement reads a million of them."""
    late = aged.many(database, 5, 40 * DAY, 1 * DAY)
    old = aged.many(database, 3, 39 * DAY, 35 * DAY)
    before = time.time() - KEPT
    with database.reading() as tx:
        first = retention.page(tx, JOBS, JOBS.start, before, 5)
        assert (first.ids, first.upto, first.whole) == ([], late[-1], False)
        second = retention.page(tx, JOBS, first.upto, before, 5)
        assert (second.ids, second.whole) == (old, True)
        assert retention.page(tx, JOBS, second.upto, before, 5).ids == []


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind.name}-{kind.prefix}")
def test_ids_are_bounded_by_the_time_in_them(kind: Kind) -> None:
    """The bound of a moment lies behind all ids that were made before it, and before all that are made later."""
    made = new_id(kind.prefix)
    clock = time.time()
    assert kind.start < kind.bound(clock - 60) < made < kind.bound(clock + 60)
    assert kind.start < kind.bound(0.0) < kind.bound(-5.0) + "0"


def test_there_is_no_clock_without_a_sweeper(database: Database) -> None:
    """Before the first sweep, behind a gap or a jump, and in the grace that follows, nothing is deleted."""
    clock = time.time()
    with database.transaction() as tx:
        assert retention.clock(tx) is None
    aged.sweeping(database)
    with database.transaction() as tx:
        assert retention.clock(tx) == pytest.approx(clock, abs=5)
    for changed in ({"last_at": clock - 60}, {"last_at": clock + 60}, {"grace_until": clock + 10}):
        aged.sweeping(database)
        given.change(database, sweeps.table, **changed)
        with database.transaction() as tx:
            assert retention.clock(tx) is None
