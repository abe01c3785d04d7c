"""Measures add up, go through JSON, and tell percentiles."""

from __future__ import annotations

import math
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from models.measures import Measures, quantile, seconds, step, total

COUNTS = st.dictionaries(st.integers(-40, 80), st.integers(1, 10**9), max_size=8).map(Counter)
NAMED = st.dictionaries(st.sampled_from(["succeeded", "failed", "x"]), st.integers(1, 10**9)).map(Counter)
MEASURES = st.builds(
    Measures,
    ended=NAMED,
    errors=NAMED,
    tokens=NAMED,
    wait=COUNTS,
    latency=COUNTS,
    first=COUNTS,
    sizes=COUNTS,
    padding=st.integers(0, 100).map(lambda n: n / 8),
    batches=st.integers(0, 1000),
    busy=st.integers(0, 1000).map(float),
)


@given(MEASURES)
def test_what_is_encoded_is_decoded(measures: Measures) -> None:
    """Nothing is lost on the way through the database."""
    assert Measures.decode(measures.encode()) == measures


@given(st.lists(MEASURES, max_size=4))
def test_the_order_of_adding_does_not_matter(measured: list[Measures]) -> None:
    """Engines and stretches may be added up in any order, and none of them is changed by it."""
    before = [one.encode() for one in measured]
    assert total(measured) == total(reversed(measured))
    assert [one.encode() for one in measured] == before


def test_a_newer_version_may_measure_more() -> None:
    """What it writes besides is passed over."""
    assert Measures.decode('{"ended":{"failed":2},"heat":{"1":2}}') == Measures(ended=Counter(failed=2))


@given(st.lists(st.floats(0.001, 1e6), min_size=1, max_size=200), st.sampled_from([0.5, 0.95, 0.99]))
def test_a_percentile_is_right_to_ten_percent(times: list[float], share: float) -> None:
    """However many times were counted, and however they lie."""
    found = quantile(Counter(map(step, times)), share)
    exact = sorted(times)[math.ceil(share * len(times)) - 1]
    assert found is not None
    assert abs(found / exact - 1) < 0.1


def test_hostile_times_have_a_step() -> None:
    """A clock that was set back, and a job that is older than the database."""
    assert step(-5.0) == step(0.0) < step(0.002) < step(1.0) < step(1e12)
    assert seconds(step(1.0)) < 1.1
    assert quantile({}, 0.5) is None
