"""The policies: bounds, turns of owners, what is grouped, and that nobody starves. Pure, by properties."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import count
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.queue import Candidate
from stoker.setting_types import Policy
from tasks import policies

POLICIES = get_args(Policy)
OWNERS = "abcde"

candidates = st.lists(
    st.builds(
        Candidate,
        id=st.uuids().map(str),
        owner=st.sampled_from(OWNERS),
        tokens=st.integers(1, 500),
        pos=st.integers(0, 10**15),
        prefix=st.integers(0, 3),
    ),
    min_size=1,
    max_size=60,
    unique_by=lambda job: job.id,
)


def job(ident: str, owner: str = "a", tokens: int = 100, prefix: int = 0) -> Candidate:
    """Return a queued job."""
    return Candidate(ident, owner, tokens, 1, prefix)


def taken(policy: str, jobs: Sequence[Candidate], most: int, max_tokens: int = 10**9) -> list[str]:
    """Return the ids of the jobs that a policy chooses."""
    return [one.id for one in policies.take(policy, jobs, most, max_tokens)[0]]


@given(st.sampled_from(POLICIES), candidates, st.integers(1, 40), st.integers(1, 2000))
def test_every_policy_keeps_the_bounds(policy: str, jobs: list[Candidate], most: int, max_tokens: int) -> None:
    """A batch has at most so many jobs and tokens, except that one job that is too large goes alone; never none."""
    chosen, last = policies.take(policy, jobs, most, max_tokens)
    assert 1 <= len(chosen) <= most
    assert sum(one.tokens for one in chosen) <= max_tokens or len(chosen) == 1
    assert len({one.id for one in chosen}) == len(chosen)
    assert last in {one.owner for one in jobs}


@given(st.sampled_from(POLICIES), candidates, st.integers(1, 40), st.integers(1, 2000))
def test_the_oldest_of_the_owner_whose_turn_it_is_always_goes(
    policy: str, jobs: list[Candidate], most: int, max_tokens: int
) -> None:
    """Whatever it is like: that is why every job's turn comes."""
    assert jobs[0] in policies.take(policy, jobs, most, max_tokens)[0]


@given(candidates, st.integers(1, 40))
def test_bucketed_never_cuts_fewer_jobs_than_fixed(jobs: list[Candidate], most: int) -> None:
    """A batch is filled up with jobs that are less alike: an empty slot costs more than padding."""
    assert len(taken("bucketed", jobs, most)) == len(taken("fixed", jobs, most))


def test_bucketed_groups_by_prefix_then_by_length() -> None:
    """With the first job go those that begin like it, however long; then those of its length, then the next lengths."""
    jobs = [
        job("first", tokens=100, prefix=7),
        job("huge", tokens=5000),
        job("same length", tokens=120, prefix=8),
        job("alike", tokens=90, prefix=7),
        job("alike but long", tokens=4000, prefix=7),
        job("longer", tokens=200),
    ]
    order = ["first", "alike", "alike but long", "same length", "longer", "huge"]
    assert [taken("bucketed", jobs, most) for most in range(1, 7)] == [order[:most] for most in range(1, 7)]


def test_prompts_without_a_known_prefix_are_not_alike() -> None:
    """0 says that nothing is known: length decides."""
    jobs = [job("first", tokens=100), job("short", tokens=2), job("long", tokens=110, prefix=5)]
    assert taken("bucketed", jobs, 2) == ["first", "long"]


def test_owners_take_turns_within_a_group() -> None:
    """Of jobs that are equally alike no owner's go first together."""
    jobs = [job(f"{owner}{n}", owner, prefix=7) for owner in "ab" for n in range(4)]
    assert taken("bucketed", jobs, 4) == ["a0", "b0", "a1", "b1"]


def test_lengths_are_told_apart_by_powers_of_two() -> None:
    """A bucket holds lengths up to twice its shortest."""
    assert [policies.bucket(job("x", tokens=tokens)) for tokens in (0, 1, 2, 3, 4, 7, 8)] == [1, 1, 2, 2, 3, 3, 4]


def test_token_budget_takes_as_many_as_fit() -> None:
    """Its number of jobs is bounded by tokens and room alone, that of fixed by the lane's largest batch too."""
    jobs = [job(str(n), tokens=10) for n in range(300)]
    for policy, most in (("token_budget", 100), ("fixed", 32)):
        limits = policies.limits(policy, 32, 200, 32)
        assert len(taken(policy, jobs, limits.most, 1000)) == most
    assert policies.limits("token_budget", 32, 50, 32).most == 50


@given(st.sampled_from(POLICIES), st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 20_000))
def test_looking_is_bounded(policy: str, largest: int, room: int, learned: int) -> None:
    """No policy cuts more than there is room for, and none looks at more than it needs or a thousand jobs."""
    limits = policies.limits(policy, largest, room, learned)
    assert 1 <= limits.most <= room
    assert limits.most <= limits.window <= max(limits.most, policies.MOST_READ)
    if policy == "bucketed":
        assert limits.window <= policies.WINDOW * limits.most


@given(
    st.sampled_from(POLICIES),
    st.lists(st.tuples(st.sampled_from(OWNERS), st.integers(1, 500), st.integers(0, 3)), min_size=1, max_size=40),
    st.integers(1, 8),
    st.integers(1, 600),
)
def test_nobody_starves(policy: str, given_jobs: list[tuple[str, int, int]], most: int, max_tokens: int) -> None:
    """A job is cut after at most as many cuts as its place in its owner's line, times the owners, however many come.

    After each cut every owner gets jobs that are as alike to its others as can be, and the window is small.
    """
    numbers, line = count(), defaultdict[str, list[Candidate]](list)

    def put(owner: str, tokens: int, prefix: int) -> None:
        number = next(numbers)
        line[owner].append(Candidate(str(number), owner, tokens, number, prefix))

    for new in given_jobs:
        put(*new)
    due = {one.id: (nth + 1) * len(OWNERS) for jobs in line.values() for nth, one in enumerate(jobs)}
    last = ""
    for cut in range(1, max(due.values()) + 1):
        behind = sorted(line, key=lambda owner: (owner <= last, owner))
        heads = [one for owner in behind for one in line[owner][: 4 * most]]
        chosen, last = policies.take(policy, heads, most, max_tokens)
        for one in chosen:
            line[one.owner].remove(one)
            assert due.pop(one.id, cut) >= cut
        for owner in OWNERS:
            put(owner, 100, 1)
            put(owner, 100, 1)
    assert due == {}


def test_over_a_round_every_owner_gets_its_batch() -> None:
    """An owner with a thousand jobs that are all alike gets no two batches while another waits."""
    line = {"large": [job(f"l{n}", "large", prefix=1) for n in range(1000)], "small": []}
    line["small"] = [job(f"s{n}", "small", prefix=2) for n in range(10)]
    last, got = "", Counter[str]()
    for _ in range(2):
        heads = [one for owner in sorted(line, key=lambda owner: (owner <= last, owner)) for one in line[owner][:32]]
        chosen, last = policies.take("bucketed", heads, 10, 10**9)
        for one in chosen:
            line[one.owner].remove(one)
            got[one.owner] += 1
    assert got == {"large": 10, "small": 10}


@pytest.mark.parametrize("policy", POLICIES)
def test_every_setting_has_its_policy(policy: str) -> None:
    """What can be set can be chosen by."""
    assert taken(policy, [job("one"), job("two")], 2) == ["one", "two"]
