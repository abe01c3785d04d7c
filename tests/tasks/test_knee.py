"""How `adaptive` learns its batch size from measured batches: pure, by simulated engines."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.loads import Took
from tasks import knee
from tasks.knee import Sample

SEED = {1: 1.776, 2: 1.981, 4: 2.067, 8: 3.767, 16: 4.431, 32: 4.942}
"""Seconds that a batch of so many prompts takes on an A10G, as seed 000 of the project measured them."""
TOKENS = 100


def by_table(table: Mapping[int, float]) -> Callable[[int], float]:
    """Return the seconds of a batch of any size: between the sizes of a table on a line, beyond them in proportion."""
    sizes = sorted(table)

    def seconds(size: int) -> float:
        for low, high in pairwise(sizes):
            if low <= size <= high:
                return table[low] + (table[high] - table[low]) * (size - low) / (high - low)
        return table[sizes[-1]] * size / sizes[-1]

    return seconds


def simulated(seconds: Callable[[int], float], largest: int, cuts: int = 200, waiting: int = 10**6) -> list[int]:
    """Return the sizes of the batches that an endless queue is cut into; each cut has up to `waiting` jobs."""
    found: list[Sample] = []
    for nth in range(cuts):
        size = min(knee.size(found[-60:], largest, nth), waiting)
        found.append(Sample(size, seconds(size), size * TOKENS))
    return [one.size for one in found]


def settled(sizes: list[int]) -> int:
    """Return the size that most of the last batches had."""
    return max(set(sizes[-50:]), key=sizes[-50:].count)


def test_without_data_it_is_the_setting() -> None:
    """As `fixed`, until batches of a size were measured often enough to count."""
    assert knee.knee([], 32) == 32
    assert knee.knee([Sample(4, 1.0, 10)] * (knee.ENOUGH - 1), 32) == 32


@pytest.mark.parametrize("largest", [8, 16, 32])
def test_the_knee_of_the_seeds_table_is_found(largest: int) -> None:
    """Throughput grows up to 32 and no more: from a setting of 8, 16 or 32 it comes to 32."""
    assert 28 <= settled(simulated(by_table(SEED), largest)) <= 36


def test_growing_throughput_ends_at_the_reach() -> None:
    """An engine whose batches take the same time at any size gets four times the setting, no more."""
    sizes = simulated(lambda _: 1.0, 16)
    assert settled(sizes) == max(sizes) == 64


def test_an_engine_that_gets_slower_with_size_gets_small_batches() -> None:
    """Beyond four jobs at once this one loses time: it gets about four."""
    sizes = simulated(lambda size: 1.0 + max(0, size - 4) ** 2 * 0.1, 32)
    assert 3 <= settled(sizes) <= 6


def test_a_changed_engine_is_noticed() -> None:
    """Neighbouring sizes are tried now and then: when the knee moves, the size follows, both ways."""
    clock = iter(range(10**6))
    sizes = simulated(lambda size: by_table(SEED)(size) if next(clock) < 300 else 1.0 + 2.0 * size, 32, cuts=700)
    assert 28 <= settled(sizes[:300]) <= 36
    assert settled(sizes) < 28
    clock = iter(range(10**6))
    sizes = simulated(lambda size: 1.0 + 2.0 * size if next(clock) < 300 else 1.0, 32, cuts=900)
    assert settled(sizes) == 128


def test_a_quiet_hour_teaches_nothing_wrong() -> None:
    """Where there were only small batches to measure, a burst gets the setting's size at once."""
    assert set(simulated(by_table(SEED), 32, waiting=2)) <= {1, 2}
    assert knee.size([Sample(2, 1.981, 200)] * 60, 32, 0) == 32


@given(
    st.lists(st.builds(Sample, st.integers(1, 500), st.floats(0.001, 100), st.integers(1, 10**6)), max_size=60),
    st.integers(1, 1000),
    st.integers(0, 10**6),
)
def test_a_size_is_within_its_bounds(found: list[Sample], largest: int, nth: int) -> None:
    """At least one job, at most four times the setting, whatever was measured."""
    assert 1 <= knee.size(found, largest, nth) <= knee.REACH * largest


def took(engine: str, began: float, ended: float, size: int = 4, **more: object) -> Took:
    """Return a batch that ran."""
    fields = {"model": "m", "lane": "bulk", "tokens": 40, "done": True, **more}
    return Took(engine=engine, size=size, began=began, ended=ended, **fields)  # type: ignore[arg-type]


def test_only_batches_that_had_their_engine_to_themselves_are_measured() -> None:
    """One that ran beside others was slowed down by them; a little overlap, or another engine's work, is none."""
    alone = [took("a", 0, 10, 1), took("a", 10, 20, 2), took("a", 19.5, 30, 3), took("b", 2, 5, 4)]
    beside = [took("a", 40, 50), took("a", 45, 60), took("a", 70, 100), took("a", 75, 80)]
    found = knee.samples([*reversed(alone), *beside], "m", "bulk")
    assert sorted(one.size for one in found) == [1, 2, 3, 4]
    assert {one.size: one.seconds for one in found}[2] == 10


def test_only_what_ended_well_of_this_model_and_lane_is_measured() -> None:
    """Others count as company all the same: their time on the engine is theirs."""
    batches = [
        took("a", 0, 10, done=False),
        took("a", 20, 30, model="other"),
        took("a", 40, 50, lane="realtime"),
        took("a", 60, 60),
        took("a", 70, 80, 9),
        took("a", 90, 100),
        took("a", 92, 96, model="other"),
    ]
    assert [one.size for one in knee.samples(batches, "m", "bulk")] == [9]
