"""The load: chat jobs with seeded prompts, and many clients that post them at once."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from benchmarks.service import BenchmarkError

_WORDS = (
    "river",
    "engine",
    "harbour",
    "winter",
    "copper",
    "signal",
    "garden",
    "letter",
    "mountain",
    "paper",
    "station",
    "window",
    "bridge",
    "market",
    "summer",
    "island",
    "planet",
    "metal",
    "forest",
    "music",
    "doctor",
    "kitchen",
    "ocean",
    "teacher",
    "railway",
    "castle",
    "desert",
    "library",
    "village",
    "lantern",
)


@dataclass
class Posted:
    """What came of posting jobs: `began` is a unix time, the rest are seconds."""

    began: float = 0.0
    seconds: float = 0.0
    ids: list[str] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)


def chats(count: int, seed: int, model: str, shortest: int, longest: int) -> list[dict[str, Any]]:
    """Return chat requests whose answers have between `shortest` and `longest` tokens, fixed by `ignore_eos`.

    The same seed gives the same requests; no two share more of a prompt than the chat template's.
    """
    chance = random.Random(seed)
    return [_chat(f"{seed}-{number}", chance, model, chance.randint(shortest, longest)) for number in range(count)]


def _chat(number: str, chance: random.Random, model: str, tokens: int) -> dict[str, Any]:
    words = " ".join(chance.choices(_WORDS, k=chance.randint(15, 60)))
    return {
        "model": model,
        "messages": [{"role": "user", "content": f"Story {number}: tell of {words}."}],
        "max_tokens": tokens,
        "ignore_eos": True,
        "temperature": 0.0,
    }


def post(url: str, jobs: Sequence[dict[str, Any]], connections: int) -> Posted:
    """Post jobs over so many connections, each job as soon as one of them is free. Raises BenchmarkError."""
    return asyncio.run(_post(url, [json.dumps(job).encode() for job in jobs], connections))


async def _post(url: str, bodies: Sequence[bytes], connections: int) -> Posted:
    posted = Posted()
    waiting = iter(bodies)
    connector = aiohttp.TCPConnector(limit=connections)
    async with aiohttp.ClientSession(connector=connector, headers={"Content-Type": "application/json"}) as session:
        posted.began = time.time()
        started = time.perf_counter()
        await asyncio.gather(*(_client(session, f"{url}/v1/jobs", waiting, posted) for _ in range(connections)))
        posted.seconds = time.perf_counter() - started
    return posted


async def _client(session: aiohttp.ClientSession, url: str, waiting: Iterator[bytes], posted: Posted) -> None:
    for body in waiting:
        started = time.perf_counter()
        async with session.post(url, data=body) as answer:
            document = await answer.json()
        posted.latencies.append(time.perf_counter() - started)
        if answer.status != 202:
            raise BenchmarkError(f"a job was refused: {answer.status} {document.get('code')}")
        posted.ids.append(document["id"])
