"""The queue: owners take turns, and looking at it agrees with a naive look on both databases."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, example, settings
from hypothesis import given as examples
from hypothesis import strategies as st

from models import ends, jobs, queue
from models.db import Database, new_id
from tests.models import given

OWNERS = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=3)
Line = list[tuple[str, int]]


def stock(database: Database, line: Line) -> None:
    """Replace the queue by jobs of (owner, position)."""
    with database.transaction() as tx:
        tx.execute(sa.delete(jobs.table))
        for owner, pos in line:
            jobs_row = {"id": new_id("job"), "owner": owner, "pos": pos, "model": "fake", "lane": "bulk"}
            counts = {"tokens": 3, "attempts": 0, "deferrals": 0, "lone_deaths": 0, "created_at": 1.0}
            row = {**jobs_row, **counts, "endpoint": "/v1/completions", "state": "queued", "notify": False}
            tx.execute(sa.insert(jobs.table).values(row))


def naive(line: Line, last_owner: str, most: int, read: int) -> Line:
    """Return what `candidates` should: in plain Python, by looking at everything."""
    owners = sorted({owner for owner, _ in line}, key=lambda owner: (owner <= last_owner, owner))[:most]
    depth = 1 if len(owners) >= most else min(most, max(read, most) // max(1, len(owners)))
    return [(owner, pos) for owner in owners for pos in sorted(pos for other, pos in line if other == owner)[:depth]]


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@examples(
    line=st.lists(st.tuples(OWNERS, st.integers(0, 10**15)), max_size=25, unique_by=lambda job: job[1]),
    last_owner=OWNERS,
    most=st.integers(1, 8),
    read=st.sampled_from([4, 10, 4096]),
)
@example(line=[("a", 1), ("b", 2), ("c", 3)], last_owner="b", most=3, read=4096)
@example(line=[("a", 1), ("a", 2)], last_owner="a", most=2, read=4096)
@example(line=[("", 1), ("a", 2)], last_owner="", most=2, read=4096)
def test_candidates_are_those_of_a_naive_look(
    database: Database, line: Line, last_owner: str, most: int, read: int
) -> None:
    """The owner behind the last one first, then around; of each the head of its line; bounded when there are many."""
    stock(database, line)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(queue, "_MOST_READ", read)
        with database.reading() as tx:
            found = queue.candidates(tx, "fake", "bulk", last_owner, most)
    assert [(job.owner, job.pos) for job in found] == naive(line, last_owner, most, read)
    assert all(job.tokens == 3 for job in found)


def test_candidates_are_queued_jobs_of_this_model_and_lane(database: Database) -> None:
    """Jobs of other models and lanes, of cohorts, and those that are batched or have ended, are none."""
    mine, cancelled, batched, cohort = given.submitted(database, 4)
    given.submitted(database, model="other")
    given.submitted(database, lane="bulk")
    given.cut(database, [batched])
    given.change(database, jobs.table, jobs.table.c.id == cohort, cohort_id="cohort_1")
    with database.transaction() as tx:
        ends.cancel(tx, "alice", cancelled)
        assert [job.id for job in queue.candidates(tx, "fake", "standard", "", 10)] == [mine]


def test_a_candidate_is_what_a_policy_decides_by(database: Database) -> None:
    """Its owner, place, estimated tokens and the number of how its prompt begins."""
    (ident,) = given.submitted(database, tokens=7, prefix=2**63 - 1)
    with database.reading() as tx:
        (found,) = queue.candidates(tx, "fake", "standard", "", 10)
    assert (found.id, found.owner, found.tokens, found.prefix) == (ident, "alice", 7, 2**63 - 1)
    assert found.pos == given.job(database, ident).pos


def test_one_owner_can_fill_a_batch_alone(database: Database) -> None:
    """Taking turns costs nothing when nobody else waits."""
    ids = given.submitted(database, 12)
    with database.reading() as tx:
        assert [job.id for job in queue.candidates(tx, "fake", "standard", "alice", 10)] == ids[:10]


def test_waiting_names_the_lanes_in_the_order_they_are_served(database: Database) -> None:
    """Only lanes in which something is queued."""
    given.submitted(database, lane="bulk")
    given.submitted(database, lane="realtime")
    (batched,) = given.submitted(database)
    given.cut(database, [batched])
    with database.reading() as tx:
        assert queue.waiting(tx, "fake") == ["realtime", "bulk"]
        assert queue.waiting(tx, "other") == []


def test_models_with_work_are_found(database: Database) -> None:
    """Each once, whatever lane or cohort its jobs are in; not those whose jobs are all under way."""
    for model in ("b", "a", "c"):
        given.submitted(database, 3, model=model)
    given.submitted(database, lane="bulk", model="a")
    given.cut(database, given.submitted(database, model="d"), model="d")
    given.change(database, jobs.table, jobs.table.c.model == "c", cohort_id="cohort_1")
    with database.reading() as tx:
        assert sorted(queue.models_with_work(tx)) == ["a", "b", "c"]


def test_a_models_turns_are_kept_and_locked(database: Database) -> None:
    """Eight collectors that each count one to a lane's deficit lose none of it, first-time rows included."""

    def count() -> None:
        for _ in range(5):
            with database.transaction() as tx:
                turn = queue.lock(tx, "fake")["bulk"]
                grown = queue.Turn(turn.lane, "bob", turn.deficit + 1, turn.cut_at, turn.clock)
                queue.advance(tx, "fake", grown, cut=True)

    given.together([count] * 8)
    with database.transaction() as tx:
        turns = queue.lock(tx, "fake")
        assert list(turns) == sorted(turns)
        assert (turns["bulk"].deficit, turns["bulk"].last_owner) == (40.0, "bob")
        assert turns["bulk"].cut_at == pytest.approx(turns["bulk"].clock, abs=10)
        assert (turns["realtime"].deficit, turns["realtime"].cut_at) == (0.0, 0.0)


def test_turns_of_models_are_locked_apart(database: Database) -> None:
    """Each model has its own rows."""
    with database.transaction() as tx:
        assert set(queue.lock(tx, "a")) == set(queue.lock(tx, "b")) == {"realtime", "standard", "bulk"}
    assert len(given.rows(database, queue.turns)) == 6


def test_a_promise_is_kept_from_those_who_would_look_later(database: Database) -> None:
    """Who will look sooner takes the promise over; who would look later leaves it at that."""
    with database.transaction() as tx:
        assert not queue.promised(tx, "fake", 60.0)
        assert queue.promise(tx, "fake", "me", 5.0)
        assert queue.promise(tx, "fake", "me", 6.0)
        assert not queue.promise(tx, "fake", "you", 8.0)
        assert queue.promised(tx, "fake", 8.0)
        assert not queue.promised(tx, "fake", 1.0)
        assert queue.promise(tx, "fake", "you", 1.0)
        assert queue.promised(tx, "fake", 2.0)


def test_a_fulfilled_promise_is_free_again(database: Database) -> None:
    """Only its holder withdraws it."""
    with database.transaction() as tx:
        assert queue.promise(tx, "fake", "me", 1.0)
        queue.fulfil(tx, "fake", "you")
        assert queue.promised(tx, "fake", 60.0)
        queue.fulfil(tx, "fake", "me")
        assert not queue.promised(tx, "fake", 60.0)
        assert queue.promise(tx, "fake", "you", 60.0)


def test_the_promise_of_a_dead_collector_lapses(database: Database) -> None:
    """A second after it should have looked, nobody waits for it any more."""
    with database.transaction() as tx:
        assert queue.promise(tx, "fake", "dead", -2.0)
        assert not queue.promised(tx, "fake", 60.0)
        assert queue.promise(tx, "fake", "me", 60.0)
