"""The examples of the command line's help, taken apart as a shell would: enough of it for what stands there."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Stage:
    """One program of a pipeline: its words, and the variables that stand before it."""

    words: Sequence[str]
    environment: dict[str, str]


@dataclass(frozen=True, slots=True)
class Line:
    """One line: a pipeline, and the variable that its output goes into (or none)."""

    stages: Sequence[Stage]
    variable: str = ""


def read(line: str) -> Line:
    """Take a line apart. Raises ValueError for what is not understood here: such an example is too clever."""
    assigned = re.fullmatch(r"(?:export )?(\w+)=\$\((.*)\)", line)
    text, variable = (assigned[2], assigned[1]) if assigned else (line, "")
    if re.search(r"\$\(|`|&&|;", text):
        raise ValueError(line)
    lexer = shlex.shlex(text, posix=True, punctuation_chars="|>")
    lexer.whitespace_split = True
    stages: list[list[str]] = [[]]
    for word in lexer:
        if word == "|":
            stages.append([])
        else:
            stages[-1].append(word)
    return Line([_stage(words) for words in stages], variable)


def _stage(words: Sequence[str]) -> Stage:
    kept = list(words[: words.index(">")]) if ">" in words else list(words)
    environment = {}
    while "=" in kept[0]:
        name, _, environment[name] = kept.pop(0).partition("=")
    return Stage(kept, environment)
