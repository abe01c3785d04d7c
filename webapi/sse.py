"""Server-sent events: how they are written, and an answer made of them that lets go of all it holds when it ends."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import ExitStack
from socket import socket

from flask import Response

from models.json_text import one_line
from webapi.hangups import can_write

MIMETYPE = "text/event-stream"
KEEP_ALIVE = b": keep-alive\n\n"
KEEP_ALIVE_EVERY = 15.0
_EVENT = {
    "type": "object",
    "description": "One event of the stream.",
    "properties": {name: {"type": "string"} for name in ("event", "id", "data")},
    "required": ["data"],
}
CONTENT = {"content": {MIMETYPE: {"schema": _EVENT}}}


def event(data: str, *, kind: str = "", ident: str = "") -> bytes:
    """Return one event; `data` is JSON, so that a line break in it can only stand between its parts."""
    head = (f"event: {one_line(kind)}\n" if kind else "") + (f"id: {ident}\n" if ident else "")
    return f"{head}data: {one_line(data)}\n\n".encode("utf-8", "replace")


class _Body:
    """The events, each sent only when the client takes it; `held` is closed at the end, however it comes."""

    def __init__(self, events: Iterator[bytes], held: ExitStack, connection: socket | None, stall: float) -> None:
        self._events = events
        self._held = held
        self._connection = connection
        self._stall = stall

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        data = next(self._events)
        if not can_write(self._connection, self._stall):
            # Not a quiet end: to a client that reads on after all, the answer must not look whole.
            raise BrokenPipeError(errno.EPIPE, "the client does not read its stream")
        return data

    def close(self) -> None:
        """Let go of everything; the server calls it also when the client has gone."""
        self._held.close()


def respond(
    events: Iterator[bytes], held: ExitStack, connection: socket | None, stall: float, **headers: str
) -> Response:
    """Return an answer of events; a client that reads nothing for `stall` seconds has its stream ended."""
    if connection is not None:
        # For what is larger than the room that `can_write` waits for.
        connection.settimeout(stall)
    response = Response(_Body(events, held, connection, stall), mimetype=MIMETYPE)
    # Proxies are not to collect what should be seen as it comes.
    response.headers.update({"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
    response.headers.update({name.replace("_", "-"): value for name, value in headers.items()})
    return response
