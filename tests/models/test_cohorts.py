"""Cohorts: a prompt that kills the engine is found, and nobody else pays with more than time."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given as examples
from hypothesis import strategies as st

from models import batches, cohorts, jobs, queue, results
from models.db import Database, new_id
from models.engines import Incarnation
from tests.models import given

MOST = 20


def crash(database: Database, mine: Incarnation, *, charge: bool = True) -> cohorts.Crash:
    """End an incarnation as crashed."""
    return database.retrying(
        lambda tx: cohorts.crash(tx, mine.engine, mine.id, "crashed", max_attempts=MOST, charge=charge)
    )


def run_cohort(database: Database, mine: Incarnation) -> batches.Claimed | None:
    """Cut and claim the next cohort, as collector and worker do."""
    with database.transaction() as tx:
        waiting = cohorts.next_waiting(tx, "fake")
        if waiting is None:
            return None
        name, members = waiting
        ids = [row.id for row in members]
        cut = batches.Cut("fake", members[0].lane, 1, "cohort", ids, 1, cohort=name, engine=mine.engine)
        batches.gather(tx, cut)
    return given.claimed(database, mine)


def drain(database: Database, poison: set[str], *, answers_before: int = 0) -> int:
    """Run a fake engine, which dies of poison, until nothing is open; return how often it died.

    Before it dies it answers up to `answers_before` of a batch's jobs.
    """
    chance = random.Random(7)
    deaths = 0
    while True:
        mine = given.engine(database)
        batch = run_cohort(database, mine)
        if batch is None:
            with database.reading() as tx:
                ids = [found.id for found in queue.candidates(tx, "fake", "standard", "", 1000)]
            if not ids:
                return deaths
            given.cut(database, ids)
            batch = given.claimed(database, mine)
        members = [job.id for job in batch.jobs]
        good = [job_id for job_id in members if job_id not in poison]
        dies = len(good) < len(members)
        done = chance.sample(good, min(answers_before, len(good))) if dies else good
        given.settled(database, batch.id, [given.answered(job_id) for job_id in done])
        if dies:
            deaths += 1
            crash(database, mine)
        else:
            with database.transaction() as tx:
                assert batches.finish(tx, batch.id)


@examples(st.lists(st.text(), max_size=100))
def test_a_split_loses_nobody_and_halves(ids: list[str]) -> None:
    """Two groups that differ by one at most; of one job, one group; of none, none."""
    groups = cohorts.split(ids)
    assert [job_id for group in groups for job_id in group] == ids
    assert len(groups) == min(2, len(ids))
    assert max((len(group) for group in groups), default=0) == math.ceil(len(ids) / 2)


def test_one_poison_among_32_is_found_in_seven_deaths(database: Database) -> None:
    """The others all succeed, and the poison says what it is."""
    ids = given.submitted(database, 32)
    poison = ids[13]
    assert drain(database, {poison}) == 7
    ended = dict(zip(ids, given.states(database, ids), strict=True))
    assert ended.pop(poison) == "failed"
    assert set(ended.values()) == {"succeeded"}
    (result,) = given.rows(database, results.table, results.table.c.job_id == poison)
    assert (result.status, result.error_code) == (500, "poison")
    assert "died twice" in result.error_message


@pytest.mark.parametrize("places", [(0, 31), (14, 15), (3, 4, 20)], ids=str)
@pytest.mark.parametrize("answers_before", [0, 3])
def test_several_poisons_are_found_within_the_bound(
    database: Database, places: tuple[int, ...], answers_before: int
) -> None:
    """About k (ceil(log2(n / k)) + 3) deaths for k among n; what the engine answered before it died stays answered."""
    ids = given.submitted(database, 32)
    poison = {ids[place] for place in places}
    bound = len(places) * (math.ceil(math.log2(32 / len(places))) + 3)
    assert drain(database, poison, answers_before=answers_before) <= bound
    for job_id, end in zip(ids, given.states(database, ids), strict=True):
        assert end == ("failed" if job_id in poison else "succeeded")
    failed = given.rows(database, results.table, results.table.c.error_code == "poison")
    assert {row.job_id for row in failed} == poison
    assert len(given.rows(database, results.table)) == 32


def test_all_batches_in_flight_are_split_together(database: Database) -> None:
    """Nobody knows which batch killed the engine: the unfinished jobs of all of them become two cohorts."""
    mine, other = given.engine(database), given.engine(database, "other")
    first, second = given.running(database, mine, 3), given.running(database, mine, 3)
    elsewhere = given.running(database, other, 2)
    given.settled(database, first.id, [given.answered(first.jobs[0].id)])
    crashed = crash(database, mine)
    assert (crashed.batches, crashed.requeued, crashed.models) == (2, 5, ["fake"])
    members = [row.cohort_id for row in given.rows(database, jobs.table, jobs.table.c.state == "queued")]
    assert sorted(members.count(cohort) for cohort in set(members)) == [2, 3]
    assert None not in members
    assert {row.state for row in given.rows(database, batches.table)} == {"crashed", "running"}
    assert given.states(database, [job.id for job in elsewhere.jobs]) == ["running", "running"]
    assert crash(database, mine) == cohorts.Crash()
    assert given.settled(database, second.id, [given.answered(second.jobs[0].id)]) == set()


def test_a_death_that_is_nobodys_fault_splits_nobody(database: Database) -> None:
    """With `charge=False` jobs queue as they were, in their old place."""
    mine = given.engine(database)
    got = given.running(database, mine, 3)
    places = [row.pos for row in given.rows(database, jobs.table)]
    assert crash(database, mine, charge=False).requeued == 3
    again = given.rows(database, jobs.table)
    assert [(row.state, row.cohort_id, row.pos) for row in again] == [("queued", None, pos) for pos in places]
    assert given.job(database, got.jobs[0].id).lone_deaths == 0


def test_cohorts_are_out_of_the_normal_queue_and_run_one_by_one(database: Database) -> None:
    """They are no candidates for other batches; while one is READY or runs, the next waits."""
    mine = given.engine(database)
    given.running(database, mine, 4)
    crash(database, mine)
    mine = given.engine(database)
    with database.reading() as tx:
        assert queue.candidates(tx, "fake", "standard", "", 10) == []
        assert queue.waiting(tx, "fake") == []
        assert queue.models_with_work(tx) == ["fake"]
        assert cohorts.next_waiting(tx, "other") is None
        assert cohorts.busy_engines(tx) == set()
    first = run_cohort(database, mine)
    assert first is not None
    assert first.cohort is not None
    with database.reading() as tx:
        assert cohorts.next_waiting(tx, "fake") is None
        assert cohorts.busy_engines(tx) == {"engine"}
    given.settled(database, first.id, [given.answered(job.id) for job in first.jobs])
    with database.transaction() as tx:
        batches.finish(tx, first.id)
        assert cohorts.next_waiting(tx, "fake") is not None


def test_a_job_that_died_alone_once_may_still_succeed(database: Database) -> None:
    """One lonely death is bad luck: the job runs alone again, and its success stands."""
    (job_id,) = given.submitted(database)
    given.cut(database, [job_id])
    mine = given.engine(database)
    given.claimed(database, mine)
    crash(database, mine)
    assert given.job(database, job_id).lone_deaths == 0
    mine = given.engine(database)
    assert run_cohort(database, mine) is not None
    crash(database, mine)
    assert given.job(database, job_id).lone_deaths == 1
    assert drain(database, set()) == 0
    assert given.states(database, [job_id]) == ["succeeded"]


def test_a_lone_job_beside_another_batch_is_not_blamed(database: Database) -> None:
    """Proof of poison is a death in which nothing else ran."""
    mine = given.engine(database)
    (job_id,) = given.submitted(database)
    cohort = given.cut(database, [job_id], cohort="cohort_1", engine="engine")
    assert given.claimed(database, mine).id == cohort
    given.running(database, mine)
    crash(database, mine)
    assert given.job(database, job_id).lone_deaths == 0


def test_a_job_that_was_interrupted_too_often_fails(database: Database) -> None:
    """After so many attempts it ends as interrupted, with a result and a delivery."""
    mine = given.engine(database)
    got = given.running(database, mine, 2, webhook=given.HOOK)
    tired, fresh = (job.id for job in got.jobs)
    given.change(database, jobs.table, jobs.table.c.id == tired, attempts=MOST)
    crashed = crash(database, mine)
    assert (crashed.interrupted, crashed.poison, crashed.requeued) == ([tired], [], 1)
    assert given.states(database, [tired, fresh]) == ["failed", "queued"]
    (result,) = given.rows(database, results.table)
    assert (result.job_id, result.error_code) == (tired, "interrupted")


def test_another_incarnation_ends_nothing(database: Database) -> None:
    """Engine and incarnation must both match: a restarted engine's new batches are not its predecessor's."""
    mine = given.engine(database)
    got = given.running(database, mine)
    stranger = Incarnation("engine", new_id("run"), "fake", "host", 2, 2, "boot:2")
    assert crash(database, stranger) == cohorts.Crash()
    assert given.states(database, [got.jobs[0].id]) == ["running"]
