"""Jobs per second that the path itself carries, with the fake engine: the queue drained, POSTs accepted, the profile.

Drained: 20,000 chats are put into the queue of a running service in one transaction; from its COMMIT to the last stored
result. Accepted: POSTs over 8 and 16 connections, while the engine works the jobs off, and while the engine and the
collector stand still. Then both again under py-spy, whose figures count for nothing but the profile.
"""

from __future__ import annotations

import argparse
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import product
from statistics import median

from celery import Celery

from benchmarks import load, service
from benchmarks.profiling import Profile, profiled
from benchmarks.report import Report, parser, percentile, spread
from benchmarks.service import BenchmarkError, Service
from models import jobs

OWNERS = 7
CHAT = '{"model":"fake","messages":[{"role":"user","content":"hello world, how are you today?"}],"max_tokens":16}'
PARTS = ("collector", "engine", "web")


def main(argv: Sequence[str]) -> None:
    """Measure both ends of the path, then where its time goes."""
    options = _options(argv)
    report = Report("path", options)
    with service.running({"engine": "fake", "log_level": "warning"}) as up:
        report.machine["postgresql"] = up.value("SHOW server_version")
        _drained(report, up)
        _accepted(report, up)
        if not options.no_profile:
            _profile(report, up)
    report.write()


@dataclass(frozen=True)
class Drain:
    """One drain: what it took, all processes' time on the processor included."""

    jobs: int
    seconds: float
    cpu: Mapping[str, float]

    @property
    def rate(self) -> float:
        """Return the jobs a second."""
        return self.jobs / self.seconds


def drain_once(up: Service, count: int) -> Drain:
    """Queue so many jobs in one transaction, and wait until the last of them has its result."""
    before = up.value("SELECT count(*) FROM results")
    with up.database.transaction() as tx:
        for number in range(count):
            new = jobs.NewJob(f"owner-{number % OWNERS}", up.model, "/v1/chat/completions", CHAT, "bulk", tokens=30)
            jobs.submit(tx, new)
    used, started = up.cpu_seconds(), time.time()
    with Celery(broker=up.redis_url, set_as_current=False) as celery:
        celery.send_task("tasks.collector.collect", args=[up.model, "bulk"], queue="collector", ignore_result=True)
    up.drain(within=600)
    after = up.cpu_seconds()
    stored = up.value("SELECT count(*) FROM results") - before
    if stored != count:
        raise BenchmarkError(f"{stored} results of {count} jobs")
    seconds = float(up.value("SELECT max(created_at) FROM results")) - started
    return Drain(count, seconds, {name: after[name] - used[name] for name in after})


def _drained(report: Report, up: Service) -> None:
    drains: list[Drain] = []
    for _ in range(report.options.repeats):
        drains.append(drain_once(up, report.options.jobs))
        report.say(f"drained {drains[-1].jobs} jobs: {drains[-1].rate:.0f}/s")
    found = spread([drain.rate for drain in drains])
    sizes = spread([row[0] for row in up.rows("SELECT size FROM batches")])
    report.table(
        f"Queued jobs drained, {report.options.jobs} a run",
        ["runs", "jobs/s, median", "min", "max", "batches", "median batch"],
        [[len(drains), found["median"], found["min"], found["max"], int(sizes["n"]), sizes["median"]]],
    )
    used = {name: sum(drain.cpu[name] for drain in drains) for name in drains[0].cpu}
    total = sum(drain.jobs for drain in drains)
    rows = [[name, seconds, 1000 * seconds / total] for name, seconds in sorted(used.items(), key=lambda i: -i[1])]
    report.table("Processor time of the drains, by process", ["process", "CPU s", "ms a job"], rows)
    report.figures["drained_per_second"] = found | {"all": [drain.rate for drain in drains]}
    report.figures["drain_cpu_seconds"] = used
    report.figures["drain_seconds"] = [drain.seconds for drain in drains]


@dataclass(frozen=True)
class Accepted:
    """One run of POSTs: how many a second, seconds of each, and the client's own seconds on the processor for one."""

    rate: float
    p50: float
    p99: float
    client: float


def accept_once(up: Service, count: int, connections: int, seed: int, *, still: bool) -> Accepted:
    """Post so many jobs over so many connections, collector and engine at work or standing still."""
    chats = [chat | {"lane": "bulk"} for chat in load.chats(count, seed, up.model, 16, 16)]
    with _standing_still(up) if still else nullcontext():
        mine = time.process_time()
        posted = load.post(up.url, chats, connections)
        mine = time.process_time() - mine
    up.drain(within=600)
    took = posted.latencies
    return Accepted(count / posted.seconds, percentile(took, 0.5), percentile(took, 0.99), mine / count)


def _accepted(report: Report, up: Service) -> None:
    options = report.options
    runs: dict[tuple[int, bool], list[Accepted]] = {}
    for number in range(options.repeats):
        for connections, still in product(options.connections, (False, True)):
            run = accept_once(up, options.posts, connections, number, still=still)
            runs.setdefault((connections, still), []).append(run)
            report.say(f"accepted over {connections} connections{' alone' if still else ''}: {run.rate:.0f}/s")
    rows = [
        [
            connections,
            "standing still" if still else "working",
            *(spread([run.rate for run in same])[which] for which in ("median", "min", "max")),
            *(1000 * median(getattr(run, name) for run in same) for name in ("p50", "p99", "client")),
        ]
        for (connections, still), same in runs.items()
    ]
    head = ["connections", "engine and collector", "POSTs/s, median", "min", "max", "p50 ms", "p99 ms", "client CPU ms"]
    report.table(f"POSTs accepted (202 after COMMIT), {options.posts} a run", head, rows)
    report.figures["accepted"] = [dict(zip(head, row, strict=True)) for row in rows]


@contextmanager
def _standing_still(up: Service) -> Iterator[None]:
    """Freeze collector and engine; their leases hold nothing, since the queue is empty."""
    pids = [pid for name, pid in up.pids().items() if name in {"collector", "engine"}]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def _profile(report: Report, up: Service) -> None:
    pids = up.pids()
    with profiled({name: pids[name] for name in ("collector", "engine")}) as draining:
        drained = drain_once(up, report.options.jobs)
    report.say(f"drained under py-spy: {drained.rate:.0f}/s")
    with profiled({"web": pids["web"]}) as posting:
        accepted = accept_once(up, report.options.posts, report.options.connections[0], 99, still=True)
    report.say(f"accepted under py-spy: {accepted.rate:.0f}/s")
    _tell(report, draining | posting)


def _tell(report: Report, profiles: Mapping[str, Profile]) -> None:
    for name in PARTS:
        head = ["function", "own and libraries %", "with ours that it calls %"]
        title = f"Where the {name} process spends its time in Python ({profiles[name].samples} samples)"
        report.table(title, head, profiles[name].top())


def _options(argv: Sequence[str]) -> argparse.Namespace:
    wanted = parser("path", __doc__)
    wanted.add_argument("--jobs", type=int, default=20_000, help="jobs of one drain")
    wanted.add_argument("--posts", type=int, default=3_000, help="POSTs of one run")
    wanted.add_argument("--connections", type=int, nargs="+", default=[8, 16])
    wanted.add_argument("--repeats", type=int, default=3)
    wanted.add_argument("--no-profile", action="store_true")
    return wanted.parse_args(argv)
