"""Bulks: counts and result numbers under concurrency, leases, and the duty that a row names."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
import sqlalchemy as sa
from hypothesis import given as property_of
from hypothesis import strategies as st

from models import bulk_leases, bulk_lines, bulk_results, bulks, ends, jobs
from models.bulk_leases import duty, outcome
from models.bulk_lines import EndedLine, NewLine
from models.bulks import NewBulk
from models.db import AnyRow, Database
from models.ends import Settled
from models.errors import AlreadyFinished, NotFound, StillRunning
from models.results import NewResult
from models.states import BULK
from tests.models import given

CHAT = "/v1/chat/completions"


def made(database: Database, lines: int = 0, **fields: Any) -> AnyRow:
    """Store a running bulk with so many queued lines."""
    with database.transaction() as tx:
        row = bulks.create(tx, NewBulk(**{"owner": "alice", "kind": "bulk", "lane": "bulk", **fields}))
        (row,) = bulks.move(tx, "running", bulks.table.c.id == row.id)
        new = [NewLine(number, f"n{number}", "fake", CHAT, '{"a":"\\t\\\\"}', 1) for number in range(1, lines + 1)]
        insert(tx, row, new)
        values = {"total": lines, "ingest_done": True}
        tx.execute(sa.update(bulks.table).where(bulks.table.c.id == row.id).values(values))
    return look(database, row.id)


def insert(tx: sa.Connection, row: AnyRow, lines: Sequence[NewLine]) -> None:
    """Store lines as queued jobs in the lane `bulk`."""
    bulk_lines.insert(tx, bulk_lines.rows(tx.dialect.name, row, "bulk", lines, time.time()))


def look(database: Database, bulk_id: str) -> AnyRow:
    """Return a bulk with the clock."""
    with database.reading() as tx:
        row = bulk_leases.look(tx, bulk_id)
    assert row is not None
    return row


def running(database: Database, bulk_id: str, batch: str = "batch_1") -> list[str]:
    """Bring all queued lines of a bulk to where they run; return their ids."""
    mine = jobs.table.c.bulk_id == bulk_id
    with database.transaction() as tx:
        jobs.move(tx, "batched", mine, sources=["queued"], batch_id=batch)
        moved = jobs.move(tx, "running", mine, jobs.table.c.batch_id == batch, sources=["batched"])
    return sorted(row.id for row in moved)


def test_lines_are_stored_byte_for_byte(database: Database) -> None:
    """Whatever COPY would read as its own signs is escaped."""
    row = made(database)
    odd = '{"a":"\\\\n\\t","b":"\t \r \\N \x1f é \U0001f525"}'
    with database.transaction() as tx:
        line = NewLine(1, "\\N\tid\nwith\\all", "fake", CHAT, odd, 3, '{"x":"\\."}', 2**63 - 1)
        insert(tx, row, [line, NewLine(2, None, "fake", CHAT, "{}", 3)])
    (first, second) = given.rows(database, jobs.table, jobs.table.c.bulk_id == row.id)
    assert (first.custom_id, first.line_no, second.custom_id) == ("\\N\tid\nwith\\all", 1, None)
    assert (first.tokens, first.prefix, second.prefix) == (3, 2**63 - 1, 0)
    (body,) = given.rows(database, jobs.bodies, jobs.bodies.c.job_id == first.id)
    assert (body.body, body.columns, body.metadata) == (odd, '{"x":"\\."}', None)


def test_a_line_becomes_a_job_once(database: Database) -> None:
    """The last guard, below all others: its number is unique in its bulk."""
    row = made(database, 2)
    with pytest.raises(sa.exc.IntegrityError), database.transaction() as tx:
        insert(tx, row, [NewLine(2, None, "fake", CHAT, "{}", 1)])


def test_results_become_visible_in_their_order(postgres_database: Database) -> None:
    """A reader that saw a result has seen all with a smaller number, however several engines commit."""
    database = postgres_database
    row = made(database, 400)
    ids = running(database, row.id)
    chunks = [ids[start : start + 20] for start in range(0, 400, 20)]
    stop, seen = threading.Event(), []

    def settle(part: list[list[str]]) -> None:
        for chunk in part:
            outcomes = [Settled(job_id, "succeeded", NewResult(200, "{}")) for job_id in chunk]
            with database.transaction() as tx:
                ends.settle(tx, "engine", {"batch_1": outcomes})
                tx.execute(sa.text("SELECT pg_sleep(0.002)"))

    def read() -> None:
        after = 0
        while not stop.is_set() or after < 400:
            with database.reading() as tx:
                found = [one.seq for one in bulk_results.page(tx, row.id, ok=True, after=after, limit=7)]
            assert found == list(range(after + 1, after + 1 + len(found)))
            seen.extend(found)
            after += len(found)

    reader = threading.Thread(target=read)
    reader.start()
    given.together([lambda part=chunks[nth::4]: settle(part) for nth in range(4)])
    stop.set()
    reader.join(60)
    assert seen == list(range(1, 401))
    assert look(database, row.id).done == 400


def test_a_result_of_two_bulks_in_one_commit_counts_on_both(database: Database) -> None:
    """Jobs of several bulks, and of none, may share a batch."""
    first, second = made(database, 2), made(database, 1)
    (alone,) = given.submitted(database)
    ids = [*running(database, first.id), *running(database, second.id)]
    with database.transaction() as tx:
        jobs.move(tx, "batched", jobs.table.c.id == alone, batch_id="batch_1")
        jobs.move(tx, "running", jobs.table.c.id == alone)
        outcomes = [Settled(job_id, "succeeded", NewResult(200, "{}")) for job_id in [*ids, alone]]
        assert len(ends.settle(tx, "engine", {"batch_1": outcomes})) == 4
    assert (look(database, first.id).done, look(database, second.id).done) == (2, 1)


def test_every_way_to_end_counts_once(database: Database) -> None:
    """Succeeded, failed, cancelled one by one, expired and unreadable lines: the counts are those of the results."""
    row = made(database, 6)
    good, bad, *rest = running(database, row.id)
    with database.transaction() as tx:
        failed = Settled(bad, "failed", NewResult(400, code="bad", message="no"))
        ends.settle(tx, "engine", {"batch_1": [Settled(good, "succeeded", NewResult(200, "{}")), failed]})
        ends.settle(tx, "engine", {"batch_1": [Settled(good, "failed", NewResult(500))]})  # too late
        ends.cancel(tx, "alice", rest[0])
        bulk_lines.end_slice(tx, row.id, "expired", 0, 2)
        bulk_lines.end_slice(tx, row.id, "cancelled", 0, 100)
        bulk_lines.end_unread(tx, row.id, [EndedLine(7, None, "failed", "invalid_json_line", "no JSON")])
    row = look(database, row.id)
    assert (row.succeeded, row.failed, row.cancelled, row.expired, row.invalid) == (1, 2, 2, 2, 1)
    assert row.done == 7
    with database.reading() as tx:
        fine = bulk_results.page(tx, row.id, ok=True, after=0, limit=10)
        rest_of = bulk_results.page(tx, row.id, ok=False, after=0, limit=10, details=True)
    assert sorted(one.seq for one in [*fine, *rest_of]) == list(range(1, 8))
    assert sorted(one.error_code for one in rest_of) == sorted(
        ["bad", "cancelled", "cancelled", "expired", "expired", "invalid_json_line"]
    )


def test_only_one_holds_a_bulk(database: Database) -> None:
    """Of many that try at once; and a lease that ran out is free."""
    row = made(database)

    def hold(me: str) -> bool:
        with database.transaction() as tx:
            return bulk_leases.hold(tx, row.id, me, 60.0) is not None

    assert sum(given.together([lambda me=f"t{n}": hold(me) for n in range(6)])) == 1
    given.change(database, bulks.table, lease_until=time.time() - 5)
    assert hold("late")
    assert not hold("later")


def test_another_owner_sees_no_bulk(database: Database) -> None:
    """Not by its id, not in lists, and cannot change it."""
    row = made(database)
    with database.transaction() as tx:
        assert bulks.page(tx, "mallory") == ([], False)
        for verb in (bulks.get, bulks.cancel, bulks.delete):
            with pytest.raises(NotFound):
                verb(tx, "mallory", row.id)
        with pytest.raises(NotFound):
            bulks.steer(tx, "mallory", row.id, paused=True)


def test_what_has_ended_is_not_changed(database: Database) -> None:
    """Cancelled twice is fine; a completed one refuses; only an ended one can be deleted."""
    row, other = made(database), made(database)
    with database.transaction() as tx:
        with pytest.raises(StillRunning):
            bulks.delete(tx, "alice", row.id)
        assert bulks.cancel(tx, "alice", row.id).state == "cancelling"
        assert bulks.cancel(tx, "alice", row.id).state == "cancelling"
        bulks.move(tx, "cancelled", bulks.table.c.id == row.id)
        assert bulks.cancel(tx, "alice", row.id).state == "cancelled"
        bulks.move(tx, "finalizing", bulks.table.c.id == other.id)
        bulks.move(tx, "completed", bulks.table.c.id == other.id)
        for change in (bulks.cancel, lambda *who: bulks.steer(*who, paused=True)):
            with pytest.raises(AlreadyFinished):
                change(tx, "alice", other.id)
        bulks.delete(tx, "alice", other.id)
        with pytest.raises(NotFound):
            bulks.get(tx, "alice", other.id)


def test_bulks_are_listed_newest_first_by_pages(database: Database) -> None:
    """Of both kinds together and of one alone, with tags."""
    ids = [
        made(database, kind=kind, metadata={"run": str(n % 2)}).id
        for n, kind in enumerate(["bulk", "batch", "bulk", "batch", "bulk"])
    ]
    with database.reading() as tx:
        rows, more = bulks.page(tx, "alice", limit=3)
        assert ([row.id for row in rows], more) == (ids[:1:-1], True)
        rows, more = bulks.page(tx, "alice", after=ids[2], limit=3)
        assert ([row.id for row in rows], more) == ([ids[1], ids[0]], False)
        rows, more = bulks.page(tx, "alice", kind="batch", limit=1)
        assert ([row.id for row in rows], more) == ([ids[3]], True)
        rows, _ = bulks.page(tx, "alice", tags={"run": "1"})
        assert [row.id for row in rows] == [ids[3], ids[1]]


def test_a_slice_follows_the_lines(database: Database) -> None:
    """The front of the queue goes first, whatever the ids; what is in a batch keeps its lane."""
    row = made(database, 10)
    with database.transaction() as tx:
        jobs.move(tx, "batched", jobs.table.c.line_no == 2, batch_id="batch_1")
        assert bulk_lines.relane_slice(tx, row.id, "paused", 0, 4) == 5
        assert bulk_lines.relane_slice(tx, row.id, "paused", 5, 100) == 10
        assert bulk_lines.relane_slice(tx, row.id, "paused", 0, 100) is None
    lanes = {job.line_no: job.lane for job in given.rows(database, jobs.table)}
    assert lanes == {n: "bulk" if n == 2 else "paused" for n in range(1, 11)}


ROW = {
    "state": st.sampled_from(sorted(BULK.states)),
    "kind": st.sampled_from(["bulk", "batch"]),
    "dry_run": st.booleans(),
    "deleted_at": st.sampled_from([None, 1.0]),
    "ingest_done": st.booleans(),
    "total": st.integers(0, 50),
    "done": st.integers(0, 50),
    "failed": st.integers(0, 50),
    "lane": st.sampled_from(["bulk", "standard"]),
    "lane_applied": st.sampled_from(["bulk", "standard", "paused"]),
    "paused_at": st.sampled_from([None, 1.0]),
    "expires_at": st.sampled_from([None, 1.0, 9.0]),
    "in_progress_at": st.sampled_from([None, 1.0]),
    "stop_after_failed": st.sampled_from([None, 0.1, 1.0]),
    "clock": st.just(5.0),
}


@property_of(st.fixed_dictionaries(ROW))
def test_a_bulk_that_has_ended_needs_nobody_and_no_other_is_stuck(values: dict[str, Any]) -> None:
    """Every open bulk has a duty, or waits for jobs that are still to end."""
    values["done"] = min(values["done"], values["total"])
    values["failed"] = min(values["failed"], values["done"])
    if values["state"] in {"running", "finalizing"}:
        values["in_progress_at"] = 1.0
    row = cast("AnyRow", SimpleNamespace(**values))
    what = duty(row)
    if values["deleted_at"] is not None:
        assert what == "delete"
    elif values["state"] in BULK.final:
        assert what is None
    elif what is None:
        assert values["state"] == "running"
        assert values["ingest_done"]
        assert values["total"] > values["done"]


@pytest.mark.parametrize(
    ("state", "errors", "expired", "end"),
    [
        ("finalizing", None, 0, "completed"),
        ("finalizing", None, 1, "expired"),
        ("finalizing", [{}], 1, "failed"),
        ("cancelling", None, 1, "cancelled"),
        ("cancelling", [{}], 0, "failed"),
    ],
)
def test_how_a_bulk_ends(state: str, errors: Any, expired: int, end: str) -> None:
    """By its state, its errors, and whether lines expired."""
    row = cast("AnyRow", SimpleNamespace(state=state, errors=errors, expired=expired))
    assert outcome(row) == end
    assert end in BULK.steps[state]


def test_a_webhook_tells_of_a_bulks_end_once(database: Database) -> None:
    """Written with the end itself, under the bulk's id."""
    from models import events, owed, sending

    row = made(database, webhook_url="http://127.0.0.1:1/hook")
    with database.transaction() as tx:
        (held,) = bulks.move(tx, "finalizing", bulks.table.c.id == row.id)
        (ended,) = bulks.move(tx, "completed", bulks.table.c.id == row.id)
        assert held.id == ended.id
        bulks.announce(tx, ended)
    with database.transaction() as tx:
        ((delivery,),) = sending.claim(tx, owed.due(tx, 5), 30.0)
        told = events.endings(tx, [delivery])[row.id]
    assert (delivery.event, delivery.job_id) == ("bulk.completed", row.id)
    assert (told.state, told.counts) == (
        "completed",
        {"total": 0, "succeeded": 0, "failed": 0, "cancelled": 0, "expired": 0},
    )
