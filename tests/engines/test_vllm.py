"""Real vLLM with the demo model: what it answers, how it breaks, and how it does not start."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from stoker import demo_model
from stoker.settings import Settings
from tasks.engines.base import Completion, EngineFailure, EngineStartError, Rejection, Request
from tasks.engines.vllm import VllmEngine
from tests.engines.subjects import NAME, Subject, close, heard

# vLLM and torch warn of themselves while they load and run.
pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600), pytest.mark.filterwarnings("default")]

SCHEMA = {"type": "object", "properties": {"yes": {"type": "boolean"}}, "required": ["yes"]}


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
        tools = "--enable-auto-tool-choice --tool-call-parser hermes"
        settings = Settings(model_name=NAME, max_model_len=1024, engine_slots=4, engine_args=tools)
        engine = VllmEngine(settings, str(folder))
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


def test_it_tells_what_the_prefix_cache_had(demo: Subject) -> None:
    """A long prompt that comes again is read from vLLM's cache, and the usage says how much of it."""
    question = "Rule: be kind. " * 60 + "What is the capital of Italy?"
    first, again = (demo.ask(demo.chat("job", question, temperature=0, max_tokens=4))[0] for _ in range(2))
    assert isinstance(first, Completion)
    assert isinstance(again, Completion)
    assert first.usage.cached_tokens == 0
    assert 0 < again.usage.cached_tokens < again.usage.prompt_tokens


def answers(subject: Subject, request: Request) -> list[Any]:
    """Ask without a stream and with one."""
    made = []
    for one in (request, heard(request)[0]):
        (outcome,) = subject.ask(one)
        assert isinstance(outcome, Completion), outcome
        made.append(json.loads(outcome.body))
    return made


def completions(prompt: str, **rest: Any) -> Request:
    """Make a request for text that goes on."""
    body = {"model": NAME, "prompt": prompt, "max_tokens": 4, "temperature": 0, **rest}
    return Request("job", "/v1/completions", json.dumps(body), "bulk", 60.0)


def test_structured_outputs(demo: Subject) -> None:
    """A schema binds the answer, whether it is streamed or not."""
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}
    request = demo.chat("job", "Is Paris in France?", max_tokens=64, temperature=0, response_format=wanted)
    for answer in answers(demo, request):
        assert isinstance(json.loads(answer["choices"][0]["message"]["content"])["yes"], bool)


@pytest.mark.parametrize("choice", [{"type": "function", "function": {"name": "weather"}}, "required"])
def test_tools(demo: Subject, choice: Any) -> None:
    """A tool that must be called is called with arguments of its schema; a stream's deltas make the same call."""
    function = {"name": "weather", "parameters": SCHEMA | {"additionalProperties": False}, "strict": True}
    tools = [{"type": "function", "function": function}]
    request = demo.chat("job", "Is it raining?", max_tokens=96, temperature=0, tools=tools, tool_choice=choice)
    calls = [answer["choices"][0]["message"]["tool_calls"] for answer in answers(demo, request)]
    for (call,) in calls:
        assert (call["type"], call["function"]["name"]) == ("function", "weather")
        assert isinstance(json.loads(call["function"]["arguments"])["yes"], bool)
        assert call["id"]
        assert "index" not in call
    assert calls[0][0]["function"] == calls[1][0]["function"]


def test_tools_are_the_models_choice(demo: Subject) -> None:
    """With `auto` a model may call a tool or speak, and with the flags of vLLM for it the request is good."""
    tools = [{"type": "function", "function": {"name": "weather", "parameters": SCHEMA}}]
    one, other = answers(demo, demo.chat("job", "Say hello.", max_tokens=8, temperature=0, tools=tools))
    assert one["choices"][0]["message"]["content"] == other["choices"][0]["message"]["content"]


def test_logprobs(demo: Subject) -> None:
    """Each token of a chat has them, and of a completion, whose echo has them too; a stream's are the same."""
    whole, streamed = answers(demo, demo.chat("job", max_tokens=4, temperature=0, logprobs=True, top_logprobs=2))
    tokens = streamed["choices"][0]["logprobs"]["content"]
    assert [len(token["top_logprobs"]) for token in tokens] == [2] * streamed["usage"]["completion_tokens"]
    assert [token["token"] for token in tokens] == [t["token"] for t in whole["choices"][0]["logprobs"]["content"]]
    one, other = (a["choices"][0] for a in answers(demo, completions("Paris is", logprobs=2, echo=True)))
    assert one["text"] == other["text"] == "".join(other["logprobs"]["tokens"])
    assert one["logprobs"]["tokens"] == other["logprobs"]["tokens"]
    assert one["logprobs"]["text_offset"] == other["logprobs"]["text_offset"]


def test_n_and_stop(demo: Subject) -> None:
    """Choices come together, and a stop word ends one, and is named."""
    whole, streamed = answers(demo, demo.chat("job", n=2, seed=1, max_tokens=4))
    assert [one["message"]["content"] for one in whole["choices"]] == [
        one["message"]["content"] for one in streamed["choices"]
    ]
    for answer in answers(demo, demo.chat("job", "What is the capital of France?", max_tokens=16, stop=["Paris"])):
        choice = answer["choices"][0]
        if choice["finish_reason"] == "stop":
            assert choice["stop_reason"] in ("Paris", None)
        assert "Paris" not in choice["message"]["content"]


def test_beam_search(demo: Subject) -> None:
    """The best beams are the choices; what vLLM cannot stream is a clean 400."""
    for answer in answers(demo, demo.chat("job", use_beam_search=True, n=2, temperature=0, max_tokens=4)):
        texts = [choice["message"]["content"] for choice in answer["choices"]]
        assert len(set(texts)) == 2
        assert answer["usage"]["completion_tokens"] == 8
    request = completions("Paris is", use_beam_search=True, n=2)
    (plain,), (refused,) = demo.ask(request), demo.ask(heard(request)[0])
    assert isinstance(plain, Completion)
    assert len(json.loads(plain.body)["choices"]) == 2
    assert isinstance(refused, Rejection)
    assert (refused.status, refused.code) == (400, "invalid_request")
    assert "beam search" in refused.message


def test_a_client_has_no_priority_of_its_own(demo: Subject) -> None:
    """The lane decides: any priority is as good as none."""
    assert demo.engine._client.vllm_config.scheduler_config.policy == "priority"  # type: ignore[attr-defined]
    for lane in ("realtime", "standard", "bulk"):
        (outcome,) = demo.ask(demo.chat("job", lane=lane, priority=-9))
        assert isinstance(outcome, Completion)


@pytest.mark.parametrize("options", [{}, {"n": 2}, {"use_beam_search": True, "n": 2, "temperature": 0}])
def test_what_nobody_waits_for_leaves_vllm(demo: Subject, options: dict[str, Any]) -> None:
    """A stream that was stopped is aborted inside vLLM: it takes no slot and no memory from others."""
    stop = threading.Event()
    request, _ = heard(demo.chat("job", max_tokens=900, ignore_eos=True, **options))
    inside = demo.engine._client.output_processor.request_states  # type: ignore[attr-defined]
    threading.Timer(0.4, stop.set).start()
    assert demo.ask(request, stop=stop) == []
    deadline = time.monotonic() + 60
    while inside and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not inside


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
    assert time.monotonic() - started < 30
    with pytest.raises(EngineFailure):
        demo.ask(demo.chat("later"))
    started = time.monotonic()
    demo.engine.close()
    demo.engine.close()
    assert time.monotonic() - started < 30
    deadline = time.monotonic() + 60
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
