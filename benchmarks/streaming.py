"""Clients that stream chats and note when each token came; and the fake engine behind nothing but a web server.

`python -m benchmarks.streaming PORT` serves the fake engine of STOKER_FAKE_* on 127.0.0.1, as `vllm serve` serves vLLM:
what stands between a client and an engine at the least.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from aiohttp import web

from benchmarks import service
from benchmarks.service import BenchmarkError
from stoker.settings import load
from tasks.engines.base import Request
from tasks.engines.fake import FakeEngine
from tests import servers

PATH = "/v1/chat/completions"


@dataclass(slots=True)
class Timing:
    """When things happened to one streamed chat, in seconds since it was sent."""

    first: float
    total: float
    tokens: int
    began: float = field(default=0.0)


def chat(url: str, body: dict[str, object]) -> Timing:
    """Stream one chat. Raises BenchmarkError when it does not end as it should."""
    address = urlsplit(url)
    connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=600)
    try:
        began = time.perf_counter()
        connection.request("POST", PATH, json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        if answer.status != http.client.OK:
            raise BenchmarkError(f"a chat was answered with {answer.status}: {answer.read(300)!r}")
        first, tokens = 0.0, 0
        while line := answer.readline():
            if line.startswith(b"data: [DONE]"):
                return Timing(first, time.perf_counter() - began, tokens, began)
            if line.startswith(b"data: ") and _has_text(line[6:]):
                first = first or time.perf_counter() - began
                tokens += 1
    finally:
        connection.close()
    raise BenchmarkError(f"a stream ended after {tokens} tokens without [DONE]")


def _has_text(data: bytes) -> bool:
    event = json.loads(data)
    if "error" in event:
        raise BenchmarkError(f"a stream ended with {event['error']}")
    return bool(event["choices"] and event["choices"][0]["delta"].get("content"))


def closed_loop(
    url: str,
    bodies: Sequence[dict[str, object]],
    clients: int,
    pause: float,
    *,
    until: Callable[[], bool] = lambda: False,
) -> list[Timing]:
    """Stream these chats over so many clients at once, each pausing up to `pause` seconds after each of its chats.

    Stops early when `until` says so.
    """
    left, lock, chance = list(bodies), threading.Lock(), random.Random(21)

    def client() -> list[Timing]:
        timings = []
        while not until():
            with lock:
                if not left:
                    break
                body = left.pop()
                rest = chance.uniform(0, pause)
            timings.append(chat(url, body))
            time.sleep(rest)
        return timings

    with ThreadPoolExecutor(clients) as pool:
        return [timing for done in [pool.submit(client) for _ in range(clients)] for timing in done.result()]


def bodies(count: int, model: str, tokens: int) -> list[dict[str, object]]:
    """Return so many different chats whose answers have `tokens` words with the fake engine, and tokens with vLLM."""
    words = " ".join(f"w{at}" for at in range(tokens - 2))
    return [
        {
            "model": model,
            "messages": [{"role": "user", "content": f"n{at} {words}"}],
            "max_tokens": tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
        }
        for at in range(count)
    ]


@contextmanager
def bare(settings: dict[str, object]) -> Iterator[str]:
    """Serve the fake engine alone, in a process of its own; yields its address."""
    port = servers.free_port()
    command = [sys.executable, "-m", "benchmarks.streaming", str(port)]
    with service.child(command, service.environment(settings)) as (_, said):
        service.wait_until(lambda: "serving" in said, 30, "the bare server")
        yield f"http://127.0.0.1:{port}"


async def _stream(asked: web.Request, engine: FakeEngine) -> web.StreamResponse:
    loop = asyncio.get_running_loop()
    events: asyncio.Queue[str | None] = asyncio.Queue()

    def emit(event: str) -> None:
        loop.call_soon_threadsafe(events.put_nowait, event)

    request = Request(f"job_{id(asked):x}", PATH, await asked.text(), "realtime", 600, "", emit)

    def run() -> None:
        list(engine.generate([request], threading.Event()))
        loop.call_soon_threadsafe(events.put_nowait, None)

    loop.run_in_executor(None, run)
    answer = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await answer.prepare(asked)
    while (event := await events.get()) is not None:
        await answer.write(f"data: {event}\n\n".encode())
    await answer.write(b"data: [DONE]\n\n")
    return answer


async def _serve(port: int) -> None:
    engine = FakeEngine(load())
    engine.start()
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(64))
    app = web.Application()
    app.router.add_post(PATH, lambda asked: _stream(asked, engine))
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    print("serving", flush=True)
    try:
        await asyncio.Event().wait()
    finally:
        engine.close()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1])))
