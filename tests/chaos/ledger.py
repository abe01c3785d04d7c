"""The client's own witness: what it asked for and what it was answered, on the disk before anything else happens."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any


class Ledger:
    """An append-only file of JSON lines, each one synced before `note` returns."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._lock = threading.Lock()

    def note(self, what: str, **facts: Any) -> None:
        """Write a line down: what happened, when, and its facts."""
        self.note_all(what, [facts])

    def note_all(self, what: str, each: Iterable[Mapping[str, Any]]) -> None:
        """Write a line for each of several things that happened at once, all of them or, if that fails, any."""
        lines = [json.dumps({"what": what, "at": time.time(), **facts}) + "\n" for facts in each]
        with self._lock:
            os.write(self._file, "".join(lines).encode())
            os.fsync(self._file)

    def read(self, *kinds: str) -> Iterator[dict[str, Any]]:
        """Yield the lines of these kinds, all without any."""
        for line in self.path.read_text().splitlines():
            found = json.loads(line)
            if not kinds or found["what"] in kinds:
                yield found

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)
