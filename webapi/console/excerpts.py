"""What jobs ask and what engines answer, as far as a page shows it; pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

MOST = 100_000
"""Characters of a text on a page: browsers are slow with megabytes, and the whole can be had as a file."""


@dataclass(frozen=True, slots=True)
class Excerpt:
    """The beginning of a text; `size` is that of the whole, in characters."""

    text: str
    size: int

    @property
    def cut(self) -> bool:
        """Tell whether something is left out."""
        return self.size > len(self.text)


def of_text(text: str) -> Excerpt:
    """Return as much of a text as a page shows."""
    return Excerpt(text[:MOST], len(text))


def of_json(text: str) -> Excerpt:
    """Return JSON with its parts in lines of their own; of what is too long for that, the beginning as it is."""
    if len(text) > MOST:
        return of_text(text)
    try:
        laid_out = msgspec.json.format(text.encode(), indent=2).decode()
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        return of_text(text)
    # Blanks may make much of little: what is shown is the beginning, and the size still that of the whole.
    return Excerpt(laid_out, len(laid_out)) if len(laid_out) <= MOST else of_text(text)


def said(answer: str) -> Excerpt | None:
    """Return the words in an engine's answer; None where there are none, or it is too long to look."""
    if len(answer) > 10 * MOST:
        return None
    try:
        words = [word for word in _words(msgspec.json.decode(answer)) if word]
    except (msgspec.DecodeError, RecursionError):
        return None
    return of_text("\n\n".join(words)) if words else None


def _words(answer: Any) -> Iterator[str]:
    """Yield the texts of a chat, of a completion, or of a response."""
    for choice in _listed(answer, "choices"):
        for part in (choice.get("text"), _member(choice.get("message"), "content")):
            yield from _texts(part)
    for item in _listed(answer, "output"):
        yield from _texts(item.get("content"))


def _texts(content: Any) -> Iterator[str]:
    if isinstance(content, str):
        yield content
    if isinstance(content, list):
        yield from (text for part in content if isinstance(text := _member(part, "text"), str))


def _listed(value: Any, name: str) -> list[dict[str, Any]]:
    found = _member(value, name)
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []


def _member(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, dict) else None
