"""Real vLLM behind stoker, as the stock openai client and vLLM's own serving benchmark see it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from transformers import AutoTokenizer

from stoker.demo_model import tiny
from tests.journeys import running
from tests.journeys.running import STOKER, Up, end_whatever_is_left, left_of
from tests.tasks.inprocess import until

pytestmark = [pytest.mark.journey, pytest.mark.vllm, pytest.mark.timeout(1500)]

HELLO: Any = [{"role": "user", "content": "hello there"}]
CITY = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS: Any = [
    {"type": "function", "function": {"name": "weather", "description": "x", "parameters": CITY, "strict": True}}
]

FLAGS = "--enable-auto-tool-choice --tool-call-parser hermes"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model of two layers with random weights."""
    made: Path = tiny(tmp_path_factory.mktemp("models") / "tiny")
    return made


@pytest.fixture(scope="module")
def white_space(folder: Path) -> dict[str, int]:
    """Return a `logit_bias` against blanks, which random weights would write for ever where JSON allows them."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return {str(token): -100 for token in range(len(tokenizer)) if not tokenizer.decode([token]).strip()}


@pytest.fixture(scope="module")
def service(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """Run a service with that model."""
    data = tmp_path_factory.mktemp("service") / "var"
    up = Up(
        data,
        *("--engine", "vllm", "--model", str(folder), "--model-name", "tiny"),
        STOKER_MAX_MODEL_LEN="512",
        STOKER_ENGINE_ARGS=FLAGS,
        STOKER_WAIT_FOR="300",
        VLLM_CPU_KVCACHE_SPACE="1",
    )
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(running, "READY_WITHIN", 600.0)
            up.address = up.url()
        yield up
        assert up.end() == 0
        assert left_of(data) == []
    finally:
        end_whatever_is_left(data)


@pytest.fixture
def client(service: Up) -> Iterator[openai.OpenAI]:
    """Return the stock client."""
    with openai.OpenAI(base_url=f"{service.address}/v1", api_key="none", max_retries=0, timeout=300) as made:
        yield made


def test_a_streamed_chat_is_the_whole_one(client: openai.OpenAI) -> None:
    """Token by token, and together what the same request says at once; with its usage, asked for."""
    asked: dict[str, Any] = {"model": "tiny", "messages": HELLO, "max_tokens": 20, "temperature": 0, "seed": 1}
    whole = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    pieces = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]
    assert len(pieces) > 5
    assert "".join(pieces) == whole.choices[0].message.content
    assert whole.usage is not None
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens == 20


def test_completions_and_beams(client: openai.OpenAI) -> None:
    """Text goes on, streamed too; several answers, stops, probabilities and vLLM's beam search are handed through."""
    asked: dict[str, Any] = {"model": "tiny", "prompt": "hello", "max_tokens": 8}
    many = client.completions.create(**asked, n=2, logprobs=2, temperature=1)
    assert len(many.choices) == 2
    assert many.choices[0].logprobs is not None
    beams = client.completions.create(**asked, n=2, temperature=0, extra_body={"use_beam_search": True})
    assert len(beams.choices) == 2
    pieces = [chunk.choices[0].text for chunk in client.completions.create(**asked, stream=True, temperature=0)]
    assert len(pieces) > 2
    assert "".join(pieces) == client.completions.create(**asked, temperature=0).choices[0].text


def test_structured_outputs_and_tools(client: openai.OpenAI, white_space: dict[str, int]) -> None:
    """Even random weights keep to a schema, as text and as a tool's arguments, whole and streamed."""
    asked: dict[str, Any] = {"model": "tiny", "messages": HELLO, "max_tokens": 200, "logit_bias": white_space}
    schema: Any = {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY, "strict": True}}
    said = client.chat.completions.create(**asked, response_format=schema)
    assert json.loads(said.choices[0].message.content or "")["city"] in {"Paris", "Rome"}
    asked |= {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "weather"}}}
    (call,) = client.chat.completions.create(**asked).choices[0].message.tool_calls or []
    assert json.loads(call.function.arguments)["city"] in {"Paris", "Rome"}  # type: ignore[union-attr]
    pieces = []
    for chunk in client.chat.completions.create(**asked, stream=True):
        parts = (chunk.choices[0].delta.tool_calls or []) if chunk.choices else []
        pieces += [part.function.arguments or "" for part in parts if part.function]
    assert json.loads("".join(pieces))["city"] in {"Paris", "Rome"}


def test_responses_at_once_streamed_and_in_the_background(client: openai.OpenAI) -> None:
    """One id for the answer and for looking at it again; the events of a stream end with the whole response."""
    asked: dict[str, Any] = {"model": "tiny", "input": "hello", "max_output_tokens": 8, "temperature": 0}
    whole = client.responses.create(**asked)
    assert client.responses.retrieve(whole.id).output_text == whole.output_text
    events = list(client.responses.create(**asked, stream=True))
    assert events[0].type == "response.created"
    assert events[-1].type in {"response.completed", "response.incomplete"}
    later = client.responses.create(**asked, background=True)
    assert later.status == "queued"
    until(lambda: client.responses.retrieve(later.id).status in {"completed", "incomplete"}, 120)
    assert client.responses.retrieve(later.id).output_text == whole.output_text


def test_embeddings_from_an_engine_beside_it(service: Up, client: openai.OpenAI, folder: Path) -> None:
    """`stoker engine` brings an embedding model; both answer behind one address."""
    command = [*STOKER, "engine", "embed", "--engine", "vllm", "--model", str(folder), "--model-name", "tiny-embed"]
    environ = os.environ | {
        "STOKER_ENGINE_ARGS": "--runner pooling --convert embed",
        "STOKER_MAX_MODEL_LEN": "512",
        "VLLM_CPU_KVCACHE_SPACE": "1",
    }
    engine = subprocess.Popen(
        [*command, "--data", str(service.data)], env=environ, stdout=subprocess.DEVNULL, start_new_session=True
    )
    try:
        until(lambda: "tiny-embed" in {model.id for model in client.models.list()}, 600)
        found = client.embeddings.create(model="tiny-embed", input=["hello", "world"])
        assert [len(one.embedding) for one in found.data] == [64, 64]
        assert client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=2).choices
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(model="tiny-embed", messages=HELLO)
    finally:
        engine.send_signal(signal.SIGINT)
        assert engine.wait(180) == 0


def test_vllms_own_serving_benchmark(service: Up, folder: Path, tmp_path: Path) -> None:
    """It runs against stoker as against vLLM's own server: every request is answered."""
    script = Path(__file__).with_name("serving_benchmark.py")
    flags = ["--backend", "openai-chat", "--base-url", service.address, "--endpoint", "/v1/chat/completions"]
    flags += ["--model", "tiny", "--tokenizer", str(folder), "--dataset-name", "random", "--num-prompts", "24"]
    flags += ["--random-input-len", "32", "--random-output-len", "8", "--max-concurrency", "4"]
    flags += ["--save-result", "--result-dir", str(tmp_path), "--result-filename", "result.json"]
    ran = subprocess.run(
        [sys.executable, str(script), *flags],
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert ran.returncode == 0, ran.stdout[-2000:] + ran.stderr[-2000:]
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["completed"], result["failed"]) == (24, 0)
    assert result["total_output_tokens"] == 24 * 8
