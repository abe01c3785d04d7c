"""The collector's time for a batch with 1,000 and with 1,000,000 queued jobs on PostgreSQL, and their ratio.

Two databases on one server, one shallow and one deep, take turns. What is timed is what the collector does for each
batch: `tasks.collector.cut_one` in its transaction, COMMIT included. Between two cuts the batch is claimed, settled and
finished by the worker's own functions and as many new jobs are queued, so that the depth stays and rows die as they do
in life. With one owner, and with 501 owners of equal share; first as loaded, then after VACUUM ANALYZE. Queued jobs are
copied into `jobs` alone: the collector reads no bodies.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import count, islice
from typing import get_args

import psycopg

from benchmarks.report import Report, parser, percentile
from benchmarks.service import BenchmarkError
from models import batches, ends, engines, schema
from models.db import Database
from models.ends import Settled
from models.engines import Incarnation
from models.results import NewResult
from stoker.setting_types import Policy
from stoker.settings import LANES, Settings, load
from tasks import collector
from tests import servers

MODEL = "bench"
LANE = "bulk"
ENGINE = Incarnation("engine", "incarnation", "fake", "host", 1, 1, "1")
COLUMNS = "id, owner, model, lane, endpoint, state, pos, tokens, notify, attempts, deferrals, lone_deaths, created_at"


@dataclass
class Queue:
    """A database with a queue that is kept at one depth."""

    url: str
    database: Database
    owners: int
    numbers: Iterator[int] = field(default_factory=lambda: count(1))
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def fill(self, jobs_to_add: int) -> None:
        """Queue so many more jobs, each owner in turn."""
        now = time.time()
        copying = f"COPY jobs ({COLUMNS}) FROM STDIN"
        with psycopg.connect(self.url) as connection, connection.cursor().copy(copying) as copy:
            for number in islice(self.numbers, jobs_to_add):
                owner = f"owner-{number % self.owners:04d}"
                row = (f"job_{number:032x}", owner, MODEL, LANE, "/v1/chat/completions", "queued")
                copy.write_row((*row, int(now * 1e6) + number, 30, False, 0, 0, 0, now))

    def cut(self, settings: Settings, phase: str) -> None:
        """Cut one batch, note how long that took, and put as many jobs in its place."""
        started = time.perf_counter()
        step = self.database.retrying(lambda tx: collector.cut_one(tx, settings, MODEL))
        self.seconds.setdefault(phase, []).append(time.perf_counter() - started)
        if not isinstance(step, batches.Cut) or len(step.ids) != settings.bulk_batch:
            raise BenchmarkError(f"not a full batch: {step}")
        self._work_off(step.ids)
        self.fill(len(step.ids))

    def _work_off(self, ids: Sequence[str]) -> None:
        """Do what an engine's worker does with the batch."""
        with self.database.transaction() as tx:
            claimed = batches.claim(tx, ENGINE, range(len(LANES)), 60.0, idle=True)
        if claimed is None:
            raise BenchmarkError("the batch cannot be claimed")
        done = [Settled(job_id, "succeeded", NewResult(200, "{}")) for job_id in ids]
        with self.database.transaction() as tx:
            ends.settle(tx, ENGINE.engine, {claimed.id: done})
        with self.database.transaction() as tx:
            batches.finish(tx, claimed.id)


def main(argv: Sequence[str]) -> None:
    """Measure both depths, with one owner and with many."""
    options = _options(argv)
    report = Report("queue_depth", options)
    # The engine has no heartbeat here.
    settings = load(
        database_url="postgresql://", engine_gone_after=1e6, bulk_batch=options.batch, bulk_policy=options.policy
    )
    rows: list[list[object]] = []
    with servers.postgres(fsync=True) as server:
        for owners in options.owners:
            with (
                _queue(report, server, owners, options.shallow) as shallow,
                _queue(report, server, owners, options.deep) as deep,
            ):
                report.machine["postgresql"] = _version(deep)
                rows += _measure(report, settings, shallow, deep)
    head = ["owners", "state", "cuts", f"{options.shallow:,}: ms", "p90", f"{options.deep:,}: ms", "p90", "ratio"]
    report.table(f"One cut of {options.batch} jobs, median", head, rows)
    report.figures["ratios"] = [row[-1] for row in rows]
    report.write()


def _measure(report: Report, settings: Settings, shallow: Queue, deep: Queue) -> Iterator[list[object]]:
    for phase in ("as loaded", "after VACUUM ANALYZE"):
        if phase != "as loaded":
            for queue in (shallow, deep):
                _vacuum(queue)
        for queue in (shallow, deep):
            for _ in range(5):
                queue.cut(settings, "warm-up")
        for number in range(report.options.cuts):
            for queue in (shallow, deep) if number % 2 == 0 else (deep, shallow):
                queue.cut(settings, phase)
        low, high = ([1000 * second for second in queue.seconds[phase]] for queue in (shallow, deep))
        ratio = statistics.median(high) / statistics.median(low)
        report.say(f"{deep.owners} owners, {phase}: ratio {ratio:.2f}")
        yield [
            deep.owners,
            phase,
            len(low),
            statistics.median(low),
            percentile(low, 0.9),
            statistics.median(high),
            percentile(high, 0.9),
            f"{ratio:.2f}",
        ]


@contextmanager
def _queue(report: Report, server: servers.Postgres, owners: int, depth: int) -> Iterator[Queue]:
    name = f"queue_{owners}_{depth}"
    queue = Queue(server.create(name), Database(server.url(name).replace("postgresql", "postgresql+psycopg")), owners)
    try:
        with closing(queue.database):
            schema.upgrade(queue.database)
            with queue.database.transaction() as tx:
                engines.register(tx, ENGINE)
                engines.go_live(tx, ENGINE, 256, 26, {MODEL: None})
            queue.fill(depth)
            report.say(f"{depth:,} jobs of {owners} owners are queued")
            yield queue
    finally:
        server.drop(name)


def _vacuum(queue: Queue) -> None:
    with psycopg.connect(queue.url, autocommit=True) as connection:
        connection.execute("VACUUM (ANALYZE) jobs")


def _version(queue: Queue) -> str:
    with psycopg.connect(queue.url) as connection:
        return f"{connection.info.server_version // 10000}.{connection.info.server_version % 10000}"


def _options(argv: Sequence[str]) -> argparse.Namespace:
    wanted = parser("queue_depth", __doc__)
    wanted.add_argument("--shallow", type=int, default=1_000)
    wanted.add_argument("--deep", type=int, default=1_000_000)
    wanted.add_argument("--owners", type=int, nargs="+", default=[1, 501])
    wanted.add_argument("--batch", type=int, default=128)
    wanted.add_argument("--policy", choices=get_args(Policy), default="fixed", help="how the batches are chosen")
    wanted.add_argument("--cuts", type=int, default=200, help="cuts of each depth in each state")
    return wanted.parse_args(argv)
