"""The data folder of a journey, cleaned up whatever happens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.journeys.running import end_whatever_is_left


@pytest.fixture
def data(tmp_path: Path) -> Iterator[Path]:
    """Return a data folder; what still runs on it after the test is ended."""
    folder = tmp_path / "var"
    yield folder
    end_whatever_is_left(folder)
