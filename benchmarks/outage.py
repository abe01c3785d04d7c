"""Redis killed, hung, half-open, never there: how long POSTs take meanwhile, and when their jobs are done after it.

Jobs are posted at a steady rate, each timed from the moment it was due. The service's Redis is behind a proxy of our
own, which can swallow what both sides say. No POST may take longer than a second, none may fail, no job may be lost.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from benchmarks import load, service
from benchmarks.report import Report, parser, percentile
from benchmarks.service import BenchmarkError, Service
from tests import servers

MOST = 1.0
"""Seconds that a POST may take, whatever becomes of Redis."""


@dataclass
class Proxy:
    """A port that passes bytes on to another; while it is `silent` it takes them and passes nothing on."""

    target: int
    port: int = field(default_factory=servers.free_port)
    silent: bool = False

    async def serve(self, ended: asyncio.Event) -> None:
        """Pass on until the end."""
        server = await asyncio.start_server(self._client, "127.0.0.1", self.port)
        async with server:
            await ended.wait()

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            there, back = await asyncio.open_connection("127.0.0.1", self.target)
            await asyncio.gather(self._pass(reader, back), self._pass(there, writer))
            back.close()
        writer.close()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                if not self.silent:
                    writer.write(data)
                    await writer.drain()
            writer.close()


@contextmanager
def proxy(target: int) -> Iterator[Proxy]:
    """Run a proxy in a thread of its own."""
    made = Proxy(target)
    loop, ended = asyncio.new_event_loop(), asyncio.Event()

    async def work() -> None:
        await made.serve(ended)

    thread = threading.Thread(target=lambda: loop.run_until_complete(work()), name="proxy", daemon=True)
    thread.start()
    try:
        yield made
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join(5)


def main(argv: Sequence[str]) -> None:
    """Break Redis in every way, and write what a POST took meanwhile."""
    options = _options(argv)
    report = Report("outage", options)
    rows: list[list[object]] = []
    with _served(options) as (up, between):
        rows.append(_measured(report, up, "well", lambda: None, lambda: None))
        rows.append(_measured(report, up, "killed", lambda: up.redis.stop(signal.SIGKILL), up.redis.start))
        rows.append(_measured(report, up, "hung (SIGSTOP)", lambda: _send(up, "STOP"), lambda: _send(up, "CONT")))
        rows.append(
            _measured(
                report, up, "half-open", lambda: _silence(between, silent=True), lambda: _silence(between, silent=False)
            )
        )
        _check(report, up, "Redis that comes and goes")
    with _served(options, silent=True) as (up, between):
        rows.append(_measured(report, up, "never there", lambda: None, lambda: _silence(between, silent=False)))
        _check(report, up, "Redis that was not there at the start")
    head = ["Redis", "POSTs", "p50 s", "p99 s", "longest s", "all done after it came back (s)"]
    report.table(f"POSTs, {options.rate:g} a second, while Redis is away for {options.seconds:g} s", head, rows)
    report.write()
    longest = max(float(str(row[4])) for row in rows)
    if longest > MOST:
        raise BenchmarkError(f"a POST took {longest:.2f} s")


@contextmanager
def _served(options: argparse.Namespace, *, silent: bool = False) -> Iterator[tuple[Service, Proxy]]:
    with servers.redis() as redis, proxy(redis.port) as between:
        between.silent = silent
        settings: dict[str, object] = {"engine": "fake", "log_level": "error"}
        settings["redis_url"] = f"redis://127.0.0.1:{between.port}/0"
        with service.running(settings, sqlite=options.sqlite, ready=not silent) as up:
            up.redis = redis
            yield up, between


def _measured(
    report: Report, up: Service, how: str, break_it: Callable[[], object], mend: Callable[[], object]
) -> list[object]:
    """Post during an outage; return its line of the table."""
    with load.steadily(up.url, report.options.rate) as took:
        time.sleep(min(5.0, report.options.seconds))
        broken = time.time()
        break_it()
        time.sleep(report.options.seconds)
        whole = time.time()
        mend()
    up.drain(within=300)
    done = float(up.value("SELECT max(finished_at) FROM jobs")) - whole
    seconds = [spent for due, spent in took if broken <= due < whole]
    report.figures[how] = {"posts": len(seconds), "p50": percentile(seconds, 0.5), "p99": percentile(seconds, 0.99)}
    report.figures[how] |= {"longest": max(seconds), "done_after": max(0.0, done)}
    report.say(f"{how}: longest POST {max(seconds):.3f} s, all done {max(0.0, done):.1f} s after it came back")
    return [how, *report.figures[how].values()]


def _check(report: Report, up: Service, what: str) -> None:
    ends = dict(up.rows("SELECT state, count(*) FROM jobs GROUP BY state"))
    results = int(up.value("SELECT count(*) FROM results"))
    report.figures[f"ends, {what}"] = ends | {"results": results}
    if set(ends) != {"succeeded"} or ends["succeeded"] != results:
        raise BenchmarkError(f"the promise is broken: {ends}, {results} results")


def _send(up: Service, name: str) -> None:
    os.kill(up.redis.pid, signal.Signals[f"SIG{name}"])


def _silence(between: Proxy, *, silent: bool) -> None:
    between.silent = silent


def _options(argv: Sequence[str]) -> argparse.Namespace:
    wanted = parser("outage", __doc__)
    wanted.add_argument("--seconds", type=float, default=60.0, help="of each outage")
    wanted.add_argument("--rate", type=float, default=20.0, help="POSTs a second")
    wanted.add_argument("--sqlite", action="store_true")
    return wanted.parse_args(argv)
