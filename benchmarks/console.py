"""What the console's pages weigh and take in a real browser, with ten jobs in the database and with a million.

Half of the jobs have ended, half wait for a model that no engine serves; one owner, who looks, has half of them. Each
page is opened in a browser that has seen nothing of it, so many times: the bytes and requests of that visit and of the
next one, the time to the first byte, to the first contentful paint, and until what the page is about is shown.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from statistics import median
from typing import Any

import psycopg
import sqlalchemy as sa
from playwright.sync_api import Browser, StorageState

from benchmarks.report import Report, parser
from benchmarks.service import Service, running
from models import jobs, keys, results
from stoker.client import Client
from tests.browser.console import Window, chromium

ADA = "ada"
OWNERS = 100
AT_ONCE = 5000
NOW = time.time()
BODY = '{"model":"big","messages":[{"role":"user","content":"What is the capital of France, and of what else?"}]}'
ANSWER = '{"choices":[{"index":0,"message":{"role":"assistant","content":"Paris."},"finish_reason":"stop"}]}'
SETTLED_MS = 700
"""Milliseconds after which nothing more of a page is on its way."""

PAGES = {
    "overview": ("/dashboard", "#link.live"),
    "jobs": ("/dashboard/jobs", "#list table"),
    "jobs that failed": ("/dashboard/jobs?state=failed", "#list table"),
    "a job": ("/dashboard/jobs/{job}", "#words"),
    "bulks": ("/dashboard/bulks", "#list table"),
    "a bulk": ("/dashboard/bulks/{bulk}", "#far"),
    "try": ("/dashboard/try", "#code:not(:empty)"),
    "upload": ("/dashboard/upload", "#upload"),
    "webhooks": ("/dashboard/webhooks", "main form"),
    "deliveries": ("/dashboard/webhooks/deliveries", "main form"),
    "keys": ("/dashboard/keys", "main table"),
    "usage": ("/dashboard/usage", "main table"),
}
"""Where each is, and what it shows last."""

_TIMES = """() => {
  const [page] = performance.getEntriesByType("navigation");
  const [paint] = performance.getEntriesByName("first-contentful-paint");
  return [page.responseStart, paint.startTime];
}"""


@dataclass
class Visits:
    """What was measured of a page, a value for each visit; times in milliseconds."""

    requests: list[int] = field(default_factory=list)
    first_bytes: list[float] = field(default_factory=list)
    next_bytes: list[float] = field(default_factory=list)
    answered: list[float] = field(default_factory=list)
    painted: list[float] = field(default_factory=list)
    shown: list[float] = field(default_factory=list)


def main(argv: Sequence[str]) -> None:
    """Measure every page with few jobs and with many."""
    options = _options(argv)
    report = Report("console", options)
    rows: list[list[object]] = []
    with chromium() as browser:
        report.machine["browser"] = browser.version
        for depth in (options.few, options.many):
            with running({"engine": "fake"}, sqlite=options.sqlite) as service:
                rows += _measure(report, service, browser, depth)
    rows.sort(key=lambda row: list(PAGES).index(str(row[0])))
    head = ["page", "jobs", "requests", "kB", "kB again", "first byte ms", "first paint ms", "shown ms"]
    report.table(f"Pages of the console, medians of {options.visits} visits", head, rows)
    report.write()


def _measure(report: Report, service: Service, browser: Browser, depth: int) -> Iterator[list[object]]:
    began = time.monotonic()
    _fill(service, depth)
    with service.database.transaction() as tx:
        secret = keys.create(tx, ADA, scopes=keys.SCOPES).secret
    report.say(f"{depth:,} jobs stored in {time.monotonic() - began:.0f} s")
    with Client(service.url, secret) as client:
        bulk = client.wait_bulk(client.bulk(["one", "two", "three"]).id, 120)
    ids = {"job": _id(0), "bulk": bulk.id}
    door = Window(browser, service.url)
    door.log_in(secret)
    login = door.context.storage_state()
    door.close()
    for name, (path, shows) in PAGES.items():
        found = Visits()
        for number in range(1 + report.options.visits):
            # The first is not counted: a web process does some things once.
            _visit(browser, service.url, login, (path.format_map(ids), shows), found if number else Visits())
        report.figures.setdefault(name, {})[str(depth)] = vars(found)
        yield [
            name,
            depth,
            round(median(found.requests)),
            *(median(bytes_) / 1000 for bytes_ in (found.first_bytes, found.next_bytes)),
            *(round(median(times)) for times in (found.answered, found.painted, found.shown)),
        ]


def _visit(browser: Browser, url: str, login: StorageState, page: tuple[str, str], found: Visits) -> None:
    """Open a page twice in a window that knows nothing, and note what that took."""
    window = Window(browser, url, login)
    wire = window.context.new_cdp_session(window.page)
    wire.send("Network.enable")
    loaded: list[float] = []
    wire.on("Network.loadingFinished", lambda event: loaded.append(event["encodedDataLength"]))
    began = time.perf_counter()
    window.open(*page)
    found.shown.append(1000 * (time.perf_counter() - began))
    window.page.wait_for_timeout(SETTLED_MS)
    answered, painted = window.page.evaluate(_TIMES)
    found.answered.append(answered)
    found.painted.append(painted)
    found.requests.append(len(loaded))
    found.first_bytes.append(sum(loaded))
    loaded.clear()
    window.open(*page)
    window.page.wait_for_timeout(SETTLED_MS)
    found.next_bytes.append(sum(loaded))
    window.close()


def _fill(service: Service, depth: int) -> None:
    """Store so many jobs: by COPY, or by thousands in SQLite."""
    half = depth // 2
    for table, numbers, row in (
        (jobs.table, range(depth), lambda n: _job(n, half)),
        (jobs.bodies, range(depth), _body),
        (results.table, range(half), _result),
    ):
        rows = (row(n) for n in numbers)
        if service.postgres:
            _copy(service.postgres.url("bench"), table, rows)
            continue
        while some := list(islice(rows, AT_ONCE)):
            with service.database.transaction() as tx:
                tx.execute(table.insert(), some)


def _copy(url: str, table: sa.Table, rows: Iterator[dict[str, Any]]) -> None:
    first = next(rows)
    with psycopg.connect(url, autocommit=True) as connection:
        with connection.cursor() as cursor, cursor.copy(f"COPY {table.name} ({', '.join(first)}) FROM STDIN") as copy:
            copy.write_row(list(first.values()))
            for row in rows:
                copy.write_row(list(row.values()))
        connection.execute(f"VACUUM (ANALYZE) {table.name}")


def _id(number: int) -> str:
    return f"job_{number:032x}"


def _failed(number: int) -> bool:
    return number % 20 == 4


def _job(number: int, half: int) -> dict[str, Any]:
    ended = number < half
    at = NOW - 86_400 + number / 1000
    return {
        "id": _id(number),
        "owner": ADA if number % 2 == 0 else f"owner-{number % OWNERS:03d}",
        "model": "fake" if ended else "big",
        "lane": ("bulk", "standard")[number % 8 == 0],
        "endpoint": "/v1/chat/completions",
        "state": ("failed" if _failed(number) else "succeeded") if ended else "queued",
        "pos": int(at * 1e6),
        "tokens": 30,
        "notify": False,
        "attempts": int(ended),
        "deferrals": 0,
        "lone_deaths": 0,
        "created_at": at,
        "started_at": at + 1 if ended else None,
        "finished_at": at + 3 if ended else None,
        "prefix": 0,
    }


def _body(number: int) -> dict[str, Any]:
    return {"job_id": _id(number), "webhook_include_result": False, "body": BODY}


def _result(number: int) -> dict[str, Any]:
    bad = _failed(number)
    return {
        "job_id": _id(number),
        "engine_id": "engine",
        "status": 400 if bad else 200,
        "body": None if bad else ANSWER,
        "error_code": "invalid_request" if bad else None,
        "error_message": "the prompt asked to be rejected" if bad else None,
        "prompt_tokens": 24,
        "completion_tokens": 4,
        "created_at": NOW - 86_400 + number / 1000,
    }


def _options(argv: Sequence[str]) -> argparse.Namespace:
    wanted = parser("console", __doc__)
    wanted.add_argument("--few", type=int, default=10)
    wanted.add_argument("--many", type=int, default=1_000_000)
    wanted.add_argument("--visits", type=int, default=5, help="visits of each page that count")
    wanted.add_argument("--sqlite", action="store_true", help="on SQLite instead of PostgreSQL")
    return wanted.parse_args(argv)
