"""How tokens travel through Redis: names, ids and messages."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models import streams
from models.streams import EventId, Piece

EVENTS = st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=5)
PIECES = st.builds(Piece, st.text("job_0123", max_size=9), st.integers(1, 20), st.integers(1, 10**12), EVENTS)


@given(st.lists(PIECES, max_size=5))
def test_messages_come_out_as_they_went_in(pieces: list[Piece]) -> None:
    """Whatever the texts hold, several pieces in one message or one alone."""
    assert streams.decode(streams.encode(pieces)) == pieces
    assert [streams.decode_one(streams.encode_one(piece)) for piece in pieces] == pieces


@given(st.binary(max_size=60))
def test_what_is_none_of_ours_counts_as_nothing(message: bytes) -> None:
    """Anybody may publish anything: it raises nothing."""
    assert isinstance(streams.decode(message), list)
    found = streams.decode_one(message)
    assert found is None or isinstance(found, Piece)


@pytest.mark.parametrize("message", [b"", b"\xc1", msgspec.msgpack.encode([1]), msgspec.msgpack.encode({"job": "x"})])
def test_other_messages_are_empty(message: bytes) -> None:
    """Messages of another version, of others, or cut off."""
    assert streams.decode(message) == []
    assert streams.decode_one(message) is None


@given(st.integers(0, 10**9 - 1), st.integers(0, 10**18 - 1))
def test_ids_are_read_as_they_are_written(attempt: int, seq: int) -> None:
    """And their order is that of Redis."""
    ident = EventId(attempt, seq)
    assert streams.event_id(str(ident)) == ident
    assert ident >= streams.START


@pytest.mark.parametrize(
    "text",
    ["", "1", "1-", "-1", "1-2-3", "1-2\n", " 1-2", "+1-2", "1-٣", "a-b", "1-99999999999999999999", "9" * 5000, "\x00"],
)
def test_garbage_is_no_id(text: str) -> None:
    """Nor is one that Redis would not take."""
    assert streams.event_id(text) is None


def test_a_piece_knows_its_last_event() -> None:
    """It is counted from its first."""
    assert Piece("job", 1, 7, ["a", "b", ""]).last == 9


def test_names_are_apart() -> None:
    """No two jobs or models share a key or a channel."""
    names = {streams.key("job_1"), streams.key("job_2"), streams.realtime("a"), streams.realtime("b")}
    assert len(names | {streams.TOKENS, streams.ENDED, streams.STOPPED}) == 7
