"""The texts of requests and answers, and the cells of a table: pure."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given as examples
from hypothesis import strategies as st

from webapi import result_lines, result_streams


@pytest.mark.parametrize(
    ("request_", "prompt"),
    [
        ({"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]}, "u"),
        ({"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]}, "u"),
        ({"messages": [{"role": "user", "content": [{"text": "a"}, {"image_url": {}}, {"text": "b"}]}]}, "ab"),
        ({"prompt": "p"}, "p"),
        ({"prompt": ["p", "q"]}, "q"),
        ({"prompt": [1, 2, 3]}, None),
        ({"input": [{"role": "user", "content": "i"}]}, "i"),
        ({"messages": []}, None),
        ({"messages": ["odd", 5, None]}, "odd"),
        ({}, None),
    ],
    ids=str,
)
def test_prompts(request_: Mapping[str, Any], prompt: str | None) -> None:
    """The prompt of a request is its text, or the last of a user's."""
    assert result_lines.prompt_of(json.dumps(request_)) == prompt


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ({"choices": [{"message": {"content": "c"}}, {"message": {"content": "d"}}]}, "c"),
        ({"choices": [{"message": {"content": None, "tool_calls": []}}]}, None),
        ({"choices": [{"text": "t"}]}, "t"),
        ({"choices": []}, None),
        ({"choices": ["odd"]}, None),
        ({"data": [{"embedding": [0.5]}]}, None),
        ({"output": [{"type": "reasoning"}, {"type": "message", "content": [{"text": "a"}, {"text": "b"}]}]}, "ab"),
        ([], None),
        (None, None),
    ],
    ids=str,
)
def test_texts(answer: Any, text: str | None) -> None:
    """The text of an answer is that of its first choice or output, if it has any."""
    assert result_lines.text_of(json.dumps(answer)) == text


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["messages", "content", "choices", "text"]), inner),
)


@examples(st.dictionaries(st.sampled_from(["messages", "prompt", "input", "choices", "output"]), _json))
def test_whatever_an_engine_answers(value: dict[str, Any]) -> None:
    """No request and no answer, however odd, keeps the others from being read."""
    for found in (result_lines.prompt_of(json.dumps(value)), result_lines.text_of(json.dumps(value))):
        assert found is None or isinstance(found, str)


@examples(st.lists(st.tuples(st.text(), st.text()), max_size=5))
def test_cells_come_back(texts: list[tuple[str, str]]) -> None:
    """Whatever is in a cell, a reader of RFC 4180 gets it back."""
    pages = [[_row(custom_id, prompt) for custom_id, prompt in texts if "\x00" not in custom_id + prompt]]
    data = b"".join(result_streams._csv(pages, [])).decode("utf-8", "surrogatepass")
    rows = list(csv.reader(io.StringIO(data, newline=""), strict=True))[1:]
    assert [(row[1], row[2]) for row in rows] == [
        (row.custom_id, json.loads(row.request)["prompt"]) for row in pages[0]
    ]


def _row(custom_id: str, prompt: str) -> Any:
    request = json.dumps({"prompt": prompt})
    row = {"seq": 1, "line_no": 1, "custom_id": custom_id, "request": request, "columns": None, "state": "succeeded"}
    row |= {"body": None, "model": "fake", "prompt_tokens": 1, "completion_tokens": 1}
    return SimpleNamespace(**row, error_code=None, error_message=None)
