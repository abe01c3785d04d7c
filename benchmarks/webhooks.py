"""Webhooks: deliveries a second, retries on time, and what one receiver that hangs costs the others.

The sender alone (tasks.webhook.deliver_due, in a thread), a real database, and a receiver in a process of its own on
ten loopback addresses: no queue, no engine. Every delivery must arrive.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import sqlalchemy as sa

from benchmarks.report import ROOT, Report, parser, percentile
from benchmarks.service import BenchmarkError
from models import deliveries, endpoints, jobs, schema
from models.db import Database, new_id, now
from models.secrets import secret_of
from stoker.settings import Settings, load
from tasks import logs, webhook
from tests import servers

HOSTS = 10
SCHEDULE = (0.0, 0.2, 0.5, *(1.0,) * 13)
"""Seconds before each of so many tries that none of 10,000 fails in all of them by chance."""
Came = tuple[str, str, str, float, int, int]


@dataclass
class Receiver:
    """The receiver's process: where it listens, and what it says that came."""

    port: int

    def url(self, path: str, host: int = 1) -> str:
        """Return a URL on one of its addresses, counted from 1."""
        return f"http://127.0.0.{host}:{self.port}{path}"

    def came(self) -> list[Came]:
        """Return (host, path, webhook-id, time, status, events) of what came since the last call."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request("GET", "/report")
        return [tuple(one) for one in json.loads(connection.getresponse().read())]


@contextmanager
def receiver() -> Iterator[Receiver]:
    """Run the receiver."""
    command = [sys.executable, "-m", "benchmarks.webhook_receiver", str(HOSTS)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield Receiver(int(process.stdout.readline()))
        finally:
            assert process.stdin is not None
            process.stdin.close()


@contextmanager
def _opened(kind: str) -> Iterator[tuple[Database, Settings]]:
    with tempfile.TemporaryDirectory() as folder, servers.postgres() if kind == "PostgreSQL" else nullcontext() as held:
        url = f"sqlite:///{Path(folder) / 'stoker.db'}" if held is None else held.create("webhooks")
        settings = load(
            data=Path(folder),
            database_url=url,
            engine="fake",
            webhook_secret=secret_of(b"the secret of a benchmark, 32 by"),
            webhook_allow_cidrs="127.0.0.0/8",
            webhook_schedule=",".join(f"{wait:g}" for wait in SCHEDULE),
            log_level="error",
        )
        database = Database(settings.database)
        schema.upgrade(database)
        try:
            yield database, settings
        finally:
            database.close()


def end_jobs(database: Database, urls: Sequence[str], endpoint: str = "", delay: float = 0.0) -> list[str]:
    """End a job for each URL, in one transaction; return their deliveries' ids."""
    with database.transaction() as tx:
        ids = [jobs.submit(tx, jobs.NewJob("owner", "fake", "/v1/completions", "{}")).id for _ in urls]
        mine = sa.update(jobs.table).where(jobs.table.c.state == "queued")
        tx.execute(mine.values(state="succeeded", finished_at=now()))
        new = [
            deliveries.NewDelivery("owner", job_id, "job.succeeded", url, endpoint_id=endpoint, delay=delay)
            for job_id, url in zip(ids, urls, strict=True)
        ]
        return deliveries.enqueue(tx, new)


class Sending:
    """A sender at work, and the sweeper's ring: it begins again for what falls due."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database, self._settings = database, settings
        self._stop, self._bell = threading.Event(), webhook.Bell()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._bell.ring()
        self._thread.join(60)

    def ring(self) -> None:
        """Say that something is due."""
        self._bell.ring()

    def _work(self) -> None:
        while not self._stop.is_set():
            webhook.deliver_due(self._database, self._settings, stopping=self._stop, bell=self._bell)
            self._stop.wait(0.01)


def _until_sent(database: Database, within: float) -> None:
    ends_at = time.monotonic() + within
    waiting = sa.select(sa.func.count()).where(deliveries.table.c.state.in_(("pending", "sending")))
    while time.monotonic() < ends_at:
        with database.reading() as tx:
            if not tx.execute(waiting.where(~deliveries.table.c.url.endswith("/hang"))).scalar_one():
                return
        time.sleep(0.1)
    raise BenchmarkError(f"not all was delivered within {within:g} s")


def _rate(report: Report, kind: str, count: int, at: Receiver, path: str, what: str) -> list[object]:
    """Deliver so many; return the line of the table."""
    with _opened(kind) as (database, settings):
        at.came()
        ids = end_jobs(database, [at.url(path, 1 + nth % HOSTS) for nth in range(count)])
        began = time.time()
        with Sending(database, settings):
            _until_sent(database, 60 + count / 20)
        came = at.came()
    return _line(report, kind, what, ids, came, began)


def _line(report: Report, kind: str, what: str, ids: Sequence[str], came: Sequence[Came], began: float) -> list[object]:
    arrived = {one[2] for one in came if one[4] == 200}
    if missing := set(ids) - arrived:
        raise BenchmarkError(f"{len(missing)} deliveries never arrived")
    doubled = sum(1 for one in came if one[4] == 200) - len(arrived)
    early, late = _off_schedule(came)
    seconds = max(one[3] for one in came) - began
    row = [kind, what, len(ids), len(came), len(came) / seconds, len(ids) / seconds, doubled, early, late]
    report.figures[f"{kind}, {what}"] = dict(zip(HEAD[2:], row[2:], strict=True))
    return row


HEAD = (
    "database",
    "what",
    "deliveries",
    "requests",
    "requests/s",
    "delivered/s",
    "twice",
    "tries too early",
    "p99 late s",
)


def _off_schedule(came: Sequence[Came]) -> tuple[int, float]:
    """Return how many tries came sooner than scheduled, and how late the rest was (p99, seconds)."""
    tries: dict[str, list[float]] = defaultdict(list)
    for one in came:
        tries[one[2]].append(one[3])
    early, late = 0, [0.0]
    for times in tries.values():
        for nth, (before, after) in enumerate(itertools.pairwise(sorted(times)), start=1):
            least, most = SCHEDULE[nth] * 0.9, SCHEDULE[nth] * 1.1
            early += after - before < least
            late.append(after - before - most)
    return early, percentile(late, 0.99)


def _beside(report: Report, kind: str, count: int, at: Receiver, rate: float) -> list[list[object]]:
    """Measure nine receivers at a steady rate, without and with a tenth that hangs, of which as many are due."""
    rows = []
    for hanging in (0, 1, count):
        with _opened(kind) as (database, settings):
            at.came()
            end_jobs(database, [at.url("/hang", HOSTS)] * hanging)
            told: dict[str, float] = {}
            with Sending(database, settings) as sending:
                time.sleep(1)
                began = time.monotonic()
                for nth in range(count):
                    time.sleep(max(0.0, began + nth / rate - time.monotonic()))
                    (ident,) = end_jobs(database, [at.url("/ok", 1 + nth % (HOSTS - 1))])
                    told[ident] = time.time()
                    sending.ring()
                _until_sent(database, 120)
                took = [one[3] - told[one[2]] for one in at.came() if one[2] in told]
        row = [kind, hanging, count, percentile(took, 0.5), percentile(took, 0.99), max(took)]
        report.figures[f"{kind}, {hanging} due at a receiver that hangs"] = {
            "p50": row[3],
            "p99": row[4],
            "max": row[5],
        }
        report.say(f"{kind}, {hanging} hanging: p50 {row[3]:.3f} s, p99 {row[4]:.3f} s")
        rows.append(row)
    return rows


def _together(report: Report, kind: str, count: int, at: Receiver) -> list[object]:
    """Deliver so many to an endpoint that takes them together."""
    with _opened(kind) as (database, settings):
        at.came()
        endpoint = new_id("whe")
        columns: dict[str, Any] = {"id": endpoint, "owner": "owner", "name": "", "url": at.url("/ok"), "coalesce": 0.05}
        columns |= {"event_types": ["job.succeeded"], "include_result": False, "secret_hint": ""}
        with database.transaction() as tx:
            made = sa.insert(endpoints.table).values(created_at=now(), updated_at=now(), secret=settings.webhook_secret)
            tx.execute(made, columns)
        end_jobs(database, [at.url("/ok")] * count, endpoint, 0.05)
        began = time.time()
        with Sending(database, settings):
            _until_sent(database, 120)
        came = at.came()
    events, seconds = sum(one[5] for one in came), max(one[3] for one in came) - began
    if events != count:
        raise BenchmarkError(f"{events} events arrived of {count}")
    row = [kind, "together", count, len(came), len(came) / seconds, events / seconds, 0, 0, 0.0]
    report.figures[f"{kind}, together"] = dict(zip(HEAD[2:], row[2:], strict=True))
    return row


def main(argv: Sequence[str]) -> None:
    """Measure every part on each database."""
    options = _options(argv)
    logs.configure("error")
    report = Report("webhooks", options)
    rates, beside = [], []
    with receiver() as at:
        for kind in options.databases:
            rates.append(_rate(report, kind, options.deliveries, at, "/ok", "all well"))
            rates.append(_rate(report, kind, options.deliveries, at, "/fail0.3", "30 % fail"))
            rates.append(_together(report, kind, options.deliveries, at))
            beside += _beside(report, kind, options.beside, at, options.rate)
    report.table("Deliveries to ten receivers", HEAD, rates)
    head = ["database", "due at one that hangs", "deliveries to the others", "p50 s", "p99 s", "longest s"]
    report.table(f"From COMMIT to arrival, {options.rate:g} a second", head, beside)
    report.write()
    if any(row[7] for row in rates):
        raise BenchmarkError("a try came sooner than scheduled")


def _options(argv: Sequence[str]) -> argparse.Namespace:
    wanted = parser("webhooks", __doc__)
    wanted.add_argument("--deliveries", type=int, default=10_000)
    wanted.add_argument("--beside", type=int, default=2_000, help="deliveries to the nine, beside one that hangs")
    wanted.add_argument("--rate", type=float, default=50.0, help="of those, a second")
    wanted.add_argument("--databases", nargs="+", choices=("PostgreSQL", "SQLite"), default=["PostgreSQL", "SQLite"])
    return wanted.parse_args(argv)
