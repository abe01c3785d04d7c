"""Engines to hold against the contract."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from stoker.settings import Settings
from tasks.engines import echo
from tasks.engines.base import Completion, Rejection, Request, ServedModel
from tasks.engines.fake import FakeEngine, mark_of
from tasks.engines.upstream import UpstreamEngine
from tests.engines.subjects import CONTEXT, NAME, Subject, close
from tests.upstreams import Reply, upstream


@pytest.fixture(scope="module")
def fake() -> Iterator[Subject]:
    """A fake engine that takes no time."""
    engine = FakeEngine(Settings(engine="fake", model_name=NAME, max_model_len=CONTEXT))
    engine.start()
    yield Subject(engine, real=False)
    engine.close()


@pytest.fixture(scope="module")
def paced() -> Iterator[Subject]:
    """A fake engine that says its words one by one."""
    engine = FakeEngine(
        Settings(engine="fake", model_name=NAME, max_model_len=CONTEXT, fake_base_ms=30, fake_token_ms=25)
    )
    engine.start()
    yield Subject(engine, real=False)
    engine.close()


def echoed(path: str, body: str) -> Reply:
    """Answer as the fake engine would, over HTTP."""
    request = Request("job", path, body, "standard", 60.0, emit=lambda _data: None)
    made = echo.answer(request, ServedModel(NAME, CONTEXT))
    if isinstance(made, Rejection):
        return Reply(made.status, body=made.body.encode())
    said = [f"data: {data}\n\n".encode() for data in made.speech.part(0)]
    _, seconds = mark_of(request)
    if isinstance(made.outcome, Completion):
        whole = None if said else made.outcome.body.encode()
        return Reply(body=whole, events=[*said, b"data: [DONE]\n\n"], delay=seconds)
    return Reply(events=said, cut=len(said))


@pytest.fixture(scope="module")
def routed() -> Iterator[Subject]:
    """The router over two servers that answer like the fake engine."""
    with upstream(NAME) as first, upstream(NAME) as second:
        first.serve = second.serve = echoed
        engine = UpstreamEngine(Settings(engine="upstream", upstreams=f"{first.url},{second.url}"))
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
    params=["fake", "routed", pytest.param("vllm", marks=[pytest.mark.vllm, pytest.mark.timeout(600)])],
    scope="module",
)
def subject(request: pytest.FixtureRequest) -> Subject:
    """Each engine in turn."""
    found: Subject = request.getfixturevalue(request.param)
    return found


@pytest.fixture(
    params=["fake", "paced", pytest.param("vllm", marks=[pytest.mark.vllm, pytest.mark.timeout(600)])],
    scope="module",
)
def speaker(request: pytest.FixtureRequest) -> Subject:
    """Each engine in turn, and one that takes its time over each word."""
    found: Subject = request.getfixturevalue(request.param)
    return found


@pytest.fixture(
    params=["paced", pytest.param("vllm", marks=[pytest.mark.vllm, pytest.mark.timeout(600)])],
    scope="module",
)
def talker(request: pytest.FixtureRequest) -> Subject:
    """Each engine whose words take their time."""
    found: Subject = request.getfixturevalue(request.param)
    return found
