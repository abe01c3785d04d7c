"""The policy: room, order of lanes, turns of owners, bounds, waiting. Pure, by properties."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.queue import Candidate
from stoker.settings import load
from tasks import batching, policies
from tasks.batching import Batch, Load, Room, Wait

RULES = load(engine="fake").lanes
NOW = 1_000_000.0


def queued(*ages: float, owner: str = "a", tokens: int = 10) -> list[Candidate]:
    """Return jobs that were queued so many seconds ago."""
    return [Candidate(f"{owner}{n}", owner, tokens, int((NOW - age) * 1e6)) for n, age in enumerate(ages)]


def plan(jobs: list[Candidate], space: Room, lane: str, cut_at: float = 0.0) -> Batch | Wait:
    """Return what a lane's own policy decides now."""
    rules = RULES[lane]
    limits = policies.limits(rules.policy, rules.largest, space.jobs, rules.largest)
    return batching.plan(jobs, space, rules, limits, now=NOW, cut_at=cut_at)


candidates = st.lists(
    st.builds(
        Candidate,
        id=st.uuids().map(str),
        owner=st.sampled_from("abcde"),
        tokens=st.integers(1, 500),
        pos=st.integers(0, 10**15),
    ),
    max_size=60,
    unique_by=lambda job: job.id,
)


@given(candidates, st.integers(1, 40), st.integers(1, 2000))
def test_a_batch_keeps_its_bounds(jobs: list[Candidate], most: int, max_tokens: int) -> None:
    """A batch has at most so many jobs and tokens, except that one job that is too large goes alone."""
    taken = policies.fill(policies.interleave(jobs), most, max_tokens)
    assert len(taken) <= most
    assert sum(job.tokens for job in taken) <= max_tokens or len(taken) == 1
    assert bool(taken) == bool(jobs)
    assert len({job.id for job in taken}) == len(taken)


@given(candidates, st.integers(1, 40))
def test_owners_take_turns(jobs: list[Candidate], most: int) -> None:
    """No owner gets two jobs more than another who still has some waiting."""
    taken = Counter(job.owner for job in policies.fill(policies.interleave(jobs), most, 10**9))
    waiting = Counter(job.owner for job in jobs) - taken
    for owner in waiting:
        assert all(taken[owner] >= count - 1 for count in taken.values())


@given(candidates)
def test_interleaving_keeps_each_owners_order(jobs: list[Candidate]) -> None:
    """Turns change who goes when, never the order within one owner's line; nothing is lost."""
    mixed = policies.interleave(jobs)
    assert Counter(mixed) == Counter(jobs)
    for owner in "abcde":
        assert [job for job in mixed if job.owner == owner] == [job for job in jobs if job.owner == owner]


@given(
    st.lists(
        st.builds(
            Load,
            slots=st.integers(1, 512),
            reserve=st.integers(0, 10),
            running=st.integers(0, 600),
            realtime=st.integers(0, 20),
        )
    ),
    st.dictionaries(st.sampled_from(["realtime", "standard", "bulk"]), st.integers(0, 300)),
    st.sampled_from(["realtime", "standard", "bulk"]),
)
def test_room_is_bounded(loads: list[Load], ready: dict[str, int], lane: str) -> None:
    """READY never holds more than one engine's slots, and nothing is cut for nobody."""
    space = batching.room(loads, ready, lane, 0.25)
    assert space.jobs >= 0
    counted = ready.get(lane, 0) if lane == "realtime" else sum(ready.values())
    if space.jobs:
        assert space.jobs + counted <= max(load.slots for load in loads)
    if not loads:
        assert space.jobs == 0


def test_realtime_uses_the_reserve_and_overtakes_ready() -> None:
    """Bulk leaves the reserve free; realtime takes it and does not count the batches that it overtakes."""
    loads = [Load(slots=10, reserve=2, running=8, realtime=8)]
    assert batching.room(loads, {"bulk": 8}, "bulk", 0.0).jobs == 0
    assert batching.room(loads, {"bulk": 8}, "realtime", 0.0).jobs == 2


def test_realtime_has_room_on_an_engine_full_of_bulk() -> None:
    """Running jobs of the lower lanes take none of realtime's room, however far beyond its slots they are."""
    loads = [Load(slots=10, reserve=2, running=60, realtime=3)]
    assert batching.room(loads, {"bulk": 10}, "realtime", 0.0).jobs == 7
    assert batching.room(loads, {}, "standard", 0.0).jobs == 0
    assert batching.room(loads, {"realtime": 7}, "realtime", 0.0).jobs == 0


@given(st.integers(2, 512), st.floats(0, 1), st.floats(0.001, 1), st.integers(0, 600))
def test_realtime_leaves_who_waits_below_their_share(slots: int, backlog: float, share: float, running: int) -> None:
    """At least a slot and at least the share, of several slots; and never all of them."""
    load = Load(slots, reserve=0, running=running + 10 * slots, realtime=running)
    most = running + batching.room([load], {}, "realtime", backlog, share).jobs
    assert 1 <= max(1, batching.most_realtime(slots, backlog, share)) <= slots - 1
    assert most == running or slots - most >= max(1, int(slots * share + 1e-6)) or slots - most == slots - 1


def test_realtime_has_all_while_nobody_waits_below() -> None:
    """With its backlog, too; and the only slot of an engine always."""
    assert batching.below(["realtime"], RULES) == 0
    assert batching.below(["realtime", "bulk", "standard", "bulk"], RULES) == pytest.approx(0.3)
    assert batching.most_realtime(16, 0.25, 0.0) == 20
    assert batching.most_realtime(16, 0.25, 0.3) == 11
    assert batching.most_realtime(1, 0.25, 0.3) == 2


def test_the_reserve_is_kept_free_once() -> None:
    """Where realtime has taken its reserve the lanes below get what is left of the slots."""
    for realtime, room in ((0, 8), (1, 8), (2, 8), (5, 5), (10, 0)):
        load = Load(slots=10, reserve=2, running=realtime, realtime=realtime)
        assert batching.room([load], {}, "bulk", 0.0).jobs == room


def test_a_realtime_job_on_an_idle_engine_goes_at_once() -> None:
    """The realtime lane waits for nobody while an engine is idle."""
    step = plan(queued(0.0), Room(8, idle=True), "realtime", cut_at=0.0)
    assert isinstance(step, Batch)


@pytest.mark.parametrize(("lane", "wait"), [("standard", 0.05), ("bulk", 0.5)])
def test_an_underfilled_batch_waits_for_company(lane: str, wait: float) -> None:
    """It waits as long as the lane says, from the oldest job on, and is then cut as it is."""
    young = plan(queued(wait / 2, 0.0), Room(64, idle=True), lane, cut_at=0.0)
    assert isinstance(young, Wait)
    assert young.seconds == pytest.approx(wait / 2, abs=1e-3)
    old = plan(queued(wait, 0.0), Room(64, idle=True), lane, cut_at=0.0)
    assert isinstance(old, Batch)
    assert (old.reason, len(old.ids)) == ("waited", 2)


def test_a_clock_that_was_set_back_makes_nobody_wait() -> None:
    """A job from an hour ahead was queued before the clock was set back: it is cut, not waited with for an hour."""
    assert isinstance(plan(queued(-3600.0), Room(8, idle=True), "bulk"), Batch)
    assert isinstance(plan(queued(5.0), Room(8, idle=True), "bulk", cut_at=NOW + 3600), Batch)


def test_a_full_batch_does_not_wait() -> None:
    """As many jobs as the largest batch are cut at once, however young."""
    step = plan(queued(*[0.0] * 40), Room(64, idle=False), "standard", cut_at=NOW)
    assert isinstance(step, Batch)
    assert (step.reason, len(step.ids)) == ("full", 32)


def test_tokens_fill_a_batch_too() -> None:
    """A batch that is full of tokens does not wait for more jobs."""
    large = queued(*[0.0] * 10, tokens=100_000)
    step = plan(large, Room(64, idle=True), "standard", cut_at=NOW)
    assert isinstance(step, Batch)
    assert (step.reason, len(step.ids), step.tokens) == ("full", 2, 200_000)


def test_a_busy_engine_gets_no_slivers() -> None:
    """With a backlog, a little room on a busy engine is left to grow, but no longer than the lane's wait."""
    backlog = queued(*[60.0] * 100)
    sliver = Room(2, idle=False, least=8)
    step = plan(backlog, sliver, "bulk", cut_at=NOW - 0.1)
    assert isinstance(step, Wait)
    assert step.seconds == pytest.approx(0.4, abs=1e-3)
    late = plan(backlog, sliver, "bulk", cut_at=NOW - 0.6)
    assert isinstance(late, Batch)
    assert len(late.ids) == 2


def test_without_room_the_doorbell_decides() -> None:
    """While engines are full there is no time at which to look again: room is told of."""
    assert plan(queued(99.0), Room(0, idle=False), "bulk", cut_at=0.0) == Wait(None)


def test_lower_lanes_get_their_share() -> None:
    """Under endless realtime work, standard and bulk still get about what their shares say."""
    waiting = ["realtime", "standard", "bulk"]
    deficits = dict.fromkeys(waiting, 0.0)
    got: Counter[str] = Counter()
    for _ in range(2000):
        lane = batching.order(waiting, deficits, RULES)[0]
        cut = RULES[lane].largest
        deficits = batching.owe(lane, cut, waiting, deficits, RULES)
        got[lane] += cut
    assert got["standard"] / got["realtime"] == pytest.approx(0.2, rel=0.1)
    assert got["bulk"] / got["realtime"] >= 0.1
    assert got["realtime"] > got["standard"] > 0


def test_a_lane_without_work_owes_and_is_owed_nothing() -> None:
    """Shares are not saved up while a lane is empty."""
    after = batching.owe("realtime", 8, ["realtime"], {"realtime": 0.0, "bulk": 50.0}, RULES)
    assert after["bulk"] == 0.0
