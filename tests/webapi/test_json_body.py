"""JSON from outside."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from webapi.errors import Problem
from webapi.json_body import parse

text = st.characters(exclude_characters="\x00", exclude_categories=["Cs"])
texts = st.text(text)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(texts, inner), max_leaves=20)
objects = st.dictionaries(texts, values)


@given(objects, st.booleans())
def test_good_json_is_taken_as_it_is(value: dict[str, Any], ascii_only: bool) -> None:
    """Any JSON object without NUL comes out equal, each member's bytes as they went in."""
    parsed = parse(json.dumps(value, ensure_ascii=ascii_only).encode())
    assert parsed.values == value
    assert {name: json.loads(bytes(raw)) for name, raw in parsed.raw.items()} == value


@given(objects, st.sampled_from(["\x00", "\ud800", "\udfff"]), st.text(text))
def test_what_no_database_stores_is_refused(value: dict[str, Any], bad: str, around: str) -> None:
    """A NUL or half of a pair is found wherever it is, in keys too."""
    for spoilt in ({**value, "x": [around + bad]}, {**value, bad + around: 1}):
        with pytest.raises(Problem) as refused:
            parse(json.dumps(spoilt).encode())
        assert refused.value.code in {"nul_character", "lone_surrogate"}


@given(st.binary())
def test_garbage_is_refused_and_never_an_error(raw: bytes) -> None:
    """Whatever comes in, the outcome is an object or a problem."""
    with suppress(Problem):
        parse(raw)


def test_numbers_keep_their_digits() -> None:
    """A number that no float can hold stays as it was written."""
    raw = b'{"a":12345678901234567890123,"b":0.1000000000000000055511151231257827,"c":1E+2}'
    members = {name: bytes(value) for name, value in parse(raw).raw.items()}
    assert members == {
        "a": b"12345678901234567890123",
        "b": b"0.1000000000000000055511151231257827",
        "c": b"1E+2",
    }


@pytest.mark.parametrize(
    "raw",
    [
        b'{"a":"' + b'\\"' * 2_000_000,
        b'{"a":"' + b"\\" * 4_000_000,
        b"[" * 100 + b'"' * 4_000_001,
        b'{"a":"' + b"\\n" * 2_000_000 + b'","b":' + b"[]," * 100 + b"}",
        b'{"a":["' + b'\\u00e9",{"'[:7] * 500_000,
    ],
)
def test_no_text_takes_long(raw: bytes) -> None:
    """Texts made to be slow are refused within seconds: the time grows no faster than the text."""
    started = time.process_time()  # of this process: the machine may be busy
    with pytest.raises(Problem):
        parse(raw)
    assert time.process_time() - started < 5
