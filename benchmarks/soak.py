"""What grows in hours at 80 % of what the service can do, with a random process killed every two minutes.

Capacity is measured first. Then jobs are posted at a steady rate, a part of them with a webhook, and every 10 seconds
it is noted what each process holds (memory, open files, threads), how large the database is and how many of its rows
are dead, how many connections PostgreSQL and Redis have, and how much Redis keeps. The verdict is the growth over the
second half, by a line through the samples. The database keeps every job, so it has to grow.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import redis

from benchmarks import load, service
from benchmarks.report import Report, parser, percentile
from benchmarks.service import BenchmarkError, Service
from tests.receivers import receiver

NAMES = ("web", "engine", "collector", "worker", "bulk", "beat")
KEPT = ("database MB", "live rows")
"""What grows with every job, since nothing is old enough to be deleted."""


@dataclass
class Samples:
    """What was measured, by series: (seconds, value) each."""

    began: float = field(default_factory=time.monotonic)
    series: dict[str, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))

    def note(self, name: str, value: float) -> None:
        """Add a value of now."""
        self.series[name].append((time.monotonic() - self.began, value))

    def growth(self, name: str) -> float:
        """Return by which share of its median a series grew over its second half, by a line through it."""
        values = self.series[name][len(self.series[name]) // 2 :]
        if len(values) < 2 or not (middle := statistics.median(value for _, value in values)):
            return 0.0
        slope, _ = statistics.linear_regression(*zip(*values, strict=True))
        return slope * (values[-1][0] - values[0][0]) / middle


def main(argv: Sequence[str]) -> None:
    """Run for so many minutes and write what grew."""
    options = _options(argv)
    report = Report("soak", options)
    settings: dict[str, object] = {"engine": "fake", "fake_base_ms": 200, "fake_slots": 64, "log_level": "warning"}
    settings["webhook_allow_cidrs"] = "127.0.0.0/8"
    with receiver() as hooks, service.running(settings, sqlite=options.sqlite) as up:
        capacity = _capacity(report, up)
        rate = capacity * options.load
        report.say(f"capacity {capacity:.0f} jobs/s; {rate:.0f} jobs/s from now on")
        samples, killed = Samples(), []
        with _posting(up, rate, hooks.url, options.webhooks) as took:
            killed = _watch(report, up, samples)
        up.drain(within=600)
        ends = dict(up.rows("SELECT state, count(*) FROM jobs GROUP BY state"))
        results = int(up.value("SELECT count(*) FROM results"))
    report.figures |= {"capacity": capacity, "rate": rate, "ends": ends, "results": results, "killed": killed}
    report.figures["post"] = {"n": len(took), "p50": percentile(took, 0.5), "p99": percentile(took, 0.99)}
    report.figures["series"] = {
        name: [[round(at, 1), value] for at, value in got] for name, got in samples.series.items()
    }
    _verdict(report, samples)
    report.write()
    if set(ends) != {"succeeded"} or results != ends["succeeded"]:
        raise BenchmarkError(f"the promise is broken: {ends}, {results} results")


def _capacity(report: Report, up: Service) -> float:
    """Return how many jobs a second go through, posted as fast as they are taken."""
    jobs = [{"model": up.model, "prompt": f"warm {number}"} for number in range(report.options.warm)]
    posted = load.post(up.url, jobs, 16)
    up.drain(within=600)
    return len(jobs) / (float(up.value("SELECT max(finished_at) FROM jobs")) - posted.began)


@contextmanager
def _posting(up: Service, rate: float, hook: str, share: float) -> Iterator[list[float]]:
    """Post at a steady rate, a share of it with a webhook, through restarts of the web server; yield the times."""
    with load.patiently(f"{up.url}/v1/jobs", rate, up.model, hook, share) as took:
        yield took


def _watch(report: Report, up: Service, samples: Samples) -> list[list[object]]:
    """Sample, and kill, until the time is over; return who was killed when."""
    options, chance = report.options, random.Random(report.options.seed)
    killed: list[list[object]] = []
    next_kill = samples.began + options.kill_every
    while (now := time.monotonic()) < samples.began + options.minutes * 60:
        _sample(up, samples)
        if now >= next_kill:
            next_kill += options.kill_every
            name = chance.choice([name for name in NAMES if name in up.pids()] or ["beat"])
            with suppress(ProcessLookupError, KeyError):
                os.killpg(up.pids()[name], signal.SIGKILL)
                killed.append([round(now - samples.began), name])
                report.say(f"killed {name}; {int(samples.series['open jobs'][-1][1])} jobs are open")
        time.sleep(max(0.0, options.sample_every - (time.monotonic() - now)))
    return killed


def _sample(up: Service, samples: Samples) -> None:
    total = 0.0
    for name, root in up.roots().items():
        held = [_held(pid) for pid in service.tree(root)]
        memory, files, threads = (sum(one[at] for one in held) for at in range(3))
        if name not in {"postgres", "redis"}:
            samples.note(f"{name} files", files)
            samples.note(f"{name} threads", threads)
        samples.note(f"{name} MB", memory)
        total += memory
    samples.note("all MB", total)
    samples.note("open jobs", float(up.value("SELECT count(*) FROM jobs WHERE finished_at IS NULL")))
    for name, value in (_postgres(up) if up.postgres else _sqlite(up)).items():
        samples.note(name, value)
    info = _redis(up)
    samples.note("redis connections", info["connected_clients"])
    samples.note("redis data MB", info["used_memory"] / 1e6)


def _held(pid: int) -> tuple[float, int, int]:
    """Return a process's memory (MB; what it shares counts in part), open files and threads; zeros when it is gone."""
    folder = Path("/proc", str(pid))
    with suppress(OSError):
        rollup = (folder / "smaps_rollup").read_text()
        memory = next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Pss:"))
        return memory / 1000, len(list((folder / "fd").iterdir())), len(list((folder / "task").iterdir()))
    return 0.0, 0, 0


def _postgres(up: Service) -> dict[str, float]:
    size, live, dead, connections = up.rows(
        "SELECT pg_database_size(current_database()), sum(n_live_tup), sum(n_dead_tup), "
        "(SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()) FROM pg_stat_user_tables"
    )[0]
    named = {"database MB": size / 1e6, "live rows": live, "dead rows": dead, "database connections": connections}
    return {name: float(value) for name, value in named.items()}


def _sqlite(up: Service) -> dict[str, float]:
    def size(name: str) -> float:
        file = up.data / name
        return file.stat().st_size / 1e6 if file.exists() else 0.0

    return {"database MB": size("stoker.db"), "wal MB": size("stoker.db-wal")}


def _redis(up: Service) -> dict[str, float]:
    with redis.Redis(port=up.redis.port, socket_timeout=5) as connection:
        said = connection.info()
    return {name: float(said[name]) for name in ("connected_clients", "used_memory")}


def _verdict(report: Report, samples: Samples) -> None:
    rows: list[list[object]] = []
    for name, values in samples.series.items():
        figures = [value for _, value in values]
        growth = samples.growth(name)
        kept = name in KEPT
        verdict = "kept jobs" if kept else "grows" if growth > report.options.most_growth else "level"
        report.figures.setdefault("growth", {})[name] = growth
        rows.append(
            [name, figures[0], statistics.median(figures), max(figures), figures[-1], f"{growth:+.1%}", verdict]
        )
    head = ["what", "first", "median", "most", "last", "growth, 2nd half", "verdict"]
    report.table(f"{report.options.minutes:g} minutes", head, rows)


def _options(argv: Sequence[str]) -> argparse.Namespace:
    wanted = parser("soak", __doc__)
    wanted.add_argument("--minutes", type=float, default=120.0)
    wanted.add_argument("--load", type=float, default=0.8, help="share of the measured capacity")
    wanted.add_argument("--warm", type=int, default=3000, help="jobs by which capacity is measured")
    wanted.add_argument("--kill-every", type=float, default=120.0, help="seconds between two kills")
    wanted.add_argument("--sample-every", type=float, default=10.0)
    wanted.add_argument("--webhooks", type=float, default=0.1, help="share of the jobs with a webhook")
    wanted.add_argument("--most-growth", type=float, default=0.05, help="growth that still counts as level")
    wanted.add_argument("--seed", type=int, default=20)
    wanted.add_argument("--sqlite", action="store_true")
    return wanted.parse_args(argv)
