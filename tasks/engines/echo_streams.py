"""The fake engine's answers as streams: the events of one answer, a word each. Pure.

Written by hand where it counts: with answers that take no time, the events are all that the fake engine does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from json.encoder import encode_basestring_ascii as quoted
from typing import Any

from tasks.engines.assembly import RESPONSES
from tasks.engines.base import Request

WORD = re.compile(r"\S+\s*")


@dataclass(frozen=True, slots=True)
class Speech:
    """The events of a stream: `head`, then one of `words` at a time, then `tail`."""

    head: list[str]
    words: list[str]
    tail: list[str]

    def part(self, start: int, end: int | None = None) -> list[str]:
        """Return the events of the words from `start` to before `end`, without an `end` all that are left."""
        return [*(self.head if start == 0 else ()), *self.words[start:end], *(self.tail if end is None else ())]


SILENCE = Speech([], [], [])


def speech(request: Request, made: dict[str, Any], *, usage: bool) -> Speech:
    """Say an answer in words; `usage`: the client asked for an event with what it cost."""
    if request.endpoint == RESPONSES:
        return _response(made)
    if request.endpoint == "/v1/chat/completions":
        return _chunks(made, "chat.completion.chunk", usage=usage)
    return _chunks(made, "text_completion", usage=usage)


def _chunks(made: dict[str, Any], kind: str, *, usage: bool) -> Speech:
    """Say the choices of an answer side by side, as an engine does that writes all of them at once."""
    chat = kind != "text_completion"
    before = f'{{"id":{quoted(made["id"])},"object":"{kind}","created":0,"model":{quoted(made["model"])},"choices":['
    one, opened, closed = ('"delta":', '{"content":', "}") if chat else ('"text":', "", "")
    spoken: list[list[str]] = []
    tail: list[str] = []
    for choice in made["choices"]:
        start = f'{before}{{"index":{choice["index"]},{one}'
        text = choice["message"]["content"] if chat else choice["text"]
        between, after = f"{start}{opened}", f'{closed},"logprobs":null,"finish_reason":null}}]}}'
        spoken.append([between + quoted(word) + after for word in WORD.findall(text)])
        nothing = "{}" if chat else '""'
        tail.append(f'{start}{nothing},"logprobs":null,"finish_reason":"{choice["finish_reason"]}"}}]}}')
    if usage:
        tail.append(f'{before}],"usage":{json.dumps(made["usage"])}}}')
    role = '{"role":"assistant","content":""},"logprobs":null,"finish_reason":null}]}'
    head = [f'{before}{{"index":{choice["index"]},"delta":{role}' for choice in made["choices"]] if chat else []
    return Speech(head, [word for words in zip_longest(*spoken) for word in words if word is not None], tail)


def _response(made: dict[str, Any]) -> Speech:
    """Say a response as openai's clients expect it: each part begins, grows and ends, and all events are numbered."""
    item = made["output"][0]
    part = item["content"][0]
    begun = {**made, "status": "in_progress", "output": [], "usage": None}
    head = [
        _event(0, "response.created", response=begun),
        _event(1, "response.in_progress", response=begun),
        _event(2, "response.output_item.added", output_index=0, item={**item, "status": "in_progress", "content": []}),
        _event(3, "response.content_part.added", **_place(item), part={**part, "text": ""}),
    ]
    before = (
        f'{{"type":"response.output_text.delta","item_id":{quoted(item["id"])},"output_index":0,"content_index":0,'
        '"logprobs":[],"sequence_number":'
    )
    words = [
        f'{before}{number},"delta":{quoted(word)}}}'
        for number, word in enumerate(WORD.findall(part["text"]), len(head))
    ]
    return Speech(head, words, list(_ending(made, item, len(head) + len(words))))


def _ending(made: dict[str, Any], item: dict[str, Any], number: int) -> Iterator[str]:
    part = item["content"][0]
    yield _event(number, "response.output_text.done", **_place(item), text=part["text"], logprobs=[])
    yield _event(number + 1, "response.content_part.done", **_place(item), part=part)
    yield _event(number + 2, "response.output_item.done", output_index=0, item=item)
    yield _event(number + 3, f"response.{made['status']}", response=made)


def _place(item: dict[str, Any]) -> dict[str, Any]:
    return {"item_id": item["id"], "output_index": 0, "content_index": 0}


def _event(number: int, kind: str, **rest: Any) -> str:
    return json.dumps({"type": kind, "sequence_number": number, **rest})
