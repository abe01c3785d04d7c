"""What an engine can be asked: the endpoints, the fields they work on, and what a call counts for. Pure."""

from __future__ import annotations

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
EMBEDDINGS = "/v1/embeddings"
RESPONSES = "/v1/responses"

CONTENT = {CHAT: "messages", COMPLETIONS: "prompt", EMBEDDINGS: "input", RESPONSES: "input"}
"""The field that holds what each endpoint works on."""
SHORT_FORMS = {"prompt": (CHAT, COMPLETIONS), "messages": (CHAT,), "input": (EMBEDDINGS, RESPONSES)}
"""The endpoints of each short form, its default first."""
ANSWER_LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")

DEFAULT_ANSWER_TOKENS = 256


def estimate(characters: int, answer_tokens: int | None) -> int:
    """Return the tokens that a job counts for in a batch: its text's, at four characters each, and its answer's."""
    wanted = DEFAULT_ANSWER_TOKENS if answer_tokens is None else answer_tokens
    return max(1, characters // 4 + wanted)
