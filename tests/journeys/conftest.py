"""The data folder of a journey, cleaned up whatever happens."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.journeys.running import left_of


@pytest.fixture
def data(tmp_path: Path) -> Iterator[Path]:
    """Return a data folder; what still runs on it after the test is ended."""
    folder = tmp_path / "var"
    yield folder
    for pid in left_of(folder):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
