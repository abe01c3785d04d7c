"""The load: chat jobs with seeded prompts, posted by many clients at once or at a steady rate, and lines of bulks."""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count as numbers
from typing import Any

import aiohttp

from benchmarks.service import BenchmarkError

WORDS = (
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
    words = " ".join(chance.choices(WORDS, k=chance.randint(15, 60)))
    return {
        "model": model,
        "messages": [{"role": "user", "content": f"Story {number}: tell of {words}."}],
        "max_tokens": tokens,
        "ignore_eos": True,
        "temperature": 0.0,
    }


FORMS = ("prompt", "messages", "batch")
"""The forms of a line: the two of a native bulk that chats have, and OpenAI's."""


def lines(count: int, seed: int, form: str) -> Iterator[bytes]:
    """Yield the lines of a bulk, named `line-1` and so on: the chats of `chats`, in one of the forms."""
    chance = random.Random(seed)
    for number in range(1, count + 1):
        chat = _chat(f"{seed}-{number}", chance, "fake", 16)
        if form == "batch":
            yield _line({"custom_id": f"line-{number}", "method": "POST", "url": "/v1/chat/completions", "body": chat})
            continue
        del chat["model"]
        if form == "prompt":
            chat["prompt"] = chat.pop("messages")[0]["content"]
        yield _line({"custom_id": f"line-{number}", **chat})


def _line(value: dict[str, Any]) -> bytes:
    return json.dumps(value).encode() + b"\n"


def packed(pieces: Iterable[bytes], size: int = 1 << 18) -> Iterator[bytes]:
    """Yield what comes in small pieces in blocks of about this size."""
    held: list[bytes] = []
    left = size
    for piece in pieces:
        held.append(piece)
        left -= len(piece)
        if left <= 0:
            yield b"".join(held)
            held, left = [], size
    yield b"".join(held)


@contextmanager
def steadily(url: str, rate: float, key: str = "") -> Iterator[list[tuple[float, float]]]:
    """Post so many jobs a second during the `with`, however long each takes.

    Yields a growing list: when each was due (a unix time), and the seconds from then to its answer.
    """
    took: list[tuple[float, float]] = []
    ended = threading.Event()
    failures: list[Exception] = []

    def work() -> None:
        try:
            asyncio.run(_steadily(f"{url}/v1/jobs", rate, key, ended, took))
        except Exception as error:  # noqa: BLE001  # told to the caller
            failures.append(error)

    thread = threading.Thread(target=work, name="posts")
    thread.start()
    try:
        yield took
    finally:
        ended.set()
        thread.join()
    if failures:
        raise BenchmarkError(f"a steady POST failed: {failures[0]!r}") from failures[0]


async def _steadily(url: str, rate: float, key: str, ended: threading.Event, took: list[tuple[float, float]]) -> None:
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    chance = random.Random(20)
    began = time.time()
    async with aiohttp.ClientSession(headers=headers) as session, asyncio.TaskGroup() as group:
        for number in numbers():
            due = began + number / rate
            await asyncio.sleep(max(0.0, due - time.time()))
            if ended.is_set():
                return
            body = json.dumps(_chat(f"20-{number}", chance, "fake", 16)).encode()
            group.create_task(_timed(session, url, body, due, took))


@contextmanager
def patiently(url: str, rate: float, model: str, hook: str, share: float) -> Iterator[list[float]]:
    """Post so many jobs a second during the `with`, each again until it is accepted; `share` of them with a webhook.

    Yields a growing list of the seconds that each took. A key makes of a repetition no second job.
    """
    took: list[float] = []
    ended = threading.Event()

    async def one(session: aiohttp.ClientSession, number: int, due: float) -> None:
        job: dict[str, Any] = {"model": model, "prompt": f"soak {number}"}
        if number * share % 1 + share >= 1:
            job["webhook"] = {"url": hook}
        while True:
            with suppress(aiohttp.ClientError, TimeoutError):
                async with session.post(url, json=job, headers={"Idempotency-Key": f"soak-{number}"}) as answer:
                    await answer.read()
                if answer.status in {200, 202}:
                    took.append(time.time() - due)
                    return
            await asyncio.sleep(0.5)

    async def work() -> None:
        began = time.time()
        timeout = aiohttp.ClientTimeout(total=30)
        async with aiohttp.ClientSession(timeout=timeout) as session, asyncio.TaskGroup() as group:
            for number in numbers():
                await asyncio.sleep(max(0.0, began + number / rate - time.time()))
                if ended.is_set():
                    return
                group.create_task(one(session, number, began + number / rate))

    thread = threading.Thread(target=lambda: asyncio.run(work()), name="posts")
    thread.start()
    try:
        yield took
    finally:
        ended.set()
        thread.join()


async def _timed(
    session: aiohttp.ClientSession, url: str, body: bytes, due: float, took: list[tuple[float, float]]
) -> None:
    async with session.post(url, data=body) as answer:
        await answer.read()
    if answer.status != 202:
        raise BenchmarkError(f"a job was refused: {answer.status}")
    took.append((due, time.time() - due))


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
