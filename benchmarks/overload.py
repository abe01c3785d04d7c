"""Ten times as many clients as the web server can serve: do health checks answer, who is refused, what does it hold.

Clients post jobs one after another, each on a connection of its own, from a process of their own. Polite ones come back
after the Retry-After of a refusal, rude ones at once. Beside them clients wait for jobs that do not end (`?wait=`).
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import multiprocessing
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from benchmarks import load, service
from benchmarks.memory import resident
from benchmarks.report import Report, parser, percentile
from benchmarks.service import Service
from benchmarks.waiters import Crowd

PROBE_EVERY = 0.05
PATIENCE = 60.0
BODY = json.dumps({"prompt": "overload", "lane": "bulk"}).encode()


@dataclass
class Came:
    """What came of a crowd's requests: seconds of the accepted, of the refused, and how many of each status."""

    accepted: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0


def main(argv: Sequence[str]) -> None:
    """Measure as many clients as fit, ten times as many, polite and rude, and with clients that wait beside them."""
    options = _options(argv)
    report = Report("overload", options)
    settings: dict[str, object] = {
        "engine": "fake",
        "fake_slots": 4096,
        "log_level": "error",
        "max_queued": 100_000_000,
        "max_queued_per_owner": 100_000_000,
        "web_workers": options.web_workers,
    }
    rows: list[list[object]] = []
    with service.running(settings, sqlite=options.sqlite) as up:
        load.post(up.url, [{"prompt": f"warm {at}"} for at in range(200)], 4)
        with _probed(report, up, "nobody", rows):
            time.sleep(min(5.0, options.seconds))
        few, many = options.clients, 10 * options.clients
        for name, clients, polite in (
            (f"{few} clients", few, True),
            (f"{many} polite", many, True),
            (f"{many} rude", many, False),
        ):
            with _probed(report, up, name, rows) as came:
                came.append(crowd(up.url, clients, options.seconds, polite=polite))
        _with_waiters(report, up, options, rows)
    head = ["", "accepted/s", "p50 ms", "p99 ms", "refused/s", "p99 ms", "others", "/livez p50 ms", "p99 ms", "max ms"]
    report.table("overload", [*head, "/readyz p99 ms", "web MiB"], rows)
    report.write()


def _with_waiters(report: Report, up: Service, options: argparse.Namespace, rows: list[list[object]]) -> None:
    waiting = [{"prompt": f"[[hang]] {at}", "lane": "bulk"} for at in range(options.waiters)]
    ids = load.post(up.url, waiting, 8).ids
    waiting_crowd = Crowd(up.url)
    try:
        waiting_crowd.wait_for(ids, 200)
        with _probed(report, up, f"{10 * options.clients} rude, {options.waiters} wait", rows) as came:
            came.append(crowd(up.url, 10 * options.clients, options.seconds, polite=False))
        report.figures["waiting answers"] = {**waiting_crowd.answers, "broken": len(waiting_crowd.broken)}
    finally:
        waiting_crowd.close()


def crowd(url: str, clients: int, seconds: float, *, polite: bool) -> Came:
    """Post from another process for so many seconds, so that its interpreter is not the one that measures."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_post_all, (url, clients, seconds, polite))


def _post_all(url: str, clients: int, seconds: float, polite: bool) -> Came:  # noqa: FBT001  # a Pool has no names
    came = Came()
    asyncio.run(_clients(url, clients, seconds, came, polite=polite))
    return came


async def _clients(url: str, clients: int, seconds: float, came: Came, *, polite: bool) -> None:
    address = urlsplit(url)
    began = time.monotonic()
    until = began + seconds

    async def client() -> None:
        while time.monotonic() < until:
            try:
                reader, writer = await asyncio.open_connection(address.hostname, address.port)
                with closing(writer):
                    while time.monotonic() < until:
                        await _post(reader, writer, came, until if polite else 0.0)
            except (OSError, asyncio.IncompleteReadError) as error:
                came.statuses[type(error).__name__] += 1
                await asyncio.sleep(0.1)

    await asyncio.gather(*(client() for _ in range(clients)))
    came.seconds = time.monotonic() - began


async def _post(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, came: Came, wait_until: float) -> None:
    began = time.perf_counter()
    writer.write(b"POST /v1/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n")
    writer.write(b"Content-Length: %d\r\n\r\n%b" % (len(BODY), BODY))
    async with asyncio.timeout(PATIENCE):
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        status = head.split()[1]
        headers = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
        await reader.readexactly(int(headers["content-length"]))
    came.statuses[status] += 1
    (came.accepted if status == "202" else came.refused).append(time.perf_counter() - began)
    if "retry-after" in headers and wait_until:
        await asyncio.sleep(min(float(headers["retry-after"]), max(0.0, wait_until - time.monotonic())))
    if headers.get("connection") == "close":
        raise ConnectionResetError


@contextmanager
def _probed(report: Report, up: Service, name: str, rows: list[list[object]]) -> Iterator[list[Came]]:
    """Ask for the health of the service during the `with`, and make a row of what was seen."""
    took: dict[str, list[float]] = {"/livez": [], "/readyz": []}
    wrong: Counter[str] = Counter()
    ended = threading.Event()
    prober = threading.Thread(target=_probe, args=(up.url, took, wrong, ended))
    prober.start()
    seen: list[Came] = []
    try:
        yield seen
    finally:
        ended.set()
        prober.join()
    came = seen[0] if seen else Came(seconds=1.0)
    others = {status: count for status, count in came.statuses.items() if status not in {"202", "429", "503"}}
    rows.append(
        [
            name,
            round(len(came.accepted) / came.seconds),
            *(_ms(came.accepted, share) for share in (0.5, 0.99)),
            round(len(came.refused) / came.seconds),
            _ms(came.refused, 0.99),
            str(others or ""),
            *(_ms(took["/livez"], share) for share in (0.5, 0.99, 1.0)),
            _ms(took["/readyz"], 0.99),
            round(resident(up.pids()["web"]) / 2**20),
        ]
    )
    report.figures[name] = {"statuses": came.statuses, "health": {path: len(all_) for path, all_ in took.items()}}
    report.figures[name]["health refused"] = wrong
    report.say(f"{name}: {dict(came.statuses)}, health checks that failed: {dict(wrong)}")


def _ms(seconds: Sequence[float], share: float) -> object:
    return round(percentile(seconds, share) * 1000, 1) if seconds else ""


def _probe(url: str, took: dict[str, list[float]], wrong: Counter[str], ended: threading.Event) -> None:
    address = urlsplit(url)
    while not ended.wait(PROBE_EVERY):
        for path, times in took.items():
            began = time.perf_counter()
            connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=PATIENCE)
            try:
                connection.request("GET", path)
                answer = connection.getresponse()
                answer.read()
                if answer.status != 200:
                    wrong[f"{path} {answer.status}"] += 1
            except OSError as error:
                wrong[f"{path} {type(error).__name__}"] += 1
            finally:
                connection.close()
            times.append(time.perf_counter() - began)


def _options(argv: Sequence[str]) -> argparse.Namespace:
    made = parser("overload", __doc__)
    made.add_argument("--clients", type=int, default=64, help="clients that fit; ten times as many do not")
    made.add_argument("--waiters", type=int, default=1000, help="clients that wait for jobs")
    made.add_argument("--seconds", type=float, default=20.0, help="length of each measurement")
    made.add_argument("--web-workers", type=int, default=1, help="web processes")
    made.add_argument("--sqlite", action="store_true", help="on SQLite instead of PostgreSQL")
    return made.parse_args(argv)
