"""What an engine can be asked: the endpoints, the fields they work on, and what a call counts for. Pure."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

import msgspec

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
EMBEDDINGS = "/v1/embeddings"
RESPONSES = "/v1/responses"

CONTENT = {CHAT: "messages", COMPLETIONS: "prompt", EMBEDDINGS: "input", RESPONSES: "input"}
"""The field that holds what each endpoint works on."""
STREAMED = frozenset({CHAT, COMPLETIONS, RESPONSES})
"""The endpoints that have streams."""
SHORT_FORMS = {"prompt": (CHAT, COMPLETIONS), "messages": (CHAT,), "input": (EMBEDDINGS, RESPONSES)}
"""The endpoints of each short form, its default first."""
ANSWER_LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")

DEFAULT_ANSWER_TOKENS = 256

PREFIX = 256
"""Letters in which prompts must agree to count as beginning alike: about 80 tokens, a few blocks of vLLM's cache."""
_PUNCTUATION = b' \t\r\n"\\,:[]{}'
_PREFIX_READ = 2 * PREFIX


def estimate(characters: int, answer_tokens: int | None) -> int:
    """Return the tokens that a job counts for in a batch: its text's, at four characters each, and its answer's."""
    wanted = DEFAULT_ANSWER_TOKENS if answer_tokens is None else answer_tokens
    return max(1, characters // 4 + wanted)


class _Asked(msgspec.Struct):
    stream: Any = None


def is_streamed(body: str) -> bool:
    """Tell whether a request asks for its tokens as they come."""
    # Most do not have the word in them: nothing is decoded for those.
    if '"stream"' not in body:
        return False
    try:
        return msgspec.json.decode(body, type=_Asked).stream is True
    except msgspec.DecodeError:
        return False


def prefix(endpoint: str, content: bytes | memoryview) -> int:
    """Return a number that prompts have in common when they begin alike, 63 bits; 0 for short ones and embeddings.

    `content` is JSON text, that of the member `CONTENT[endpoint]`. Spaces and punctuation count for nothing, so that it
    does not matter how a client writes its JSON.
    """
    if len(content) < PREFIX or endpoint == EMBEDDINGS:
        return 0
    begin = bytes(content[:_PREFIX_READ]).translate(None, _PUNCTUATION)[:PREFIX]
    if len(begin) < PREFIX:
        return 0
    return int.from_bytes(blake2b(begin, digest_size=8).digest()) >> 1
