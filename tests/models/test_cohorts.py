"""Cohorts: a prompt that kills the engine is found, and nobody else pays with more than time."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given as examples
from hypothesis import strategies as st

from models import batches, cohorts, due, engines, jobs, queue, results
from models.db import Database, new_id, now
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


def rested(database: Database) -> int:
    """Let the rest of jobs that died alone be over; return how many were put aside."""
    given.change(database, jobs.table, jobs.table.c.state == "delayed", run_at=0.0)
    before = len(given.rows(database, jobs.table, jobs.table.c.state == "delayed"))
    with database.transaction() as tx:
        due.release_due(tx)
    return before


def next_batch(database: Database, mine: Incarnation, most: int) -> batches.Claimed | None:
    """Return what runs next: a cohort, else what is queued, else who rested."""
    if (batch := run_cohort(database, mine)) is not None:
        return batch
    with database.reading() as tx:
        ids = [found.id for found in queue.candidates(tx, "fake", "standard", "", most)]
    if ids:
        given.cut(database, ids)
        return given.claimed(database, mine)
    return run_cohort(database, mine) if rested(database) else None


def drain(database: Database, poison: set[str], *, answers_before: int = 0, most: int = 1000) -> int:
    """Run a fake engine, which dies of poison, until nothing is open; return how often it died.

    Before it dies it answers up to `answers_before` of a batch's jobs. It takes `most` jobs at once.
    """
    chance = random.Random(7)
    deaths = 0
    mine = given.engine(database)
    while (batch := next_batch(database, mine, most)) is not None:
        members = [job.id for job in batch.jobs]
        good = [job_id for job_id in members if job_id not in poison]
        dies = len(good) < len(members)
        done = chance.sample(good, min(answers_before, len(good))) if dies else good
        given.settled(database, batch.id, [given.answered(job_id) for job_id in done])
        if dies:
            deaths += 1
            crash(database, mine)
            mine = given.engine(database)
        else:
            with database.transaction() as tx:
                assert batches.finish(tx, batch.id)
    return deaths


@examples(st.lists(st.text(), max_size=100))
def test_a_split_loses_nobody_and_halves(ids: list[str]) -> None:
    """Two groups that differ by one at most; of one job, one group; of none, none."""
    groups = cohorts.split(ids)
    assert [job_id for group in groups for job_id in group] == ids
    assert len(groups) == min(2, len(ids))
    assert max((len(group) for group in groups), default=0) == math.ceil(len(ids) / 2)


@pytest.mark.parametrize("place", [0, 13, 31])
def test_one_poison_among_32_is_found_in_eight_deaths(database: Database, place: int) -> None:
    """The others all succeed, and the poison says what it is."""
    ids = given.submitted(database, 32)
    poison = ids[place]
    assert drain(database, {poison}) <= 8
    ended = dict(zip(ids, given.states(database, ids), strict=True))
    assert ended.pop(poison) == "failed"
    assert set(ended.values()) == {"succeeded"}
    (result,) = given.rows(database, results.table, results.table.c.job_id == poison)
    assert (result.status, result.error_code) == (500, "poison")
    assert "died 3 times" in result.error_message


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


@pytest.mark.sqlite
@pytest.mark.parametrize("seed", range(3))
def test_twenty_poisons_among_a_thousand_cost_at_most_160_deaths(sqlite_database: Database, seed: int) -> None:
    """Wherever they are, every one of them is found, and no innocent with them."""
    ids = given.submitted(sqlite_database, 1000)
    poison = set(random.Random(seed).sample(ids, 20))
    assert drain(sqlite_database, poison, most=256) <= 160
    failed = given.rows(sqlite_database, results.table, results.table.c.error_code == "poison")
    assert {row.job_id for row in failed} == poison
    assert given.states(sqlite_database, ids).count("succeeded") == 980


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


def test_a_death_that_may_be_nobodys_fault_charges_nobody(database: Database) -> None:
    """With `charge=False` jobs split, keep their old place, and a job that ran alone runs again at once."""
    mine = given.engine(database)
    got = given.running(database, mine, 3)
    places = [row.pos for row in given.rows(database, jobs.table)]
    assert crash(database, mine, charge=False).requeued == 3
    again = given.rows(database, jobs.table)
    assert [(row.state, row.pos) for row in again] == [("queued", pos) for pos in places]
    assert len({row.cohort_id for row in again}) == 2
    for _ in range(5):
        mine = given.engine(database)
        batch = run_cohort(database, mine)
        assert batch is not None
        crash(database, mine, charge=False)
    assert [given.job(database, job.id).lone_deaths for job in got.jobs] == [0, 0, 0]
    assert drain(database, set()) == 0


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


def alone(database: Database, mine: Incarnation, job_id: str) -> None:
    """Bring a job to where it runs alone, as a suspect."""
    given.change(database, jobs.table, jobs.table.c.id == job_id, cohort_id="cohort_1")
    assert run_cohort(database, mine) is not None


def test_a_job_that_died_alone_twice_may_still_succeed(database: Database) -> None:
    """Two lonely deaths are bad luck: the job rests, runs alone again, and its success stands."""
    (job_id,) = given.submitted(database)
    mine = given.engine(database)
    alone(database, mine, job_id)
    for deaths in (1, 2):
        crash(database, mine)
        assert given.job(database, job_id).lone_deaths == deaths
        assert given.states(database, [job_id]) == ["delayed"]
        mine = given.engine(database)
        assert run_cohort(database, mine) is None
        assert rested(database) == 1
        assert run_cohort(database, mine) is not None
    crash(database, mine, charge=False)
    assert drain(database, set()) == 0
    assert given.states(database, [job_id]) == ["succeeded"]


@pytest.mark.parametrize(("ran", "rest"), [(2.0, 32.0), (50.0, 800.0), (100.0, 900.0), (-7200.0, 0.0)])
def test_the_rest_is_sixteen_times_as_long_as_the_job_ran(database: Database, ran: float, rest: float) -> None:
    """A quarter of an hour at most; a clock that jumped back makes it no longer."""
    (job_id,) = given.submitted(database)
    mine = given.engine(database)
    alone(database, mine, job_id)
    given.change(database, batches.table, claimed_at=now() - ran)
    crash(database, mine)
    (ended,) = given.rows(database, batches.table)
    late = ended.finished_at - ended.claimed_at - ran  # on a busy machine it ran for longer than that
    expected = min(900.0, rest + 16 * late) if rest else 0.0
    assert given.job(database, job_id).run_at - ended.finished_at == pytest.approx(expected, abs=1.0)


def vanish(database: Database, mine: Incarnation, *, charge: bool = True) -> cohorts.Crash:
    """End an incarnation whose process is gone."""
    return database.retrying(lambda tx: cohorts.vanish(tx, mine, max_attempts=MOST, charge=charge))


def test_who_vanishes_with_nothing_to_run_clears_the_suspects(database: Database) -> None:
    """Something kills engines that runs on none of them: what it did to jobs before is forgiven, once they wait."""
    mine = given.engine(database)
    waiting, queued = given.submitted(database, 2)
    alone(database, mine, waiting)
    assert vanish(database, mine).batches == 1
    given.change(database, jobs.table, jobs.table.c.id == queued, cohort_id="cohort_x", lone_deaths=2)
    mine = given.engine(database, models=["other"])
    vanish(database, mine)
    assert [given.job(database, job_id).lone_deaths for job_id in (waiting, queued)] == [1, 2]
    mine = given.engine(database)
    assert vanish(database, mine) == cohorts.Crash()
    assert [given.job(database, job_id).lone_deaths for job_id in (waiting, queued)] == [0, 0]


@pytest.mark.parametrize("state", ["draining", "gone"])
def test_who_left_and_then_vanished_clears_nobody(database: Database, state: str) -> None:
    """An engine that was asked to end, or ended by itself, says nothing about killers."""
    (job_id,) = given.submitted(database)
    given.change(database, jobs.table, cohort_id="cohort_x", lone_deaths=2)
    mine = given.engine(database)
    with database.transaction() as tx:
        engines.leave(tx, mine, state)
    vanish(database, mine)
    assert given.job(database, job_id).lone_deaths == 2


def test_a_vanished_engine_is_not_live_and_keeps_no_cohort(database: Database) -> None:
    """What lay READY for it alone is for anybody again; its successor under its name is left alone."""
    mine, second = given.engine(database), given.engine(database, "second")
    (job_id,) = given.submitted(database)
    given.change(database, jobs.table, cohort_id="cohort_1")
    given.cut(database, [job_id], cohort="cohort_1", engine="engine")
    vanish(database, mine)
    assert given.states(database, [job_id]) == ["queued"]
    with database.reading() as tx:
        assert [live.id for live in engines.live(tx, 15.0)] == ["second"]
        assert cohorts.next_waiting(tx, "fake") is not None
    successor = given.engine(database)
    vanish(database, mine)
    with database.reading() as tx:
        assert engines.state(tx, successor) == engines.state(tx, second) == "live"


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
