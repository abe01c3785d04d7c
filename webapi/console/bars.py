"""Bars that are drawn by the server: a whole cut into parts, each with its share; pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from models.states import JOB

LEAST = 0.6
"""Per cent that a part has at least, so that it is seen."""

_QUEUED = ("1", "in the queue")
_AFTER = {
    **dict.fromkeys(("submitted", "crashed", "lost", "returned"), _QUEUED),
    "batched": ("2", "waiting for the engine"),
    "started": ("3", "running"),
    "deferred": ("5", "put off"),
}
_TOLD = ("4", "until its webhook was told")
_ENDS = (("succeeded", "3"), ("failed", "bad"), ("ended otherwise", "5"), ("running", "2"), ("queued", "6"))
"""What follows upon a step of a job, and how a bulk's lines are: the colour's name, and the words for it."""


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a bar: words, the colour's name, how much it stands for, where it begins and how wide it is (%)."""

    name: str
    colour: str
    value: float
    begins: float
    width: float


def of_steps(steps: Sequence[Mapping[str, Any]], until: float | None) -> Sequence[Part]:
    """Return the time between the steps of a job's timeline; `until` is now, for one that has not ended."""
    times = [(step["name"], step["at"]) for step in steps]
    ends = [at for _, at in times[1:]] + ([] if until is None else [until])
    return _parts(
        (*_after(name), max(0.0, end - at))
        for (name, at), end in zip(times, ends, strict=False)  # nothing follows upon the last one
    )


def sums(parts: Iterable[Part]) -> Sequence[Part]:
    """Return what the parts of each name come to together, in the order in which they are met first."""
    found: dict[str, Part] = {}
    for part in parts:
        before = found.get(part.name)
        found[part.name] = replace(before, value=before.value + part.value) if before else part
    return list(found.values())


def _after(name: str) -> tuple[str, str]:
    colour, words = _TOLD if name in JOB.final | {"told"} else _AFTER[name]
    return words, colour


def of_counts(counts: Mapping[str, int]) -> Sequence[Part]:
    """Return the lines of a bulk by what became of them, of all that are known."""
    known = dict(counts) | {"ended otherwise": counts["cancelled"] + counts["expired"]}
    return _parts((name, colour, known[name]) for name, colour in _ENDS if known[name])


def _parts(found: Iterable[tuple[str, str, float]]) -> Sequence[Part]:
    listed = list(found)
    whole = sum(value for *_, value in listed)
    if whole <= 0:
        return [Part(name, colour, value, 0.0, 0.0) for name, colour, value in listed]
    wide = [max(LEAST, 100 * value / whole) for *_, value in listed]
    scale, parts, begins = 100 / sum(wide), [], 0.0
    for (name, colour, value), width in zip(listed, wide, strict=True):
        parts.append(Part(name, colour, value, round(begins, 3), round(width * scale, 3)))
        begins += width * scale
    return parts
