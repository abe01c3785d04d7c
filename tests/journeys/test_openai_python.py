"""The stock openai package for Python goes the whole way, unchanged."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.journeys.openai_clients import GOOD, UNHURRIED, by_async_python, by_python, check, write_input
from tests.journeys.running import Up, left_of

pytestmark = [pytest.mark.journey, pytest.mark.timeout(600)]


def test_the_whole_cycle(data: Path, tmp_path: Path) -> None:
    """Upload, create, poll, download both files, cancel, list page by page, delete; then the asynchronous client."""
    path = write_input(tmp_path, "fake")
    up = Up(data, **UNHURRIED)
    url = up.url()
    check(by_python(url, "fake", path), path)
    lines = by_async_python(url, path)
    assert sorted(line["custom_id"] for line in lines) == ["bad", *GOOD]
    assert up.end() == 0
    assert left_of(data) == []
