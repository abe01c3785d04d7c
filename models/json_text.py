"""What no database stores and no engine takes, found in JSON text: pure, so that every door refuses the same."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

MOST_DEPTH = 64

_ESCAPES = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(u0000|u[dD][89a-fA-F][0-9a-fA-F]{2})|.)",
    re.DOTALL,
)
"""A pair of surrogates, what is refused (group 1), or any other escape."""
_BRACKETS = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|([\[{])|([\]}])', re.DOTALL)


class BadCharacter(NamedTuple):
    """A character that is refused, and the byte where its escape begins."""

    code: Literal["nul_character", "lone_surrogate"]
    at: int

    @property
    def why(self) -> str:
        """Return it in words."""
        return f"a text has a {self.code.replace('_', ' ').replace('nul', 'NUL')} (byte {self.at})"


def bad_character(raw: bytes, *, nul: bool = False) -> BadCharacter | None:
    """Return the first escape of a character that is refused, None when there is none; with `nul` a NUL is not.

    Raw ones are no JSON; escaped ones are, but PostgreSQL stores neither once they are decoded, and no tokenizer knows
    surrogates. A NUL it does: what is only handed on, as it was written, may have one.
    """
    if b"\\u" not in raw:
        return None
    for escape in _ESCAPES.finditer(raw):
        if escape[1] and not (nul and escape[1] == b"u0000"):
            return BadCharacter("nul_character" if escape[1] == b"u0000" else "lone_surrogate", escape.start())
    return None


def one_line(text: str) -> str:
    """Return JSON text on one line: a line break in it can only stand between its parts."""
    return text.replace("\n", " ").replace("\r", " ") if "\n" in text or "\r" in text else text


def too_deep(raw: bytes) -> bool:
    """Tell whether valid JSON is nested deeper than MOST_DEPTH.

    Only for valid JSON, where each quote has its end: elsewhere the search could be made slow on purpose.
    """
    if raw.count(b"[") + raw.count(b"{") <= MOST_DEPTH:
        return False
    depth = 0
    for found in _BRACKETS.finditer(raw):
        depth += bool(found[1]) - bool(found[2])
        if depth > MOST_DEPTH:
            return True
    return False
