"""The stock openai package for Node goes the whole way, unchanged; and both packages do with real vLLM."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.journeys import running
from tests.journeys.openai_clients import UNHURRIED, by_node, by_python, check, install_node, write_input
from tests.journeys.running import Up, left_of

pytestmark = [pytest.mark.journey, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install Node's openai package into a folder of this run."""
    return install_node(tmp_path_factory.mktemp("node"))


def test_the_whole_cycle(data: Path, tmp_path: Path, installed: Path) -> None:
    """Upload, create, poll, download both files, cancel, list page by page, delete."""
    path = write_input(tmp_path, "fake")
    up = Up(data, **UNHURRIED)
    check(by_node(installed, up.url(), "fake", path), path)
    assert up.end() == 0
    assert left_of(data) == []


@pytest.mark.vllm
@pytest.mark.timeout(1800)
def test_both_packages_and_real_vllm(
    data: Path, tmp_path: Path, installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real answers of a real model, by both packages, in turn, from one service."""
    monkeypatch.setattr(running, "READY_WITHIN", 600.0)
    up = Up(data, "--engine", "vllm", STOKER_MAX_MODEL_LEN="1024")
    url, model = up.url(), "smollm2-135m-instruct"
    path = write_input(tmp_path, model)
    check(by_python(url, model, path), path)
    check(by_node(installed, url, model, path), path)
    assert up.end() == 0
    assert left_of(data) == []
