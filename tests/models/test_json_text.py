"""What is refused in JSON text."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.json_text import MOST_DEPTH, bad_character, too_deep

texts = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]))
values = st.recursive(texts | st.integers(), lambda inner: st.lists(inner) | st.dictionaries(texts, inner))


@given(values, st.booleans())
def test_good_text_is_left_alone(value: object, ascii_only: bool) -> None:
    """No character of valid text is refused, escaped or not, and no value that is flat."""
    raw = json.dumps(value, ensure_ascii=ascii_only).encode()
    assert bad_character(raw) is None
    assert not too_deep(raw)


@pytest.mark.parametrize(
    ("raw", "found"),
    [
        (rb'"\u0000"', ("nul_character", 1)),
        (rb'"a\\\u0000"', ("nul_character", 4)),
        (rb'"\ud800"', ("lone_surrogate", 1)),
        (rb'"\ud83d\ude00\uDFFF"', ("lone_surrogate", 13)),
        (rb'"\ud800\ud83d\ude00"', ("lone_surrogate", 1)),
        (rb'"\\u0000 \\ud800"', None),
    ],
)
def test_a_bad_character_is_named_with_its_place(raw: bytes, found: tuple[str, int] | None) -> None:
    """A NUL or half of a pair is found where its escape begins, an escaped backslash before it or not."""
    assert bad_character(raw) == found


def test_a_nul_may_be_allowed() -> None:
    """Where texts are only handed on; surrogates stay refused."""
    assert bad_character(rb'"\u0000 and more"', nul=True) is None
    assert bad_character(rb'"\u0000 \ud800"', nul=True) == ("lone_surrogate", 8)


def test_a_bad_character_in_words() -> None:
    """The words are for the client."""
    found = [bad_character(raw) for raw in (rb'"\u0000"', rb'"\udc00"')]
    assert [bad and bad.why for bad in found] == [
        "a text has a NUL character (byte 1)",
        "a text has a lone surrogate (byte 1)",
    ]


@given(st.integers(1, 2 * MOST_DEPTH), texts)
def test_depth_is_counted_outside_of_texts(depth: int, text: str) -> None:
    """Brackets nest, those in texts do not, and those beside each other do not."""
    beside = json.dumps([text + "[{" * MOST_DEPTH, [], [], "]"])
    raw = ("[" * depth + beside + "]" * depth).encode()
    assert too_deep(raw) == (depth + 2 > MOST_DEPTH)
