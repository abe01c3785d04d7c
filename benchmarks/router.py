"""Throughput of the engine `upstream` beside an ideal client that keeps every upstream full by itself.

Two servers, each with the latency by batch size that a GPU platform published for text-generation-inference. The ideal
client knows the limit and sends the next request the moment that one is answered. Stoker gets the same requests over
HTTP, stores them, routes them, and stores the answers; the last time also without a limit, which it finds by measuring.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import aiohttp

from benchmarks import load, service
from benchmarks.report import Report, parser
from benchmarks.service import BenchmarkError
from tests import servers

MODEL = "tiny"
PATH = "/v1/chat/completions"


def main(argv: Sequence[str]) -> None:
    """Measure each limit, ideal client and stoker in turn, then stoker without a limit."""
    options = _options(argv)
    report = Report("router", options)
    ideals: dict[str, float] = {}
    rows: list[list[Any]] = []
    for limit in [*options.limits, None]:
        name = "found" if limit is None else str(limit)
        for number in range(options.rounds):
            with upstreams(options) as urls:
                if limit is not None:
                    ideals[name] = max(ideals.get(name, 0.0), asyncio.run(_ideal(urls, limit, options.requests)))
            with upstreams(options) as urls:
                rate = _stoker(urls, limit, options)
            beside = ideals[name] if limit is not None else max(ideals.values())
            rows.append([name, beside, rate, f"{rate / beside:.3f}"])
            report.say(f"limit {name}, round {number + 1}: {rate:.2f}/s of {beside:.2f}/s, {rate / beside:.3f}")
    report.figures = {"ideal": ideals, "rows": rows}
    head = ["limit per upstream", "ideal client /s (found: best limit's)", "stoker /s", "ratio"]
    report.table(f"{options.requests} requests over {options.upstreams} upstreams", head, rows)
    report.write()


@contextmanager
def upstreams(options: argparse.Namespace) -> Iterator[list[str]]:
    """Run the servers, each in a process of its own; yields their addresses."""
    with ExitStack() as running:
        urls = []
        for _ in range(options.upstreams):
            port = servers.free_port()
            command = [sys.executable, "-m", "tests.upstreams", "--port", str(port), "--curve"]
            command += ["--scale", str(options.scale)]
            running.enter_context(service.child(command, service.environment({})))
            urls.append(f"http://127.0.0.1:{port}")
        asyncio.run(_until_up(urls))
        yield urls


async def _until_up(urls: Sequence[str]) -> None:
    until = time.monotonic() + 30
    async with aiohttp.ClientSession() as session:
        for url in urls:
            while True:
                try:
                    async with session.get(f"{url}/v1/models"):
                        break
                except aiohttp.ClientConnectionError:
                    if time.monotonic() > until:
                        raise BenchmarkError(f"{url} does not answer") from None
                    await asyncio.sleep(0.1)


def _chats(count: int) -> list[dict[str, Any]]:
    return [{"model": MODEL, "messages": [{"role": "user", "content": f"request {at}"}]} for at in range(count)]


async def _ideal(urls: Sequence[str], limit: int, count: int) -> float:
    """Return the requests a second of a client that has `limit` requests on each upstream all the time."""
    left = iter(_chats(count))

    async def worker(session: aiohttp.ClientSession, url: str) -> None:
        for chat in left:
            async with session.post(f"{url}{PATH}", json=chat) as answer:
                await answer.read()
                if answer.status != 200:  # HTTP's OK
                    raise BenchmarkError(f"an upstream answered {answer.status}")

    began = time.monotonic()
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session, asyncio.TaskGroup() as group:
        for _ in range(limit):
            for url in urls:
                group.create_task(worker(session, url))
    return count / (time.monotonic() - began)


def _stoker(urls: Sequence[str], limit: int | None, options: argparse.Namespace) -> float:
    settings: dict[str, object] = {"engine": "upstream", "upstreams": ",".join(urls), "log_level": "warning"}
    if limit is not None:
        settings["upstream_max_connections"] = limit
    with service.running(settings, sqlite=options.sqlite) as up:
        known = "SELECT count(*) FROM engine_models WHERE model = :model"
        service.wait_until(lambda: up.value(known, model=MODEL), 30, "the model to be found")
        posted = load.post(up.url, [chat | {"lane": options.lane} for chat in _chats(options.requests)], 8)
        up.drain(within=3600, every=0.02)
        seconds = time.time() - posted.began
        done = up.value("SELECT count(*) FROM jobs WHERE state = 'succeeded'")
    if done != options.requests:
        raise BenchmarkError(f"{done} of {options.requests} requests were answered")
    return options.requests / seconds


def _options(argv: Sequence[str]) -> argparse.Namespace:
    wanted = parser("router", __doc__)
    wanted.add_argument("--requests", type=int, default=200)
    wanted.add_argument("--upstreams", type=int, default=2)
    wanted.add_argument("--limits", type=int, nargs="*", default=[1, 8, 32])
    wanted.add_argument("--rounds", type=int, default=1)
    wanted.add_argument("--scale", type=float, default=1.0, help="of the table's latencies")
    wanted.add_argument("--lane", default="standard")
    wanted.add_argument("--sqlite", action="store_true")
    return wanted.parse_args(argv)
