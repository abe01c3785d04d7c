"""When to try again: waits grow, stay in bounds, and receivers are heard."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks import backoff

SCHEDULE = (0.0, 5.0, 300.0, 1800.0)
NOW = 784_111_777.0  # Sun, 06 Nov 1994 08:49:37 GMT

jitters = st.floats(0, 1)
seconds = st.floats(0, 1e6)


@given(attempt=st.integers(-5, 10_000), jitter=jitters)
def test_a_delay_lies_between_half_and_all_of_what_is_planned(attempt: int, jitter: float) -> None:
    """Doubling stops at the most; jitter takes away at most half."""
    planned = min(60.0, 2.0 ** min(max(attempt - 1, 0), 10))
    assert planned / 2 <= backoff.delay(attempt, jitter=jitter) <= planned


def test_delays_double() -> None:
    """Without luck the waits are 1, 2, 4, 8 seconds, and then the most."""
    waits = [backoff.delay(attempt, jitter=1.0, most=10.0) for attempt in range(1, 7)]
    assert waits == [1.0, 2.0, 4.0, 8.0, 10.0, 10.0]


@given(tried=st.integers(0, 3), jitter=jitters)
def test_a_delivery_follows_its_schedule(tried: int, jitter: float) -> None:
    """The wait before each try is the schedule's, give or take a tenth."""
    wait = backoff.webhook_delay(SCHEDULE, tried, jitter)
    assert wait == pytest.approx(SCHEDULE[tried], rel=0.1 + 1e-9)


@given(tried=st.integers(4, 32767), jitter=jitters, asked=st.none() | seconds)
def test_after_the_last_try_there_is_none(tried: int, jitter: float, asked: float | None) -> None:
    """A used-up schedule stays used up, whatever the receiver asks for."""
    assert backoff.webhook_delay(SCHEDULE, tried, jitter, asked) is None


@given(tried=st.integers(0, 3), jitter=jitters, asked=seconds)
def test_a_receiver_is_never_asked_sooner_than_it_wants(tried: int, jitter: float, asked: float) -> None:
    """Retry-After is the least, and the schedule still holds."""
    wait = backoff.webhook_delay(SCHEDULE, tried, jitter, asked)
    assert wait is not None
    assert wait >= asked
    assert wait >= SCHEDULE[tried] * 0.9


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (None, None),
        ("", None),
        ("soon", None),
        ("-5", None),
        ("nan", None),
        ("inf", None),
        ("1e9", None),
        ("٣", None),
        ("0", 0.0),
        ("120", 120.0),
        (" 1.5 ", 1.5),
        ("86401", 86_400.0),
        ("9" * 5000, 86_400.0),
        ("Sun, 06 Nov 1994 08:50:37 GMT", 60.0),
        ("Sunday, 06-Nov-94 08:50:37 GMT", 60.0),
        ("Sun, 06 Nov 1994 08:50:37 -0000", 60.0),
        ("Sun, 06 Nov 1994 08:49:00 GMT", 0.0),
        ("Sun, 06 Nov 2994 08:49:37 GMT", 86_400.0),
        ("Sun, 99 Nov 1994 08:49:37 GMT", None),
    ],
)
def test_retry_after_is_read_as_seconds_or_as_a_date(header: str | None, expected: float | None) -> None:
    """Both forms are read, at most a day; nonsense says nothing."""
    assert backoff.retry_after(header, NOW) == expected


@given(st.text())
def test_no_header_is_too_strange_to_read(header: str) -> None:
    """Any text gives None or a wait within a day."""
    wait = backoff.retry_after(header, NOW)
    assert wait is None or 0 <= wait <= backoff.DAY
