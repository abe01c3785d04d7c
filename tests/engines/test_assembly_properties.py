"""Whole answers out of the events of their streams, however these were cut."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tasks.engines.assembly import Assembly

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
RESPONSES = "/v1/responses"
HEAD = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 7, "model": "tiny"}

texts = st.text(st.characters(codec=None), max_size=20)
names = st.text("abcxyz_", min_size=1, max_size=8)


def chunk(delta: dict[str, Any], index: int, finish: str | None = None) -> dict[str, Any]:
    """Make one event of a chat."""
    return {**HEAD, "choices": [{"index": index, "delta": delta, "finish_reason": finish}]}


def assembled(endpoint: str, events: list[dict[str, Any]], choices: int = 1) -> Assembly:
    """Put events together."""
    assembly = Assembly(endpoint, choices)
    for event in events:
        assembly.add(json.dumps(event))
    return assembly


@st.composite
def pieces(draw: st.DrawFn, text: str) -> list[str]:
    """Cut a text anywhere, also into nothing."""
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=6)))
    return [text[start:end] for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]


@st.composite
def chats(draw: st.DrawFn) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Make an answer and the events of one stream of it: choices interleaved, every text cut anywhere."""
    streams: list[list[dict[str, Any]]] = []
    choices = []
    for index in range(draw(st.integers(1, 3))):
        message: dict[str, Any] = {"role": "assistant", "content": draw(texts)}
        deltas = [{"content": piece} for piece in draw(pieces(message["content"]))]
        if draw(st.booleans()):
            message["reasoning_content"] = draw(texts)
            deltas += [{"reasoning_content": piece} for piece in draw(pieces(message["reasoning_content"]))]
        calls = [{"id": f"call_{number}", "type": "function"} for number in range(draw(st.integers(0, 2)))]
        for number, call in enumerate(calls):
            function = {"name": draw(names), "arguments": draw(texts)}
            deltas.append({"tool_calls": [{**call, "index": number, "function": {"name": function["name"]}}]})
            for piece in draw(pieces(function["arguments"])):
                deltas.append({"tool_calls": [{"index": number, "function": {"arguments": piece}}]})
            message.setdefault("tool_calls", []).append({**call, "function": function})
        finish = draw(st.sampled_from(["stop", "length", "tool_calls"]))
        choices.append({"index": index, "message": message, "logprobs": None, "finish_reason": finish})
        streams.append([chunk(delta, index) for delta in deltas] + [chunk({}, index, finish)])
    events = []
    while left := [stream for stream in streams if stream]:
        events.append(draw(st.sampled_from(left)).pop(0))
    usage = {"prompt_tokens": draw(st.integers(0, 9)), "completion_tokens": draw(st.integers(0, 9))}
    events.append({**HEAD, "choices": [], "usage": usage})
    return {**HEAD, "object": "chat.completion", "choices": choices, "usage": usage}, events


@given(chats())
def test_any_way_of_cutting_a_chat_assembles_to_it(made: tuple[dict[str, Any], list[dict[str, Any]]]) -> None:
    """However an answer is cut into deltas, and its choices are interleaved, the whole is the same."""
    whole, events = made
    assembly = assembled(CHAT, events, len(whole["choices"]))
    # Through JSON: halves of a character that meet become one.
    assert json.loads(assembly.body()) == json.loads(json.dumps(whole))
    assert assembly.complete


@given(st.data(), st.lists(texts, min_size=1, max_size=3))
def test_any_way_of_cutting_a_completion_assembles_to_it(data: st.DataObject, whole: list[str]) -> None:
    """The texts of all prompts come back, wherever they were cut."""
    events = [
        {"choices": [{"index": index, "text": piece, "finish_reason": None}]}
        for index, text in enumerate(whole)
        for piece in data.draw(pieces(text))
    ]
    made = json.loads(assembled(COMPLETIONS, events).body())
    assert [one["text"] for one in made["choices"]] == json.loads(json.dumps(whole))


@given(st.recursive(st.none() | st.integers() | texts, lambda x: st.lists(x) | st.dictionaries(names, x)))
def test_no_json_breaks_it(event: Any) -> None:
    """Whatever JSON comes, it is an event or a ValueError."""
    for endpoint in (CHAT, COMPLETIONS, RESPONSES):
        for one in (event, {"choices": event}, {"choices": [event]}, {"choices": [{"delta": event}]}):
            assembly = Assembly(endpoint)
            try:
                assembly.add(json.dumps(one))
            except ValueError:
                continue
            json.loads(assembly.body())
