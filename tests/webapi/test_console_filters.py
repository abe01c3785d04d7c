"""Numbers and times as the pages of the console write them."""

from __future__ import annotations

import pytest

from webapi.console import filters


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, filters.MISSING),
        (0, "0"),
        (0.5, "0.5"),
        (12.34, "12.3"),
        (100, "100"),
        (12_345, "12,345"),
        (1_234_567, "1.23 M"),
    ],
)
def test_counts(value: float | None, text: str) -> None:
    """Few digits, a dash for what is not known."""
    assert filters.count(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, filters.MISSING),
        (0.012, "12 ms"),
        (3.42, "3.4 s"),
        (60, "60 s"),
        (300, "5 min"),
        (9000, "2.5 h"),
        (302_400, "3.5 d"),
    ],
)
def test_spans(seconds: float | None, text: str) -> None:
    """The unit that fits."""
    assert filters.span(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"), [(None, filters.MISSING), (0, "0 B"), (512, "512 B"), (1000, "1 kB"), (1_400_000, "1.4 MB")]
)
def test_sizes(size: int | None, text: str) -> None:
    """The unit that fits."""
    assert filters.size(size) == text


def test_a_time_says_its_zone_until_a_script_makes_it_local() -> None:
    """It is an element that scripts and screen readers know for a time; a dash for none."""
    text = "2025-11-28 22:30:00 UTC"
    assert filters.when(1764369000.1234) == f'<time datetime="2025-11-28T22:30:00.123Z">{text}</time>'
    assert filters.when(None) == filters.MISSING
