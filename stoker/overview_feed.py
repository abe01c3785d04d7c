"""The overview of a service, looked at again and again: what is known of it, also while it is away."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from stoker.api_errors import StokerAPIError

_WAKE = 0.25
"""Seconds between two moments at which Ctrl-C is heard, on every system."""


@dataclass(frozen=True, slots=True)
class Look:
    """What is known: the newest overview, when it came, and why there is none since (`away`), for how long."""

    document: dict[str, Any] | None = None
    at: float = 0.0
    away: str = ""
    since: float = 0.0
    refused: str = ""


class Feed:
    """Looks at the service again and again, in a thread of its own: a service that hangs holds up no key."""

    def __init__(self, look: Callable[[], dict[str, Any]], interval: float) -> None:
        self._look = look
        self._interval = interval
        self._changed = threading.Condition()
        self._last = Look()
        self._ended = threading.Event()
        threading.Thread(target=self._go_on, name="feed", daemon=True).start()

    def last(self) -> Look:
        """Return what is known now."""
        with self._changed:
            return self._last

    def next(self, seen: Look) -> Look:
        """Return what is known once that is something else than what was seen."""
        with self._changed:
            while self._last is seen:
                self._changed.wait(_WAKE)
            return self._last

    def end(self) -> None:
        """Look no more."""
        self._ended.set()

    def _go_on(self) -> None:
        while not self._ended.is_set():
            began = time.monotonic()
            try:
                found = self._found(self.last())
            except Exception as error:  # noqa: BLE001  # else the screen would stand still for ever
                found = Look(refused=f"{type(error).__name__}: {error}")
            with self._changed:
                self._last = found
                self._changed.notify_all()
            self._ended.wait(max(0.0, began + self._interval - time.monotonic()))

    def _found(self, before: Look) -> Look:
        try:
            return Look(self._look(), time.time())
        except StokerAPIError as error:
            if not error.temporary:
                return Look(refused=str(error))
            since = before.since or time.time()
            return Look(before.document, before.at, str(error), since)
