"""Engines to hold against the contract."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from stoker.settings import Settings
from tasks.engines.fake import FakeEngine
from tests.engines.subjects import CONTEXT, NAME, Subject, close


@pytest.fixture(scope="module")
def fake() -> Iterator[Subject]:
    """A fake engine that takes no time."""
    engine = FakeEngine(Settings(engine="fake", model_name=NAME, max_model_len=CONTEXT))
    engine.start()
    yield Subject(engine, real=False)
    engine.close()


@pytest.fixture(scope="module")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subject]:
    """Real vLLM with a model of two layers and random weights."""
    from stoker.demo_model import tiny
    from tasks.engines.vllm import VllmEngine

    folder: Path = tiny(tmp_path_factory.mktemp("models") / "tiny")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        settings = Settings(model=str(folder), model_name=NAME, max_model_len=CONTEXT)
        engine = VllmEngine(settings, str(folder))
        engine.start()
        yield Subject(engine, real=True)
        close(engine)


@pytest.fixture(
    params=["fake", pytest.param("vllm", marks=[pytest.mark.vllm, pytest.mark.timeout(600)])],
    scope="module",
)
def subject(request: pytest.FixtureRequest) -> Subject:
    """Each engine in turn."""
    found: Subject = request.getfixturevalue(request.param)
    return found
