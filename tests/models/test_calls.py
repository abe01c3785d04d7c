"""What is told of a call before any engine sees it: which prompts begin alike."""

from __future__ import annotations

import json
import random

from hypothesis import given
from hypothesis import strategies as st

from models import calls
from models.calls import CHAT, COMPLETIONS, EMBEDDINGS, PREFIX, RESPONSES

SHARED = " ".join(f"Rule {number}: answer kindly." for number in range(30))


def chat(user: str, system: str = SHARED, **style: object) -> bytes:
    """Return the messages of a chat as JSON."""
    messages = [{"role": "system", "content": system}, {"role": "user", "content": user}]
    return json.dumps(messages, **style).encode()  # type: ignore[arg-type]


def test_prompts_that_begin_alike_have_a_prefix_in_common() -> None:
    """Whatever comes behind, and however the client writes its JSON; another beginning gives another number."""
    found = {calls.prefix(CHAT, chat(f"question {number}")) for number in range(20)}
    found |= {calls.prefix(CHAT, chat("x", indent=2)), calls.prefix(CHAT, chat("x", separators=(",", ":")))}
    assert len(found) == 1
    assert calls.prefix(CHAT, chat("x", "B" + SHARED)) not in found


def test_short_prompts_have_none() -> None:
    """What is no longer than the beginning itself shares nothing worth caching; nor do embeddings."""
    assert calls.prefix(CHAT, chat("hello", "Be kind.")) == 0
    assert calls.prefix(COMPLETIONS, json.dumps("a" * (PREFIX - 1)).encode()) == 0
    assert calls.prefix(COMPLETIONS, json.dumps("a" * PREFIX).encode()) > 0
    assert calls.prefix(EMBEDDINGS, json.dumps("a" * 1000).encode()) == 0
    assert calls.prefix(RESPONSES, memoryview(chat("x"))) == calls.prefix(CHAT, chat("x"))


@given(st.binary(max_size=2000))
def test_it_is_a_number_that_the_databases_take(content: bytes) -> None:
    """63 bits, never negative, the same each time."""
    assert 0 <= calls.prefix(CHAT, content) < 2**63
    assert calls.prefix(CHAT, content) == calls.prefix(CHAT, bytes(content))


def test_beginnings_do_not_collide() -> None:
    """Ten thousand different ones have ten thousand numbers."""
    chance = random.Random(7)
    texts = {"".join(chance.choices("abcdefgh", k=300)) for _ in range(10_000)}
    assert len({calls.prefix(COMPLETIONS, json.dumps(text).encode()) for text in texts}) == len(texts)
