"""The workloads of the policies: chats of even and of varied lengths, with and without a beginning in common."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from itertools import islice

from benchmarks.load import WORDS
from models.calls import CHAT, CONTENT, estimate, prefix
from models.jobs import NewJob

OWNERS = 4
SHARED = 8
"""Different beginnings of the workload `shared`, unless others are asked for."""
_EVEN = 32
_SHORTEST, _LONGEST = 4, 128
_SYSTEM_WORDS = 250


def chats(name: str, count: int, seed: int, model: str, beginnings: int = SHARED) -> list[NewJob]:
    """Return the jobs of a workload, of four owners in turn; the same seed gives the same jobs.

    Those of `shared` begin in so many different ways.

    What a fake engine answers is as long as the prompt; `max_tokens` and `ignore_eos` make a real one answer as much.
    """
    chance = random.Random(seed)
    return [
        _job(f"owner-{number % OWNERS}", model, *parts)
        for number, parts in enumerate(islice(WORKLOADS[name](chance, beginnings), count))
    ]


def _job(owner: str, model: str, system: str, words: list[str]) -> NewJob:
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": " ".join(words)})
    answer = len(words)
    body = {"model": model, "messages": messages, "max_tokens": answer, "ignore_eos": True, "temperature": 0.0}
    begins = prefix(CHAT, json.dumps(body[CONTENT[CHAT]]).encode())
    tokens = estimate(len(system) + sum(map(len, words)), answer)
    return NewJob(owner, model, CHAT, json.dumps(body), "bulk", tokens=tokens, prefix=begins)


def _uniform(chance: random.Random, _: int) -> Iterator[tuple[str, list[str]]]:
    while True:
        yield "", chance.choices(WORDS, k=_EVEN)


def _varied(chance: random.Random, _: int) -> Iterator[tuple[str, list[str]]]:
    """Yield lengths of which short ones are as many as long ones on a scale of powers of two."""
    while True:
        yield "", chance.choices(WORDS, k=round(_SHORTEST * (_LONGEST / _SHORTEST) ** chance.random()))


def _shared(chance: random.Random, beginnings: int) -> Iterator[tuple[str, list[str]]]:
    systems = [" ".join(chance.choices(WORDS, k=_SYSTEM_WORDS)) for _ in range(beginnings)]
    while True:
        yield chance.choice(systems), chance.choices(WORDS, k=_EVEN // 2)


def _mixed(chance: random.Random, beginnings: int) -> Iterator[tuple[str, list[str]]]:
    kinds = [_varied(chance, beginnings), _shared(chance, beginnings)]
    while True:
        yield next(chance.choice(kinds))


WORKLOADS: dict[str, Callable[[random.Random, int], Iterator[tuple[str, list[str]]]]] = {
    "uniform": _uniform,
    "varied": _varied,
    "shared": _shared,
    "mixed": _mixed,
}
