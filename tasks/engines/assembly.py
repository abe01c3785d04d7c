"""A whole answer out of the events of its stream: what the endpoint would have said without one. Pure.

An event is the JSON text behind `data: `, as `Request.emit` gets it; `[DONE]` is none.
"""

from __future__ import annotations

import json
from typing import Any, NoReturn

from tasks.engines.base import Usage

RESPONSES = "/v1/responses"
KINDS = {"/v1/chat/completions": "chat.completion", "/v1/completions": "text_completion"}
"""What the whole answer of an endpoint of chunks calls itself."""
STREAMED = frozenset({*KINDS, RESPONSES})
"""Endpoints that have streams."""
LAST = frozenset({"response.completed", "response.incomplete", "response.failed"})
"""Events that end a response, each with the whole of it."""
ONCE = frozenset({"id", "index", "role", "type"})
"""Names of texts that come whole, even when they come more than once."""
MOST_TOKENS = 2**31 - 1
"""What a count of tokens may be; more, or less than none, is nonsense, and no database has room for it."""
PADDING = "obfuscation"
"""What OpenAI adds to hide the lengths of the deltas."""


class Assembly:
    """The answer as far as it came: `add` each event, then read `body` and `usage`.

    `choices` is how many the request asked for: a choice that has not begun is not complete either.
    """

    def __init__(self, endpoint: str, choices: int = 1) -> None:
        if endpoint not in STREAMED:
            raise ValueError(f"{endpoint} has no streams")
        self._endpoint = endpoint
        self._wanted = choices
        self._piece = "text" if endpoint == "/v1/completions" else "delta"
        self._answer: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}
        self._ended = False
        self._only_usage = False
        self._error: dict[str, Any] | None = None

    @property
    def error(self) -> dict[str, Any] | None:
        """Return the error that came in the stream, with a `message` at least; None while there is none."""
        return self._error

    @property
    def complete(self) -> bool:
        """Tell whether nothing but usage can follow: every choice said why it ended, or the response did."""
        return self.finished and (self._endpoint == RESPONSES or len(self._choices) >= self._wanted)

    @property
    def finished(self) -> bool:
        """Tell whether what has begun has ended: the response, or one choice at least and all that there are."""
        if self._endpoint == RESPONSES:
            return self._ended
        reasons = [choice["finish_reason"] for choice in self._choices.values()]
        return bool(reasons) and all(reasons)

    @property
    def only_usage(self) -> bool:
        """Tell whether the newest event is the one that `stream_options.include_usage` asks for."""
        return self._only_usage

    @property
    def usage(self) -> Usage:
        """Return what the stream said that it cost: zeros when it did not."""
        return usage_of(self._answer)

    def add(self, data: str) -> None:
        """Take the next event; `ValueError` for what is none of this endpoint."""
        event = _object(data)
        self._only_usage = False
        if error := _error_of(event):
            self._error = error
        elif self._endpoint == RESPONSES:
            self._add_event(event)
        else:
            self._add_chunk(event)

    def body(self) -> str:
        """Return the JSON text of the answer so far; a response only has one when it ended."""
        answer = self._answer
        if self._endpoint != RESPONSES:
            choices = [_settled(choice) for _, choice in sorted(self._choices.items())]
            if self._endpoint != "/v1/completions":
                for choice in choices:
                    _tidy(choice["message"])
            answer = {"id": "", **answer, "object": KINDS[self._endpoint], "choices": choices}
        return json_text(answer)

    def _add_event(self, event: dict[str, Any]) -> None:
        if _expect(event.get("type"), str, "the type") in LAST:
            self._answer = _expect(event.get("response"), dict, "the response")
            self._ended = True

    def _add_chunk(self, chunk: dict[str, Any]) -> None:
        choices = _expect(chunk.get("choices") or [], list, "choices")
        for name, value in chunk.items():
            if name in {"choices", "object", PADDING} or value is None:
                continue
            # Servers that make up another id or time for each chunk mean one answer; Azure's first chunk has none.
            if name not in {"id", "created", "model"} or not self._answer.get(name):
                self._answer[name] = value
        for choice in choices:
            self._add_choice(_expect(choice, dict, "a choice"))
        self._only_usage = not choices and bool(chunk.get("usage"))

    def _add_choice(self, given: dict[str, Any]) -> None:
        index = _expect(given.get("index") or 0, int, "the index of a choice")
        if index not in self._choices:
            self._choices[index] = self._empty(index)
        choice = self._choices[index]
        for name, value in given.items():
            if value is None:
                continue
            if name == self._piece == "delta":
                _merge(choice["message"], _expect(value, dict, name))
            elif name == self._piece:
                choice[name].append(_expect(value, str, name))
            elif name == "message":
                choice[name] = _expect(value, dict, name)
            elif name == "logprobs":
                choice[name] = choice[name] or {}
                _lengthen(choice[name], _expect(value, dict, name))
            else:
                _lengthen(choice, {name: value})

    def _empty(self, index: int) -> dict[str, Any]:
        rest = {"logprobs": None, "finish_reason": None}
        if self._endpoint == "/v1/completions":
            return {"index": index, "text": Parts(), **rest}
        return {"index": index, "message": {"role": "assistant", "content": None}, **rest}


class Parts(list[str]):
    """A text that is not joined before it is whole: else each delta would copy all that came before."""


def usage_of(answer: dict[str, Any]) -> Usage:
    """Read what an answer of any endpoint says that it cost."""
    usage = answer.get("usage")
    prompt = _count(usage, "prompt_tokens") or _count(usage, "input_tokens")
    written = _count(usage, "completion_tokens") or _count(usage, "output_tokens")
    cached = _detail(usage, ("prompt_tokens_details", "input_tokens_details"), "cached_tokens")
    reasoned = _detail(usage, ("completion_tokens_details", "output_tokens_details"), "reasoning_tokens")
    return Usage(prompt, written, cached, reasoned)


def json_text(content: dict[str, Any]) -> str:
    """Write JSON as vLLM's server does; with what no encoding can carry (lone surrogates) as escapes."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(content, allow_nan=False, separators=(",", ":"))
    return text


def _object(data: str) -> dict[str, Any]:
    try:
        event = json.loads(data, parse_constant=_no_number)
    except RecursionError:
        raise ValueError("an event is nested too deeply") from None
    return _expect(event, dict, "an event")  # type: ignore[no-any-return]


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _expect(value: Any, kind: type, name: str) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"{name} is not what it should be: {type(value).__name__}")  # noqa: TRY004  # what `add` says
    return value


def _error_of(event: dict[str, Any]) -> dict[str, Any] | None:
    """Find the error in an event, however this server writes it."""
    if error := event.get("error"):
        return error if isinstance(error, dict) else {**event, "message": str(error)}
    if event.get("type") == "error" or event.get("object") == "error":
        return {"message": "", **event}
    return None


def _lengthen(into: dict[str, Any], more: dict[str, Any]) -> None:
    """Add to the lists of an object, one by one; the rest is replaced."""
    for name, value in more.items():
        if isinstance(value, list) and isinstance(had := into.get(name), list):
            had.extend(value)
        elif value is not None or name not in into:
            into[name] = value


def _merge(into: dict[str, Any], delta: dict[str, Any]) -> None:
    """Add a delta: texts and lists grow, objects are merged, the rest is replaced; null takes nothing away."""
    for name, value in delta.items():
        had = into.get(name)
        if name == PADDING or (value in (None, "") and had is not None):
            continue
        if isinstance(value, str) and name not in ONCE:
            into[name] = had if isinstance(had, Parts) else Parts()
            into[name].append(value)
        elif isinstance(value, list):
            into[name] = had if isinstance(had, list) else []
            _extend(into[name], value)
        elif isinstance(value, dict):
            into[name] = had if isinstance(had, dict) else {}
            _merge(into[name], value)
        else:
            into[name] = value


def _extend(into: list[Any], more: list[Any]) -> None:
    """Add to a list: what has an index (tool calls) is merged with its like, the rest comes behind."""
    for item in more:
        if not isinstance(item, dict) or not ("index" in item or "function" in item):
            into.append(item)
            continue
        mine = _same(into, item)
        if mine is None:
            into.append(mine := {})
        _merge(mine, item)


def _same(into: list[Any], item: dict[str, Any]) -> dict[str, Any] | None:
    """Find what an item goes on with; some servers leave out the index, then a new id begins a new one."""
    entries = [entry for entry in into if isinstance(entry, dict)]
    if item.get("index") is not None:
        return next((entry for entry in entries if entry.get("index") == item["index"]), None)
    if item.get("id"):
        return next((entry for entry in entries if entry.get("id") == item["id"]), None)
    return entries[-1] if entries else None


def _settled(value: Any) -> Any:
    """Return a value with its texts joined."""
    if isinstance(value, Parts):
        return "".join(value)
    if isinstance(value, dict):
        return {name: _settled(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_settled(inner) for inner in value]
    return value


def _tidy(message: dict[str, Any]) -> None:
    """Order the tool calls; their index is the stream's alone."""
    calls = message.get("tool_calls")
    if not calls:
        message.pop("tool_calls", None)
        return
    for call in _expect(calls, list, "the list of tool calls"):
        _expect(_expect(call, dict, "a tool call").get("index") or 0, int, "the index of a tool call")
    calls.sort(key=lambda call: call.get("index") or 0)
    for call in calls:
        call.pop("index", None)


def _count(usage: Any, name: str) -> int:
    count = usage.get(name) if isinstance(usage, dict) else None
    return count if isinstance(count, int) and 0 <= count <= MOST_TOKENS else 0


def _detail(usage: Any, groups: tuple[str, ...], name: str) -> int:
    """Return a count that only some endpoints, and some versions, tell."""
    kept = usage if isinstance(usage, dict) else {}
    return next((count for group in groups if (count := _count(kept.get(group), name))), 0)
