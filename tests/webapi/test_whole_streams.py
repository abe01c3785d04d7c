"""A whole answer told as a stream, for when there is none."""

from __future__ import annotations

import json
from typing import Any

import pytest

from models.calls import CHAT, COMPLETIONS, RESPONSES
from webapi import whole_streams

USAGE = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}


def told(endpoint: str, answer: dict[str, Any], *, with_usage: bool = False) -> list[dict[str, Any]]:
    """Return the events of an answer."""
    return [json.loads(event) for event in whole_streams.events(endpoint, json.dumps(answer), with_usage=with_usage)]


def chat(**message: Any) -> dict[str, Any]:
    """Return a chat's answer."""
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": "stop", "logprobs": None}
    return {"id": "chatcmpl-1", "object": "chat.completion", "model": "fake", "choices": [choice], "usage": USAGE}


def test_a_chat_is_one_chunk() -> None:
    """Its message is the delta; what it cost is left out unless asked for."""
    (event,) = told(CHAT, chat(content="hello"))
    assert event["object"] == "chat.completion.chunk"
    assert event["choices"] == [
        {"index": 0, "delta": {"role": "assistant", "content": "hello"}, "finish_reason": "stop", "logprobs": None}
    ]
    assert "usage" not in event


def test_usage_comes_last() -> None:
    """As an event of its own, without choices."""
    _, last = told(CHAT, chat(content="hello"), with_usage=True)
    assert last["choices"] == []
    assert last["usage"] == USAGE
    without = {name: value for name, value in chat(content="x").items() if name != "usage"}
    assert len(told(CHAT, without, with_usage=True)) == 1


def test_tool_calls_are_numbered() -> None:
    """In a stream each call says which one it is."""
    calls = [{"id": "a", "type": "function", "function": {}}, {"id": "b", "type": "function", "function": {}}]
    (event,) = told(CHAT, chat(content=None, tool_calls=calls))
    assert [call["index"] for call in event["choices"][0]["delta"]["tool_calls"]] == [0, 1]


def test_a_completion_is_one_event() -> None:
    """Its choices have texts in a stream, too."""
    answer = {"object": "text_completion", "choices": [{"index": 0, "text": "hello", "finish_reason": "stop"}]}
    assert told(COMPLETIONS, answer) == [answer]


@pytest.mark.parametrize("status", ["completed", "incomplete"])
def test_a_response_ends_as_it_did(status: str) -> None:
    """Its one event has all of it."""
    (event,) = told(RESPONSES, {"id": "resp_1", "status": status})
    assert event == {"type": f"response.{status}", "sequence_number": 0, "response": {"id": "resp_1", "status": status}}


@pytest.mark.parametrize("text", ["half: \ud800", "nothing: \x00", "both halves: \U0001f642"])
def test_odd_characters_stay(text: str) -> None:
    """What models write is told as it is, also what is half a character."""
    (event,) = told(CHAT, chat(content=text))
    assert event["choices"][0]["delta"]["content"] == text


@pytest.mark.parametrize("answer", [[], 3, None, "x", {}, {"choices": [{}]}, {"choices": [{"message": None}]}])
@pytest.mark.parametrize("endpoint", [CHAT, COMPLETIONS, RESPONSES])
def test_odd_answers_are_told(endpoint: str, answer: Any) -> None:
    """An engine that answers something else does not break the stream."""
    assert told(endpoint, answer)
