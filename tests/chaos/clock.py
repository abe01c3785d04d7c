"""A wall clock that can be set: the database's clock, shifted under its feet by libfaketime."""

from __future__ import annotations

import importlib.util
import math
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

_LATE = 2.0
"""Seconds after which a process has noticed a step at the latest."""
_LIBRARY = "vendor/libfaketime/src/libfaketime.so.1"


class Clock:
    """The clock of the processes that get its environment; clocks that never jump are left as they are."""

    def __init__(self, folder: Path) -> None:
        spec = importlib.util.find_spec("libfaketime")
        assert spec is not None, "make setup installs libfaketime"
        assert spec.origin is not None
        # PostgreSQL runs as another user, who may not read an environment in somebody's home.
        self._library = folder / "libfaketime.so.1"
        shutil.copy(Path(spec.origin).parent / _LIBRARY, self._library)
        self._file = folder / "clock"
        self._steps: list[tuple[float, int]] = []
        self._offset = 0
        self.shift(0)

    @property
    def environment(self) -> Mapping[str, str]:
        """Return the variables of a process that is to go by this clock."""
        return {
            "LD_PRELOAD": str(self._library),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_CACHE_DURATION": "1",
        }

    def shift(self, seconds: int) -> None:
        """Set it on by so many seconds, back by negative ones."""
        self._offset += seconds
        new = self._file.with_suffix(".new")
        new.write_text(f"{self._offset:+d}")
        new.chmod(0o644)
        new.rename(self._file)
        self._steps.append((time.time(), self._offset))

    def real(self, stamp: float) -> float:
        """Return the right time for one that was told by this clock."""
        ends = [at for at, _ in self._steps[1:]] + [math.inf]
        for (begin, offset), end in zip(self._steps, ends, strict=True):
            if begin - _LATE <= stamp - offset < end + _LATE:
                return stamp - offset
        return stamp - self._offset
