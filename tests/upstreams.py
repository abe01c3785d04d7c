"""An OpenAI-compatible server on loopback that does as it is told: for tests of the engine `upstream`.

`python -m tests.upstreams --port 9000 --curve --scale 0.1` runs one by itself until Ctrl-C.
"""

from __future__ import annotations

import argparse
import asyncio
import heapq
import itertools
import json
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

TABLE = ((1, 1.776), (2, 1.981), (4, 2.067), (8, 3.767), (16, 4.431), (32, 4.942))
"""Seconds that 100 tokens take by batch size, as a GPU platform published them for text-generation-inference."""
MOST_BATCH = 32
TOKENS = 100


def curve(batch: int) -> float:
    """Return the seconds of a request by batch size: the table, straight lines between its points."""
    for (low, fast), (high, slow) in itertools.pairwise(TABLE):
        if batch <= high:
            return fast + (slow - fast) * (batch - low) / (high - low)
    return TABLE[-1][1]


class Machine:
    """What a server computes on, in anybody's time: `places` requests share it, the others queue."""

    def __init__(self, seconds: Callable[[int], float] = curve, places: int = MOST_BATCH) -> None:
        self.seconds = seconds
        self.places = places
        self._active: list[tuple[float, int]] = []
        self._queue: deque[tuple[int, float]] = deque()
        self._done = 0.0
        self._at = 0.0

    def arrive(self, job: int, work: float, now: float) -> None:
        """Take a request; `work` 1 takes `seconds(batch size)`."""
        self._advance(now)
        self._queue.append((job, work))
        self._fill()

    def leave(self, job: int, now: float) -> None:
        """Forget a request that was aborted."""
        self._advance(now)
        self._active = [item for item in self._active if item[1] != job]
        heapq.heapify(self._active)
        self._queue = deque(item for item in self._queue if item[0] != job)
        self._fill()

    def due(self) -> float | None:
        """Return when the next request is done."""
        if not self._active:
            return None
        return self._at + max(0.0, self._active[0][0] - self._done) * self.seconds(len(self._active))

    def finished(self, now: float) -> list[int]:
        """Return the requests that are done by now."""
        self._advance(now)
        done = []
        while self._active and self._active[0][0] <= self._done + 1e-9:
            done.append(heapq.heappop(self._active)[1])
        self._fill()
        return done

    def _advance(self, now: float) -> None:
        if self._active:
            self._done += (now - self._at) / self.seconds(len(self._active))
        self._at = now

    def _fill(self) -> None:
        while self._queue and len(self._active) < self.places:
            job, work = self._queue.popleft()
            heapq.heappush(self._active, (self._done + work, job))


@dataclass(frozen=True, slots=True)
class Reply:
    """What to answer instead of the echo.

    `cut`: hang up after so many events of a stream, or without a word. `plain`: no stream though asked for one.
    `until`: what is waited for before the answer. An Event among `events` is waited for in its place.
    """

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None
    delay: float = 0.0
    until: threading.Event | None = None
    hang: bool = False
    cut: int | None = None
    plain: bool = False
    events: Sequence[bytes | threading.Event] | None = None


def error(status: int, message: str = "no", **rest: Any) -> Reply:
    """Make an error as OpenAI's API writes it."""
    given = {"message": message, "type": "error", "param": None, "code": None, **rest}
    return Reply(status, body=json.dumps({"error": given}).encode())


ECHO = Reply()


class Server:
    """A server while it runs. Everything about it may be changed at any time, from any thread."""

    def __init__(self, port: int, models: Sequence[str] = ("tiny",), machine: Machine | None = None) -> None:
        # Bound as long as it lives, also while it does not listen: else somebody else may be given the port.
        self._place = socket.socket()
        self._place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._place.bind(("127.0.0.1", port))
        self.port = self._place.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.models = list(models)
        self.listing = Reply()
        self.key = ""
        self.machine = machine
        self.scale = 1.0
        self.most = 1_000_000
        self.script: deque[Reply] = deque()
        self.answer: Callable[[dict[str, Any]], Reply] = lambda _body: ECHO
        self.serve: Callable[[str, str], Reply] | None = None
        self.frozen = False
        self.bodies: list[bytes] = []
        self.headers: list[dict[str, str]] = []
        self.begun: list[float] = []
        self.ended: list[float] = []
        self.checks = self.in_flight = self.most_in_flight = self.finished = self.aborted = 0
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self._numbers = itertools.count()
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.new_event_loop()
        self._runner: web.AppRunner | None = None
        self._listener: socket.socket
        self._thread = threading.Thread(target=self._loop.run_forever, name="test-upstream", daemon=True)
        self._thread.start()

    def up(self) -> None:
        """Listen."""
        self._call(self._up())

    def down(self) -> None:
        """Close the port and every connection."""
        self._call(self._down())

    def close(self) -> None:
        """End for good."""
        self.down()
        self._call(self._loop.shutdown_asyncgens())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._place.close()

    def _call(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    async def _up(self) -> None:
        app = web.Application(client_max_size=100_000_000)
        app.router.add_get("/v1/models", self._list)
        app.router.add_post("/{path:.*}", self._post)
        self._runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=1024)
        await web.SockSite(self._runner, self._listener, backlog=1024).start()

    async def _down(self) -> None:
        if self._runner is not None:
            # First no more connections: asyncio on Python 3.11 forgets, and leaves open, those that it has accepted but
            # not begun when it stops listening, and their clients would never have an answer.
            self._loop.remove_reader(self._listener)
            for _ in range(10):
                await asyncio.sleep(0)
            for connection in list(self._runner.server.connections if self._runner.server else ()):
                if connection.transport is not None:
                    connection.transport.abort()
            await self._runner.cleanup()
            self._runner = None

    async def _list(self, request: web.Request) -> web.StreamResponse:
        self.checks += 1
        if self.frozen or self.listing.hang:
            await asyncio.Event().wait()
        if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
            return _response(error(401, "Incorrect API key"))
        if self.listing.status != web.HTTPOk.status_code or self.listing.body is not None:
            return _response(self.listing)
        listed = [{"id": name, "object": "model", "max_model_len": 512} for name in self.models]
        return web.json_response({"object": "list", "data": listed})

    async def _post(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        self.begun.append(time.monotonic())
        self.bodies.append(raw)
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            made = await self._reply(request, raw)
            self.finished += 1
            self.ended.append(time.monotonic())
            return made
        except (asyncio.CancelledError, ConnectionError):
            self.aborted += 1
            raise
        finally:
            self.in_flight -= 1

    async def _reply(self, request: web.Request, raw: bytes) -> web.StreamResponse:
        if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
            return _response(error(401, "Incorrect API key"))
        body = json.loads(raw)
        if self.in_flight > self.most:
            return _response(error(429, "too many requests"))
        if self.serve is not None:
            reply = self.serve(request.path, raw.decode())
        else:
            reply = self.script.popleft() if self.script else self.answer(body)
        if self.frozen or reply.hang:
            await asyncio.Event().wait()
        await asyncio.sleep(reply.delay)
        if reply.until is not None:
            await _set(reply.until)
        tokens = body.get("max_tokens") or TOKENS
        if self.machine is not None:
            await self._compute(tokens / TOKENS)
        if reply.cut == 0:
            assert request.transport is not None
            request.transport.abort()
        if reply.body is not None or reply.status != web.HTTPOk.status_code:
            return _response(reply)
        if body.get("stream") and not reply.plain:
            return await self._stream(request, body, reply)
        return web.json_response(whole(request.path, body, tokens))

    async def _compute(self, work: float) -> None:
        assert self.machine is not None
        job = next(self._numbers)
        self._waiting[job] = self._loop.create_future()
        self.machine.arrive(job, work * self.scale, time.monotonic())
        self._schedule()
        try:
            await self._waiting[job]
        except asyncio.CancelledError:
            self.machine.leave(job, time.monotonic())
            self._schedule()
            raise
        finally:
            self._waiting.pop(job, None)

    def _schedule(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self.machine is not None and (due := self.machine.due()) is not None:
            self._timer = self._loop.call_later(max(0.0, due - time.monotonic()), self._end_some)

    def _end_some(self) -> None:
        assert self.machine is not None
        for job in self.machine.finished(time.monotonic()):
            if (waiting := self._waiting.get(job)) is not None and not waiting.done():
                waiting.set_result(None)
        self._schedule()

    async def _stream(self, request: web.Request, body: dict[str, Any], reply: Reply) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream; charset=utf-8", **reply.headers})
        await response.prepare(request)
        for number, event in enumerate(reply.events if reply.events is not None else events(body)):
            if reply.cut is not None and number >= reply.cut:
                assert request.transport is not None
                request.transport.abort()
                break
            if isinstance(event, threading.Event):
                await _set(event)
                continue
            await response.write(event)
            await asyncio.sleep(0.005)
        with suppress(ConnectionError):
            await response.write_eof()
        return response


async def _set(event: threading.Event) -> None:
    while not event.is_set():  # noqa: ASYNC110  # another thread sets it
        await asyncio.sleep(0.005)


def whole(path: str, body: dict[str, Any], tokens: int = 3) -> dict[str, Any]:
    """Return the answer to a request."""
    usage = {"prompt_tokens": 5, "completion_tokens": tokens, "total_tokens": 5 + tokens}
    if path.endswith("/embeddings"):
        return {"object": "list", "data": [{"object": "embedding", "index": 0, "embedding": [0.5]}], "usage": usage}
    said = f"echo: {body['messages'][-1]['content']}" if "messages" in body else "echo"
    choice: dict[str, Any] = {"index": 0, "finish_reason": "stop", "logprobs": None}
    choice |= (
        {"message": {"role": "assistant", "content": said}} if path.endswith("/chat/completions") else {"text": said}
    )
    kind = "chat.completion" if path.endswith("/chat/completions") else "text_completion"
    return {"id": "x", "object": kind, "created": 1, "model": body.get("model"), "choices": [choice], "usage": usage}


def events(body: dict[str, Any], *, done: bool = True, finish: bool = True) -> list[bytes]:
    """Return the events of a chat's stream, one for each word."""
    words = whole("/v1/chat/completions", body)["choices"][0]["message"]["content"].split(" ")
    deltas = [{"content": word if number == 0 else f" {word}"} for number, word in enumerate(words)]
    choices: list[dict[str, Any]] = [{"index": 0, "delta": delta, "finish_reason": None} for delta in deltas]
    if finish:
        choices.append({"index": 0, "delta": {}, "finish_reason": "stop"})
    head = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": body.get("model")}
    chunks = [f"data: {json.dumps({**head, 'choices': [choice]}, ensure_ascii=False)}\n\n" for choice in choices]
    return [chunk.encode() for chunk in chunks] + ([b"data: [DONE]\n\n"] if done else [])


def _response(reply: Reply) -> web.Response:
    headers = {"content-type": "application/json", **reply.headers}
    return web.Response(status=reply.status, headers=headers, body=reply.body or b"")


@contextmanager
def upstream(*models: str, port: int = 0, machine: Machine | None = None, listening: bool = True) -> Iterator[Server]:
    """Run a server."""
    server = Server(port, models or ("tiny",), machine)
    if listening:
        server.up()
    try:
        yield server
    finally:
        server.close()


def main() -> None:
    """Run one server until it is interrupted."""
    parser = argparse.ArgumentParser(description="An OpenAI-compatible server that only pretends.")
    parser.add_argument("--port", type=int, default=9000)
    parser.add_argument("--model", action="append")
    parser.add_argument("--curve", action="store_true", help="latency by batch size, as TABLE has it")
    parser.add_argument("--slots", type=int, help="requests at once, the others queue; one takes a second")
    parser.add_argument("--most", type=int, default=1_000_000, help="answers 429 above so many")
    parser.add_argument("--scale", type=float, default=1.0, help="of all latencies")
    options = parser.parse_args()
    machine = Machine() if options.curve else None
    if options.slots:
        machine = Machine(lambda _batch: 1.0, options.slots)
    with upstream(*(options.model or ["tiny"]), port=options.port, machine=machine) as server:
        server.scale, server.most = options.scale, options.most
        with suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
