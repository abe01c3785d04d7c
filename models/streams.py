"""How the tokens of a job travel through Redis: names, ids and messages. Pure.

A worker writes what its engine emits, in pieces, into a Redis stream of the job, and publishes the same pieces to
whoever listens. An event is known by the attempt of its job and its number in that attempt, from 1. Redis takes ids
only in rising order: once a later attempt has written, an earlier one that wakes up cannot.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

import msgspec

TOKENS = "stoker:tokens"
"""Channel of the pieces of all streams."""
ENDED = "stoker:ended"
"""Channel of the ids of jobs that ended, by commas."""
STOPPED = "stoker:stopped"
"""Channel of the ids of jobs that nobody wants any more, by commas: their engine is to look at once."""

END = ""
"""The event that ends an attempt whose answer is whole: no endpoint sends an empty one."""

FIELD = b"p"
"""The field of a stream's entry that holds its piece."""

_ID = re.compile(r"([0-9]{1,9})-([0-9]{1,18})")


def realtime(model: str) -> str:
    """Return the channel on which engines hear of realtime jobs for a model."""
    return f"stoker:realtime:{model}"


def key(job_id: str) -> str:
    """Return the name of the stream that holds a job's tokens."""
    return f"stoker:tokens:{job_id}"


class EventId(NamedTuple):
    """Where an event stands: the attempt of its job, and its number in it. Written `2-17`."""

    attempt: int
    seq: int

    def __str__(self) -> str:
        """Return it as Redis and SSE have it."""
        return f"{self.attempt}-{self.seq}"


START = EventId(0, 0)
"""Before all events."""


def event_id(text: str) -> EventId | None:
    """Read an id; None when the text is none."""
    found = _ID.fullmatch(text)
    return EventId(int(found[1]), int(found[2])) if found else None


class Piece(msgspec.Struct, array_like=True, frozen=True):
    """Events of one attempt that follow each other; `first` is the number of the first of them."""

    job: str
    attempt: int
    first: int
    events: list[str]

    @property
    def last(self) -> int:
        """Return the number of the last event."""
        return self.first + len(self.events) - 1


_pieces = msgspec.msgpack.Decoder(list[Piece])
_piece = msgspec.msgpack.Decoder(Piece)


def encode(pieces: Iterable[Piece]) -> bytes:
    """Return the message that is published."""
    return msgspec.msgpack.encode(list(pieces))


def encode_one(piece: Piece) -> bytes:
    """Return the content of a stream's entry."""
    return msgspec.msgpack.encode(piece)


def decode(message: bytes) -> list[Piece]:
    """Read a published message; what is none of ours counts as empty."""
    try:
        return _pieces.decode(message)
    except msgspec.DecodeError:
        return []


def decode_one(content: bytes) -> Piece | None:
    """Read the content of a stream's entry; None when it is none of ours."""
    try:
        return _piece.decode(content)
    except msgspec.DecodeError:
        return None
