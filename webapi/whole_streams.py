"""A whole answer as a stream of it would have said the same, for engines that do not stream. Pure."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from models.calls import CHAT, COMPLETIONS, RESPONSES


def events(endpoint: str, body: str, *, with_usage: bool, number: int = 0) -> list[str]:
    """Return the events of a stream that carries all of an answer at once; that of a response has this number."""
    answer = read(body)
    if endpoint == RESPONSES:
        kind = "response.incomplete" if answer.get("status") == "incomplete" else "response.completed"
        return [written({"type": kind, "sequence_number": number, "response": answer})]
    usage = answer.pop("usage", None)
    choices = [choice if endpoint == COMPLETIONS else _delta(choice) for choice in answer.get("choices", [])]
    if endpoint == CHAT:
        answer["object"] = "chat.completion.chunk"
    made = [written({**answer, "choices": choices})]
    if with_usage and usage is not None:
        made.append(written({**answer, "choices": [], "usage": usage}))
    return made


def _delta(choice: dict[str, Any]) -> dict[str, Any]:
    message = dict(choice.get("message") or {})
    calls = message.get("tool_calls")
    if calls:
        # In a stream each call says which one it is.
        message["tool_calls"] = [{"index": index, **call} for index, call in enumerate(calls)]
    return {**{name: value for name, value in choice.items() if name != "message"}, "delta": message}


def read(text: str) -> dict[str, Any]:
    """Decode an object of an engine's, also one with halves of characters in it, as models do write them."""
    try:
        found = msgspec.json.decode(text)
    except msgspec.DecodeError:
        found = json.loads(text)
    return found if isinstance(found, dict) else {}


def written(value: dict[str, Any]) -> str:
    """Return what was read as JSON again."""
    try:
        return msgspec.json.encode(value).decode()
    except UnicodeEncodeError:
        return json.dumps(value)
