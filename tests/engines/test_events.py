"""Server-sent events out of bytes that were cut anywhere."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.engines.upstreams.events import BadStream, Events

LINE = st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=20)
DATA = st.lists(LINE, min_size=1, max_size=3).map("\n".join)


def heard(chunks: list[bytes]) -> list[str]:
    """Feed chunks and return all data."""
    events = Events()
    return [data for chunk in chunks for data in events.feed(chunk)] + events.end()


@given(
    wanted=st.lists(DATA, max_size=6),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    space=st.sampled_from(["", " "]),
    extra=st.sampled_from(["", ": a comment", "event: x", "id: 7", "retry: 1", "data"]),
    cuts=st.lists(st.integers(0, 400), max_size=8),
    marked=st.booleans(),
)
def test_any_cut_gives_the_same_events(
    wanted: list[str], end: str, space: str, extra: str, cuts: list[int], marked: bool
) -> None:
    """Lines may end in three ways, data may have several lines, other fields and comments are skipped."""
    wanted = [data for data in wanted if space or (not data.startswith(" ") and "\n " not in data)]
    text = ""
    for data in wanted:
        lines = [f"data:{space}{line}" for line in data.split("\n")]
        text += end.join([*([extra] if extra and extra != "data" else []), *lines, "", ""])
    raw = (b"\xef\xbb\xbf" if marked else b"") + text.encode()
    bounds = [0, *sorted(min(cut, len(raw)) for cut in cuts), len(raw)]
    assert heard([raw[low:high] for low, high in itertools.pairwise(bounds)]) == wanted


def test_the_last_blank_line_may_be_missing() -> None:
    """The end of the stream ends its last event too."""
    assert heard([b"data: 1\n\ndata: 2"]) == ["1", "2"]
    assert heard([b"data: 1\n\ndata: 2\r"]) == ["1", "2"]


def test_what_is_no_stream() -> None:
    """A line or an event without end is cut at a bound, and bytes that are no UTF-8 are refused."""
    events = Events(most=100)
    with pytest.raises(BadStream, match="line"):
        events.feed(b"data: " + b"x" * 100)
    events = Events(most=100)
    with pytest.raises(BadStream, match="event"):
        events.feed(b"data: 1234567890\n" * 20)
    events = Events(most=100)
    with pytest.raises(BadStream, match="event"):
        events.feed(b"data:\n" * 101)
    with pytest.raises(BadStream, match="UTF-8"):
        Events().feed(b"data: \xff\n\n")
