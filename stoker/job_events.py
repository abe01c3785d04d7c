"""What happens to one job, as it happens: read from `/v1/jobs/{id}/events`, and read on when the connection breaks.

Server-sent events are parsed here, and here is decided when it is asked again and behind which event; no network.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import Any

import httpx

from stoker.api_errors import StokerAPIError
from stoker.calls import nothing, part
from stoker.resources import Job, made, piece_of
from stoker.steps import PATIENCE, Call, Outcome, Pause, pause_before

TIMEOUT = httpx.Timeout(20.0, connect=5.0, read=60.0)
"""The service says that a stream lives on every 15 seconds."""
MOST_BYTES = 64_000_000
"""Of one event: what is larger comes from no service of ours."""


@dataclass(frozen=True, slots=True)
class Event:
    """One event: `state`, `chunk` (the endpoint's own event, with an `id` to go on behind), `restart`, `lost` or `end`.

    After `restart` the answer begins anew: what came so far counts no more. After `lost` the chunks have a gap; the
    job's result has everything.
    """

    kind: str
    data: Any = field(repr=False)
    id: str = ""

    @property
    def text(self) -> str:
        """Return what a chunk adds to the text of the first answer, empty for everything else."""
        return piece_of(self.data) if self.kind == "chunk" else ""

    @property
    def job(self) -> Job:
        """Return the job, of the event `end`. Raises ValueError for any other."""
        if self.kind != "end":
            raise ValueError(f"the event {self.kind} has no job")
        return made(Job, self.data)


class Events:
    """A reader of one job's events. `ended` once the job's end was read; `after` is the last chunk that was."""

    def __init__(self, job_id: str, after: str = "", patience: float = PATIENCE) -> None:
        self.after = after
        self.ended = False
        self.outcome: Outcome = None
        """What the last request came to; whoever sends it sets this."""
        self._path = f"/v1/jobs/{part(job_id)}/events"
        self._patience = patience
        self._state = ""
        self._tried = 0
        self._until = 0.0
        self._begin()

    def _begin(self) -> None:
        self._rest = b""
        self._kind, self._id, self._data = "", "", ""

    def call(self) -> Call[None]:
        """Return the request that asks for what follows."""
        self._begin()
        headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": self.after} if self.after else {})
        return Call("GET", self._path, nothing, {"headers": headers, "timeout": TIMEOUT}, repeatable=True)

    def feed(self, block: bytes) -> list[Event]:
        """Take what came of the answer; return the events that it completes."""
        # Not splitlines(): it also splits at separators that JSON allows inside texts.
        *lines, self._rest = (self._rest + block).split(b"\n")
        if len(self._rest) > MOST_BYTES:
            raise StokerAPIError("the service sent an event without end")
        found = [event for line in lines if (event := self._line(line)) is not None]
        if found:
            self._tried = 0
        return found

    def pause(self) -> Pause:
        """Return the pause until it is asked again, now that an answer or a connection has come to its end.

        Raises StokerAPIError when that would not help, or nothing has come for `patience` seconds of trying.
        """
        if self._tried == 0:
            self._until = time.monotonic() + self._patience
        self._tried += 1
        pause = pause_before(self.outcome, self._tried - 1)
        if time.monotonic() + pause.seconds > self._until:
            raise StokerAPIError("the service ends the stream again and again", temporary=True)
        return pause

    def _line(self, line: bytes) -> Event | None:
        """Take one line; an empty one completes an event."""
        name, _, value = line.removesuffix(b"\r").decode("utf-8", "replace").partition(":")
        value = value.removeprefix(" ")
        if name == "event":
            self._kind = value
        elif name == "id":
            self._id = value
        elif name == "data":
            self._data += value
        elif not name and not value and self._data:
            return self._event()
        return None

    def _event(self) -> Event | None:
        kind, ident, data = self._kind, self._id, self._data
        self._kind, self._id, self._data = "", "", ""
        try:
            event = Event(kind, json.loads(data), ident)
            state = str(event.data.get("state", "")) if kind == "state" else ""
        except (ValueError, AttributeError) as error:
            raise StokerAPIError("the service does not send events as stoker does") from error
        if ident:
            self.after = ident
        self.ended = self.ended or kind == "end"
        if state and state == self._state:
            return None  # told again to whoever comes back
        self._state = state or self._state
        return event
