"""Real vLLM with the demo model: what it answers, how it breaks, and how it does not start."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from stoker import demo_model
from stoker.settings import Settings
from tasks.engines.base import Completion, EngineFailure, EngineStartError
from tasks.engines.vllm import VllmEngine
from tests.engines.subjects import NAME, Subject, close

# vLLM and torch warn of themselves while they load and run.
pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600), pytest.mark.filterwarnings("default")]


def processes() -> set[int]:
    """Return the engine processes that this one started, and theirs."""
    children = psutil.Process().children(recursive=True)
    # Python's tracker of shared memory stays as long as the interpreter.
    return {child.pid for child in children if "resource_tracker" not in " ".join(child.cmdline())}


@pytest.fixture(scope="module")
def demo() -> Iterator[Subject]:
    """Real vLLM with the demo model, as `stoker up` runs it."""
    folder = demo_model.ensure(demo_model.default_cache(os.environ), print)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        engine = VllmEngine(Settings(model_name=NAME, max_model_len=1024, engine_slots=4), str(folder))
        engine.start()
        yield Subject(engine, real=True)
        close(engine)


def text(subject: Subject, question: str, **rest: object) -> str:
    """Ask one question."""
    (outcome,) = subject.ask(subject.chat("job", question, temperature=0, **rest))
    assert isinstance(outcome, Completion), outcome
    answer: str = json.loads(outcome.body)["choices"][0]["message"]["content"]
    return answer


def test_it_knows_the_capital_of_france(demo: Subject) -> None:
    """A real model answers a real question."""
    assert "Paris" in text(demo, "What is the capital of France?", max_tokens=16)


def test_what_vllm_has_passes_through(demo: Subject) -> None:
    """A structured output is vLLM's business, and arrives."""
    schema = {"type": "object", "properties": {"yes": {"type": "boolean"}}, "required": ["yes"]}
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    answer = json.loads(text(demo, "Is Paris in France?", max_tokens=64, response_format=wanted))
    assert isinstance(answer["yes"], bool)


def test_slots_can_be_set(demo: Subject) -> None:
    """With four slots, the fifth request starts when one of four is done."""
    assert demo.engine.slots == 4
    requests = [demo.chat(str(number), max_tokens=24, ignore_eos=True) for number in range(5)]
    first, *_, last = [outcome.id for outcome in demo.engine.generate(requests, threading.Event())]
    assert (first in "0123", last) == (True, "4")


def test_a_dead_core_breaks_the_engine(demo: Subject) -> None:
    """When vLLM's process is killed, running and later calls raise EngineFailure, and close leaves nothing."""
    before = processes()
    assert len(before) >= 1
    assert all(os.getpgid(pid) == os.getpgrp() for pid in before)
    core = demo.engine._processes[0]  # type: ignore[attr-defined]
    threading.Timer(0.3, os.kill, [core.pid, signal.SIGKILL]).start()
    started = time.monotonic()
    with pytest.raises(EngineFailure, match="vLLM's engine process died"):
        demo.ask(demo.chat("job", max_tokens=900, ignore_eos=True))
    assert time.monotonic() - started < 5
    with pytest.raises(EngineFailure):
        demo.ask(demo.chat("later"))
    started = time.monotonic()
    demo.engine.close()
    demo.engine.close()
    assert time.monotonic() - started < 6
    deadline = time.monotonic() + 5
    while processes() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not processes()


def test_too_little_memory_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What only vLLM's own process finds out is told by the engine, in one line, with what to do."""
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "100000")
    folder = demo_model.tiny(tmp_path / "tiny")
    engine = VllmEngine(Settings(model=str(folder)), str(folder))
    with pytest.raises(EngineStartError, match="not enough memory") as raised:
        engine.start()
    assert "VLLM_CPU_KVCACHE_SPACE" in str(raised.value)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 1000
    assert not processes()
    assert "VLLM_LOGGING_CONFIG_PATH" not in os.environ
