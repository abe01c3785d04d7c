"""One line of a bulk's results: as JSON, and as the cells of a table. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from models.calls import CONTENT
from models.db import AnyRow
from models.json_text import one_line

BEFORE = ("line", "custom_id", "prompt")
AFTER = ("state", "text", "model", "prompt_tokens", "completion_tokens", "error_code", "error_message")
_UNASKED = frozenset({*CONTENT.values(), "model"})
"""What a request has besides its parameters."""

_SURROGATES = re.compile("[\ud800-\udfff]")

_members = msgspec.json.Decoder(dict[str, msgspec.Raw])
_anything = msgspec.json.Decoder()


def state_of(row: AnyRow) -> str:
    """Return how a line ended; one that never became a job has no state of its own."""
    if row.state is not None:
        return str(row.state)
    return row.error_code if row.error_code in {"cancelled", "expired"} else "failed"


def job_id_of(row: AnyRow) -> str | None:
    """Return the job that a line became, None for one that never did."""
    return None if row.state is None else row.job_id


def json_line(row: AnyRow) -> bytes:
    """Return a line of JSON Lines; the engine's answer goes in as the text that it is."""
    state = state_of(row)
    ok = state == "succeeded"
    line = {
        "seq": row.seq,
        "line": row.line_no,
        "custom_id": row.custom_id,
        "job_id": job_id_of(row),
        "state": state,
        "model": row.model,
        "engine": row.engine_id,
        "attempts": row.attempts or 0,
        "params": _params(row.request),
        "result": msgspec.Raw(one_line(row.body).encode()) if ok and row.body is not None else None,
        "error": None if ok else {"code": row.error_code, "message": row.error_message, "status": row.status or None},
        "usage": _usage(row) if ok else None,
        "finished_at": round(row.finished_at or row.created_at, 3),
    }
    return msgspec.json.encode(line) + b"\n"


def _params(request: str | None) -> dict[str, msgspec.Raw] | None:
    if request is None:
        return None
    return {name: raw for name, raw in _members.decode(request).items() if name not in _UNASKED}


def _loaded(text: str) -> Any:
    """Return what an engine wrote, of which not everything is JSON to everybody: NaN, lone surrogates, huge numbers."""
    try:
        return _anything.decode(text)
    except (msgspec.DecodeError, RecursionError):
        pass
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _writable(text: str) -> str:
    return _SURROGATES.sub("\ufffd", text)


def _usage(row: AnyRow) -> dict[str, int]:
    prompt, completion = row.prompt_tokens, row.completion_tokens
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def header(columns: Sequence[str]) -> list[str]:
    """Return the names of a table's columns; those of the input that have a name of ours get a prefix."""
    return [*BEFORE, *own_names(columns), *AFTER]


def own_names(columns: Sequence[str], more: Sequence[str] = ()) -> list[str]:
    """Return the names that the input's own columns have in a table, which has `more` of ours."""
    taken = {*BEFORE, *AFTER, *more}
    names = []
    for column in columns:
        name = column
        while name in taken or (name != column and name in columns):
            name = f"input.{name}"
        taken.add(name)
        names.append(name)
    return names


def cells(row: AnyRow, columns: Sequence[str]) -> list[Any]:
    """Return a line's cells, under the names of `header`."""
    state = state_of(row)
    ok = state == "succeeded"
    tokens = (row.prompt_tokens, row.completion_tokens) if ok else (None, None)
    error = (None, None) if ok else (row.error_code, row.error_message)
    text = text_of(row.body) if ok else None
    before = (row.line_no, row.custom_id, prompt_of(row.request))
    return [*before, *own_cells(row, columns), state, text, row.model, *tokens, *error]


def own_cells(row: AnyRow, columns: Sequence[str]) -> list[str | None]:
    """Return the cells that the line itself had, by the names of their columns."""
    own = _anything.decode(row.columns) if row.columns else {}
    return [own.get(name) for name in columns]


def prompt_of(request: str | None) -> str | None:
    """Return what a request asks: its text, or the last text of a user's in a chat."""
    if request is None:
        return None
    asked = _loaded(request)
    content = next((asked[name] for name in CONTENT.values() if asked.get(name) is not None), None)
    text = _last_text(content)
    return None if text is None else _writable(text)


def _last_text(content: Any) -> str | None:
    if isinstance(content, str):
        return content
    for item in reversed(content if isinstance(content, list) else []):
        if isinstance(item, str):
            return item
        if isinstance(item, dict) and item.get("role") in {"user", None}:
            return _joined(item.get("content") or item.get("text"))
    return None


def _joined(content: Any) -> str | None:
    if isinstance(content, list):
        return "".join(_texts(content))
    return content if isinstance(content, str) else None


def _texts(parts: Any) -> Iterator[str]:
    for part in parts if isinstance(parts, list) else ():
        if isinstance(part, Mapping) and isinstance(part.get("text"), str):
            yield part["text"]


def text_of(body: str | None) -> str | None:
    """Return the text of an answer: a chat's, a completion's or a response's first; None without one."""
    answer = _loaded(body) if body else None
    text = _first_text(answer) if isinstance(answer, dict) else None
    return None if text is None else _writable(text)


def _first_text(answer: Mapping[str, Any]) -> str | None:
    choices, output = answer.get("choices"), answer.get("output")
    if isinstance(choices, list) and choices and isinstance(choices[0], dict):
        message = choices[0].get("message")
        return _joined(message.get("content") if isinstance(message, dict) else choices[0].get("text"))
    items = output if isinstance(output, list) else ()
    said = [item for item in items if isinstance(item, dict) and item.get("type") == "message"]
    return "".join(text for item in said for text in _texts(item.get("content"))) if said else None
