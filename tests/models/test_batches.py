"""Batches: gathered once, claimed by one, renewed, finished, given back."""

from __future__ import annotations

import time
from functools import partial

import pytest

from models import batches, ends, jobs
from models.db import Database, new_id
from models.engines import Incarnation
from tests.models import given

CUT = batches.Cut("fake", "standard", 1, "full", (), 1)


def state(database: Database, batch_id: str) -> str:
    """Return a batch's state."""
    (found,) = given.rows(database, batches.table, batches.table.c.id == batch_id)
    return str(found.state)


def claim(
    database: Database, mine: Incarnation, ranks: tuple[int, ...] = (0, 1, 2), *, idle: bool = True
) -> str | None:
    """Claim and return the batch's id, None when there is none to claim."""
    got = database.retrying(lambda tx: batches.claim(tx, mine, ranks, 15.0, idle=idle))
    return None if got is None else got.id


def test_gather_takes_what_is_still_queued(database: Database) -> None:
    """Jobs that were cancelled since they were looked at are left out; of none, no batch is made."""
    gone, first, second = given.submitted(database, 3)
    with database.transaction() as tx:
        ends.cancel(tx, "alice", gone)
    batch_id = given.cut(database, [gone, first, second])
    (row,) = given.rows(database, batches.table)
    assert (row.id, row.state, row.size) == (batch_id, "ready", 2)
    assert given.states(database, [gone, first, second]) == ["cancelled", "batched", "batched"]
    with database.transaction() as tx:
        assert batches.gather(tx, batches.Cut("fake", "standard", 1, "full", [gone, first], 1)) is None
    assert len(given.rows(database, batches.table)) == 1


def test_claim_starts_every_job_under_a_lease(database: Database) -> None:
    """The rows run, with one attempt more; the worker gets the bodies in queue order and the time that is left."""
    mine = given.engine(database)
    ids = [*given.submitted(database, 2, body='{"n": 1}'), *given.submitted(database, expires_in=60.0)]
    batch_id = given.cut(database, list(reversed(ids)))
    got = given.claimed(database, mine, lease=15.0)
    assert (got.id, got.model, got.lane, got.cohort) == (batch_id, "fake", "standard", None)
    assert [job.id for job in got.jobs] == ids
    assert got.jobs[0].body == '{"n": 1}'
    assert got.jobs[0].left is None
    assert got.jobs[2].left == pytest.approx(60, abs=5)
    assert {row.state for row in given.rows(database, jobs.table)} == {"running"}
    assert [row.attempts for row in given.rows(database, jobs.table)] == [1, 1, 1]
    (row,) = given.rows(database, batches.table)
    assert (row.state, row.engine_id, row.incarnation) == ("running", "engine", mine.id)
    assert row.lease_until == pytest.approx(time.time() + 15, abs=5)


@pytest.mark.parametrize("engines", [1, 6])
def test_of_many_claims_at_once_none_gets_a_batch_twice(database: Database, engines: int) -> None:
    """Six threads, of one engine or of six, take fifteen batches: each once, each job one attempt."""
    mine = [given.engine(database, f"engine{nth}") for nth in range(engines)]
    made = [given.cut(database, given.submitted(database, 4)) for _ in range(15)]

    def work(me: Incarnation) -> list[str]:
        got = []
        while (batch_id := claim(database, me)) is not None:
            got.append(batch_id)
        return got

    taken = given.together([partial(work, mine[nth % engines]) for nth in range(6)])
    assert sorted(batch_id for some in taken for batch_id in some) == sorted(made)
    assert {row.attempts for row in given.rows(database, jobs.table)} == {1}


def test_the_best_batch_is_the_highest_lane_then_the_oldest(database: Database) -> None:
    """Realtime goes before bulk, though it came later; within a lane, first come first served."""
    mine = given.engine(database)
    bulk, older, newer, realtime = (given.cut(database, given.submitted(database), rank=rank) for rank in (2, 1, 1, 0))
    assert [claim(database, mine) for _ in range(5)] == [realtime, older, newer, bulk, None]


def test_only_lanes_with_room_and_served_models_are_claimed(database: Database) -> None:
    """An engine takes no batch of a lane that it has no room for, nor of a model that it does not serve."""
    mine = given.engine(database)
    given.cut(database, given.submitted(database, model="other"), model="other")
    given.cut(database, given.submitted(database))
    assert claim(database, mine, ranks=(0,)) is None
    assert claim(database, mine) is not None
    assert claim(database, mine) is None
    with database.reading() as tx:
        assert not batches.claimable(tx, "engine")


def test_a_cohort_goes_first_and_only_to_its_idle_engine(database: Database) -> None:
    """While the cohort waits for the engine to be idle, nothing else is begun on it; other engines do not take it."""
    mine, other = given.engine(database), given.engine(database, "other")
    normal = given.cut(database, given.submitted(database), rank=0)
    cohort = given.cut(database, given.submitted(database), cohort="cohort_1", engine="engine")
    assert claim(database, mine, idle=False) is None
    assert claim(database, other, idle=False) == normal
    assert claim(database, other) is None
    with database.reading() as tx:
        assert batches.claimable(tx, "engine")
        assert not batches.claimable(tx, "other")
        assert batches.engines_to_ring(tx, 15.0) == ["engine"]
    assert claim(database, mine, ranks=(0,)) == cohort


def test_a_batch_whose_jobs_were_all_cancelled_is_returned(database: Database) -> None:
    """The claim passes on to the next batch; of one that was cancelled in part, the rest runs."""
    mine = given.engine(database)
    gone, part = given.submitted(database, 2), given.submitted(database, 2)
    empty, half = given.cut(database, gone), given.cut(database, part)
    with database.transaction() as tx:
        for job_id in (*gone, part[0]):
            ends.cancel(tx, "alice", job_id)
    got = given.claimed(database, mine)
    assert (got.id, [job.id for job in got.jobs]) == (half, [part[1]])
    assert state(database, empty) == "returned"
    assert claim(database, mine) is None


def test_a_lease_is_renewed_by_its_holder_alone(database: Database) -> None:
    """An expired lease can be renewed until it is swept; another incarnation renews nothing."""
    mine = given.engine(database)
    got = given.running(database, mine)
    given.change(database, batches.table, lease_until=1.0)
    with database.transaction() as tx:
        assert batches.expired(tx) == [("engine", mine.id)]
        stranger = Incarnation("engine", new_id("run"), "fake", "host", 2, 2, "boot:2")
        assert batches.renew(tx, stranger, [got.id], 15.0) == set()
        assert batches.renew(tx, mine, [got.id, "batch_unknown"], 15.0) == {got.id}
        assert batches.expired(tx) == []
        batches.move(tx, "lost", batches.table.c.id == got.id)
        assert batches.renew(tx, mine, [got.id], 15.0) == set()


def test_a_batch_finishes_when_nothing_of_it_is_open(database: Database) -> None:
    """Not while a job runs; once, and for ever."""
    got = given.running(database, given.engine(database), 2)
    first, second = (job.id for job in got.jobs)
    given.settled(database, got.id, [given.answered(first)])
    with database.transaction() as tx:
        assert not batches.finish(tx, got.id)
    given.settled(database, got.id, [given.answered(second)])
    with database.transaction() as tx:
        assert batches.finish(tx, got.id)
        assert not batches.finish(tx, got.id)
    (row,) = given.rows(database, batches.table)
    assert (row.state, row.finished_at) == ("finished", pytest.approx(time.time(), abs=5))


def test_what_is_given_back_keeps_its_place(database: Database) -> None:
    """Open jobs queue where they stood, before those that came later; what has ended stays ended."""
    got = given.running(database, given.engine(database), 3)
    places = {row.id: row.pos for row in given.rows(database, jobs.table)}
    done, *left = (job.id for job in got.jobs)
    given.settled(database, got.id, [given.answered(done)])
    with database.transaction() as tx:
        assert batches.give_back(tx, batches.table.c.id == got.id) == [got.id]
        assert batches.give_back(tx, batches.table.c.id == got.id) == []
    assert state(database, got.id) == "returned"
    assert given.states(database, [done, *left]) == ["succeeded", "queued", "queued"]
    again = given.rows(database, jobs.table, jobs.table.c.state == "queued")
    assert {(row.id, row.pos, row.batch_id, row.cohort_id) for row in again} == {
        (job_id, places[job_id], None, None) for job_id in left
    }


def test_ready_batches_without_a_live_engine_are_given_back(database: Database) -> None:
    """Only old ones, and only when no engine that was seen lately could take them."""
    given.engine(database)
    served = given.cut(database, given.submitted(database))
    stranded = given.cut(database, given.submitted(database, model="other"), model="other")
    bound = given.cut(database, given.submitted(database), cohort="cohort_1", engine="dead")
    with database.transaction() as tx:
        assert batches.give_back_stranded(tx, 15.0, 30.0) == []
    given.change(database, batches.table, created_at=1.0)
    with database.transaction() as tx:
        assert sorted(batches.give_back_stranded(tx, 15.0, 30.0)) == sorted([stranded, bound])
        assert batches.give_back_stranded(tx, 0.0, 30.0) == [served]
    assert {row.state for row in given.rows(database, jobs.table)} == {"queued"}
