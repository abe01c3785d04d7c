"""The webhooks' receiver: writes down what it took before it says so, and can be told to misbehave."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tests.chaos.ledger import Ledger
from tests.receivers import Received, Receiver, Reply, receiver

Manner = Literal["well", "errors", "cuts", "redirects", "endless"]
ALONE, TOGETHER = "/endpoint/alone", "/endpoint/together"
"""Where endpoints are told of every job: event by event, and of several in one request."""
SOMETIMES = 0.1
"""Of the events fail even when it behaves well: a receiver has its own bad days."""


@dataclass
class Receiving:
    """What came, by the receiver's own log."""

    inner: Receiver
    log: Ledger
    manner: Manner = "well"

    @property
    def port(self) -> int:
        """Return where it listens."""
        return self.inner.port

    def behave(self, manner: Manner) -> None:
        """Answer so from now on."""
        self.manner = manner

    def answer(self, received: Received) -> Reply:
        """Take an event, or misbehave."""
        if self.manner == "cuts":
            return Reply(cut=True)
        if self.manner == "redirects":
            return Reply(302, {"location": f"http://127.0.0.1:{self.port}/elsewhere"})
        if self.manner == "endless":
            return Reply(500, endless=True, body=b"x" * 4096)
        if self.manner == "errors" or random.random() < SOMETIMES:
            return Reply(503, {"retry-after": "1"} if random.random() < 0.5 else {})
        said = json.loads(received.body)
        same = {
            "message": received.headers["webhook-id"],
            "path": received.path,
            "signed": "webhook-signature" in received.headers,
        }
        told = said["data"] if said["type"] == "events" else [said]
        self.log.note_all("taken", [{"event": one["type"], "subject": one["data"]["id"], **same} for one in told])
        if random.random() < SOMETIMES:
            # Taken, but the sender will not know.
            return Reply(cut=True)
        return Reply()


@contextmanager
def receiving(log: Path) -> Iterator[Receiving]:
    """Run a receiver."""
    with receiver() as inner:
        found = Receiving(inner, Ledger(log))
        inner.answer = found.answer
        yield found
        found.log.close()
