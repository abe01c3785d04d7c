"""Thousands of clients that wait, on one machine: what each costs in memory, and what a POST takes meanwhile.

Idle: each waits for a job of its own that does not end (`?wait=`, again and again). Streaming: each streams a chat at a
few tokens a second. POSTs go on at a steady rate before and meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import itertools
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import TypeVar
from urllib.parse import urlsplit

from benchmarks import load, service, streaming
from benchmarks.memory import resident
from benchmarks.report import Report, parser, percentile
from benchmarks.service import BenchmarkError, Service

T = TypeVar("T")

WAIT = 55
PATIENCE = 120.0
"""Seconds that a stream may take to begin, as in `STOKER_WAIT_FOR`."""
WAITS, STREAMS = True, False


class Crowd:
    """Clients on one event loop, in a thread: they need no thread each, as the server's do."""

    def __init__(self, url: str) -> None:
        self._address = urlsplit(url)
        self.answers: dict[int, int] = {}
        self.tokens = 0
        self.first: list[float] = []
        self.broken: list[str] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._tasks: list[asyncio.Task[None]] = []

    def wait_for(self, jobs: Sequence[str], rate: float) -> None:
        """Let one client wait for each job; so many come a second."""
        for job in _paced(jobs, rate):
            request = f"GET /v1/jobs/{job}?wait={WAIT} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
            self._loop.call_soon_threadsafe(self._start, request.encode(), WAITS)

    def stream(self, bodies: Sequence[dict[str, object]], rate: float) -> None:
        """Let one client stream each chat; so many come a second."""
        for body in _paced(bodies, rate):
            raw = json.dumps(body)
            head = f"POST {streaming.PATH} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            request = f"{head}Content-Length: {len(raw)}\r\nConnection: close\r\n\r\n{raw}"
            self._loop.call_soon_threadsafe(self._start, request.encode(), STREAMS)

    def _start(self, request: bytes, again: bool) -> None:  # noqa: FBT001  # call_soon_threadsafe has no names
        self._tasks.append(self._loop.create_task(self._client(request, again=again)))

    async def _client(self, request: bytes, *, again: bool) -> None:
        try:
            reader, writer = await asyncio.open_connection(self._address.hostname, self._address.port)
            with closing(writer):
                await self._ask(reader, writer, request)
                while again:
                    await self._ask(reader, writer, request)
        except (OSError, asyncio.IncompleteReadError, ValueError) as error:
            self.broken.append(str(error) or type(error).__name__)

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> None:
        began = time.perf_counter()
        writer.write(request)
        status, length = await self._head(reader)
        self.answers[status] = self.answers.get(status, 0) + 1
        if length is not None:
            await reader.readexactly(length)
        else:
            await self._events(reader, began)

    async def _head(self, reader: asyncio.StreamReader) -> tuple[int, int | None]:
        status = int((await reader.readuntil(b"\r\n")).split()[1])
        length = None
        while (line := await reader.readline()) not in {b"\r\n", b""}:
            if line.lower().startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        return status, length

    async def _events(self, reader: asyncio.StreamReader, began: float) -> None:
        first = True
        while line := await reader.readline():
            if line.startswith(b"data: {"):
                if first:
                    self.first.append(time.perf_counter() - began)
                    first = False
                self.tokens += 1
            if line.startswith(b"data: [DONE]"):
                return
            if line.startswith(b'data: {"error"'):
                raise ValueError(str(json.loads(line[6:])["error"]["message"]).partition(";")[0])
        raise ValueError("the stream has no end")

    def finish(self, seconds: float) -> int:
        """Wait until all have got their answers, so many seconds at most; return how many have not."""
        return asyncio.run_coroutine_threadsafe(self._finish(seconds), self._loop).result()

    async def _finish(self, seconds: float) -> int:
        _, unfinished = await asyncio.wait(self._tasks, timeout=seconds)
        return len(unfinished)

    def close(self) -> None:
        """Hang up, all at once."""
        asyncio.run_coroutine_threadsafe(self._hang_up(), self._loop).result(60)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _hang_up(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _paced(many: Sequence[T], rate: float) -> Iterator[T]:
    began = time.monotonic()
    for at, one in enumerate(many):
        time.sleep(max(0.0, began + at / rate - time.monotonic()))
        yield one


def main(argv: Sequence[str]) -> None:
    """Measure a quiet service, then with idle waiters, then with streams."""
    options = _options(argv)
    report = Report("waiters", options)
    settings: dict[str, object] = {
        "engine": "fake",
        # For those who wait, those who stream, and what is posted meanwhile: nobody is to wait for the engine.
        "fake_slots": 3 * options.clients + 1000,
        "fake_token_ms": 1000 / options.rate,
        "web_workers": options.web_workers,
        "log_level": "warning",
        "run_timeout": 3000,
        "wait_for": PATIENCE,
    }
    if options.web_threads:
        settings |= {"web_threads": options.web_threads, "max_waiters": options.max_waiters}
    with service.running(settings, sqlite=options.sqlite) as up:
        rows: list[list[object]] = []
        with _posting(report, up, "nobody waits", rows):
            time.sleep(options.seconds)
        waiting = [{"prompt": f"[[hang]] {at}", "lane": "bulk"} for at in range(options.clients)]
        load.post(up.url, waiting, 8)
        ids = [row[0] for row in up.rows("SELECT id FROM jobs ORDER BY id DESC LIMIT :n", n=options.clients)]
        crowd = Crowd(up.url)
        with _posting(report, up, f"{options.clients} come to wait", rows):
            crowd.wait_for(ids, options.arrivals)
        with _posting(report, up, f"{options.clients} wait", rows):
            time.sleep(options.seconds)
        if options.uploads:
            with (
                _posting(report, up, f"and {options.uploads} upload", rows),
                _uploading(up, options.uploads, options.megabytes) as sent,
            ):
                time.sleep(options.seconds)
            report.figures["uploads"] = {"files": options.uploads, "MB": options.megabytes, "seconds": sent}
            report.say(f"uploads of {options.megabytes} MB took {[round(one, 1) for one in sent]} s")
        report.figures["idle answers"] = {**crowd.answers, "broken": len(crowd.broken)}
        crowd.close()
        crowd = Crowd(up.url)
        with _posting(report, up, f"{options.clients} come to stream", rows):
            crowd.stream(streaming.bodies(options.clients, up.model, options.tokens), options.arrivals)
        with _posting(report, up, f"{options.clients} stream", rows):
            time.sleep(options.seconds)
        report.figures["streams"] = {
            "unfinished": crowd.finish(PATIENCE + options.tokens / options.rate),
            "answers": crowd.answers,
            "broken": Counter(crowd.broken),
            "events": crowd.tokens,
            "first": {share: percentile(crowd.first, share) for share in (0.5, 0.99)} if crowd.first else {},
        }
        report.say(f"streams: {report.figures['streams']}")
        crowd.close()
    head = ["", "POST p50 ms", "POST p99 ms", "POST max ms", "web MiB", "KiB a client"]
    report.table(f"{options.clients} clients, {options.web_workers} web processes", head, rows)
    report.write()


@contextmanager
def _uploading(up: Service, files: int, megabytes: int) -> Iterator[list[float]]:
    """Upload so many files at once during the `with`, and on until they are done; yields the seconds each took."""
    line = json.dumps({"custom_id": "x" * 900, "method": "POST", "url": streaming.PATH, "body": {}}).encode() + b"\n"
    block = line * (1_000_000 // len(line))
    took: list[float] = []

    def upload(number: int) -> None:
        mark = f"mark{number}"
        head = f'--{mark}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--{mark}\r\n'
        head += 'Content-Disposition: form-data; name="file"; filename="many.jsonl"\r\n\r\n'
        tail = f"\r\n--{mark}--\r\n"
        address = urlsplit(up.url)
        connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=600)
        size = len(head) + megabytes * len(block) + len(tail)
        kind = f"multipart/form-data; boundary={mark}"
        began = time.monotonic()
        pieces = itertools.chain([head.encode()], itertools.repeat(block, megabytes), [tail.encode()])
        connection.request("POST", "/v1/files", pieces, {"Content-Type": kind, "Content-Length": str(size)})
        answer = connection.getresponse()
        said = answer.read()
        if answer.status != http.client.OK:
            raise BenchmarkError(f"an upload was answered with {answer.status}: {said[:200]!r}")
        took.append(time.monotonic() - began)
        connection.close()

    with ThreadPoolExecutor(files) as pool:
        done = [pool.submit(upload, number) for number in range(files)]
        yield took
        for one in done:
            one.result()


@contextmanager
def _posting(report: Report, up: Service, what: str, rows: list[list[object]]) -> Iterator[None]:
    """Post at a steady rate during the `with`, then add the row of the table; the first is what is compared with."""
    with load.steadily(up.url, 25) as posts:
        yield
        took = [1000 * took for _, took in posts]
    memory = resident(up.pids()["web"]) / 2**20
    each = (memory - float(str(rows[0][4]))) * 1024 / report.options.clients if rows else ""
    report.say(f"{what}: POST p99 {percentile(took, 0.99):.0f} ms, web {memory:.0f} MiB")
    rows.append([what, percentile(took, 0.5), percentile(took, 0.99), max(took), memory, each])


def _options(argv: Sequence[str]) -> argparse.Namespace:
    wanted = parser("waiters", __doc__)
    wanted.add_argument("--clients", type=int, default=2000)
    wanted.add_argument("--seconds", type=float, default=30)
    wanted.add_argument("--arrivals", type=float, default=100, help="clients that come a second")
    wanted.add_argument("--rate", type=float, default=1.0, help="tokens a second of each stream")
    wanted.add_argument("--tokens", type=int, default=90)
    wanted.add_argument("--uploads", type=int, default=4, help="files uploaded at once while they wait")
    wanted.add_argument("--megabytes", type=int, default=190, help="of each file")
    wanted.add_argument("--web-workers", type=int, default=1)
    wanted.add_argument("--web-threads", type=int, default=0, help="0: the service's own default")
    wanted.add_argument("--max-waiters", type=int, default=0)
    wanted.add_argument("--sqlite", action="store_true")
    return wanted.parse_args(argv)
