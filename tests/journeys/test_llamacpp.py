"""`stoker up --engine upstream` in front of real llama.cpp servers, with the stock openai client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.journeys.running import Up, left_of
from tests.llamacpp import MODEL, LlamaCpp, llamacpp
from tests.tasks.inprocess import until

pytestmark = [pytest.mark.journey, pytest.mark.timeout(600)]

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}, "people": {"type": "integer"}},
    "required": ["city", "people"],
    "additionalProperties": False,
}


@pytest.fixture
def two(tmp_path: Path) -> Iterator[list[LlamaCpp]]:
    """Return two servers that are not started yet."""
    with llamacpp(tmp_path / "one.log") as one, llamacpp(tmp_path / "two.log") as other:
        yield [one, other]


def asked(text: str, tokens: int = 8) -> dict[str, Any]:
    """Return the parameters of a chat."""
    chat = [{"role": "user", "content": text}]
    return {"model": MODEL, "messages": chat, "max_tokens": tokens, "temperature": 0}


def test_real_llamacpp_servers(data: Path, two: list[LlamaCpp]) -> None:
    """Started after stoker they are found when their model is loaded; what llama.cpp can do comes through; one dies."""
    settings = {"STOKER_UPSTREAM_CHECK_EVERY": "1", "STOKER_UPSTREAM_MAX_CONNECTIONS": "2", "STOKER_WAIT_FOR": "300"}
    up = Up(data, "--engine", "upstream", STOKER_UPSTREAMS=",".join(server.url for server in two), **settings)
    with openai.OpenAI(base_url=f"{up.url()}/v1", api_key="none", max_retries=0, timeout=300) as client:
        for server in two:
            server.start()
        until(lambda: [model.id for model in client.models.list()] == [MODEL], 180)

        whole = client.chat.completions.create(**asked("What is the capital of France?"))
        assert whole.usage is not None
        assert whole.usage.completion_tokens <= 8
        _streams_what_it_answers(client, str(whole.choices[0].message.content))
        _obeys_a_schema(client)
        _says_what_is_wrong(client)

        with ThreadPoolExecutor(6) as pool:
            texts = [f"Say the number {number}." for number in range(12)]
            answers = [pool.submit(client.chat.completions.create, **asked(text)) for text in texts]
            answers[0].result()
            two[0].kill()
            assert all(answer.result().choices[0].message.content for answer in answers)
        _lets_go_of_who_left(client, two[1])
    assert up.end() == 0
    assert left_of(data) == []


def _streams_what_it_answers(client: openai.OpenAI, answer: str) -> None:
    options: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(client.chat.completions.create(**asked("What is the capital of France?"), **options))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == answer
    assert len(chunks) > 3
    assert chunks[-1].usage is not None


def _obeys_a_schema(client: openai.OpenAI) -> None:
    form: dict[str, Any] = {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA}}
    chat = client.chat.completions.create(**asked("Paris, in JSON", 60), response_format=form)
    assert set(json.loads(str(chat.choices[0].message.content))) == {"city", "people"}


def _says_what_is_wrong(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="context size"):
        client.chat.completions.create(**asked("word " * 3000))
    with pytest.raises(openai.BadRequestError) as refused:
        client.embeddings.create(model=MODEL, input="This server was not started for embeddings.")
    assert refused.value.code == "unsupported_endpoint"


def _lets_go_of_who_left(client: openai.OpenAI, server: LlamaCpp) -> None:
    """A client that hangs up in mid-stream ends the generation in llama.cpp."""
    cancelled = server.log.read_text().count("cancel task")
    with client.chat.completions.create(**asked("Tell me a long story.", 900), stream=True) as chunks:
        next(iter(chunks))
    until(lambda: server.log.read_text().count("cancel task") > cancelled, 60)
