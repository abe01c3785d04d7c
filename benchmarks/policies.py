"""The four policies on four workloads, each with one batch at a time (static) and with many (continuous).

All jobs of a workload, of four owners, are put into the queue of a running service in one transaction; from its COMMIT
until 95 % have a result. The workloads: answers of 32 tokens (uniform), of 4 to 128 (varied), of 16 behind one of
several long system messages (shared), and the last two mixed. Each service runs one policy in one mode; what it does
first is not counted: `adaptive` learns from it. The fake engine slows down with each request inside; `--real` runs
vLLM, which alone has a prefix cache. Compared are ratios within one round. Padding is what a batch would waste if each
of its rows were as long as its longest.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import count, product
from statistics import median
from typing import get_args

from celery import Celery

from benchmarks import service, workloads
from benchmarks.report import Report, parser, percentile
from benchmarks.service import BenchmarkError, Service
from benchmarks.workloads import WORKLOADS
from models import jobs
from stoker.setting_types import Policy

POLICIES = get_args(Policy)
MODES = {"static": {"batches_in_flight": 1}, "continuous": {}}
MOST = 0.95
"""The part of the jobs whose end is waited for in what is counted."""
HEAD = ["workload", "policy", "jobs/s", "tokens/s", "mean batch", "padding", "cached"]
HEAD += ["p50 s", "p95 s", "jobs/s ratio"]
_BATCHES = """
SELECT count(*) AS size, sum(prompt_tokens + completion_tokens) AS actual, sum(completion_tokens) AS answers,
       count(*) * max(prompt_tokens + completion_tokens) AS padded,
       coalesce(sum((results.body::json #>> '{usage,prompt_tokens_details,cached_tokens}')::int), 0) AS cached,
       sum(prompt_tokens) AS prompts
FROM jobs JOIN results ON results.job_id = jobs.id WHERE jobs.id >= :first GROUP BY jobs.batch_id
"""


@dataclass(frozen=True)
class Run:
    """What one drained workload cost: latencies in seconds, `padding` as a share of the tokens.

    `cached` is the share of the prompts' tokens that the engine had in its prefix cache.
    """

    jobs_rate: float
    tokens_rate: float
    batch: float
    padding: float
    cached: float
    p50: float
    p95: float


Key = tuple[str, str, str]
"""Mode, workload, policy."""


def main(argv: Sequence[str]) -> None:
    """Run every policy on every workload in every mode, round by round."""
    options = _options(argv)
    report = Report("policies", options)
    runs: dict[Key, list[Run]] = {}
    seeds = count(1)
    for _ in range(options.repeats):
        round_seeds = {name: next(seeds) for name in options.workloads}
        for mode, policy in product(options.modes, options.policies):
            with service.running(_settings(options, mode, policy)) as up:
                report.machine["postgresql"] = up.value("SHOW server_version")
                for name in options.workloads:
                    _drained(up, options, name, options.warm, 10_000 + round_seeds[name])
                    run = _drained(up, options, name, options.jobs, round_seeds[name])
                    runs.setdefault((mode, name, policy), []).append(run)
                    told = f"{run.jobs_rate:.1f} jobs/s, batches of {run.batch:.1f}"
                    report.say(f"{mode}, {policy}, {name}: {told}")
    _tell(report, runs)
    report.write()


def _settings(options: argparse.Namespace, mode: str, policy: str) -> Mapping[str, object]:
    fake = {"engine": "fake", "fake_slots": options.slots, "fake_base_ms": 20, "fake_token_ms": options.token_ms}
    engine = service.engine_settings(options) if options.real else fake | {"fake_batch_factor": options.factor}
    lane = {"bulk_policy": policy, "bulk_batch": options.batch, "bulk_tokens": options.tokens, "bulk_wait": 0.2}
    return engine | lane | MODES[mode] | {"log_level": "warning"}


def _drained(up: Service, options: argparse.Namespace, name: str, count: int, seed: int) -> Run:
    """Queue a workload in one transaction, wait until all of it has ended, and look at what became of it."""
    made = workloads.chats(name, count, seed, up.model, options.beginnings)
    with up.database.transaction() as tx:
        first = min([jobs.submit(tx, one).id for one in made])
    started = time.time()
    with Celery(broker=up.redis_url, set_as_current=False) as celery:
        celery.send_task("tasks.collector.collect", args=[up.model, "bulk"], queue="collector", ignore_result=True)
    up.drain(within=3600, every=0.05)
    return _looked_at(up, first, count, started)


def _looked_at(up: Service, first: str, count: int, started: float) -> Run:
    took = up.rows("SELECT finished_at FROM jobs WHERE state = 'succeeded' AND id >= :first", first=first)
    if len(took) != count:
        raise BenchmarkError(f"{len(took)} of {count} jobs succeeded")
    seconds = [row[0] - started for row in took]
    batches = up.rows(_BATCHES, first=first)
    actual, answers, padded, cached, prompts = (float(sum(row[at] for row in batches)) for at in range(1, 6))
    # To all but the last: they are too few for a batch, and wait for company that does not come.
    most = percentile(seconds, MOST)
    return Run(
        jobs_rate=MOST * count / most,
        tokens_rate=MOST * answers / most,
        batch=count / len(batches),
        padding=1 - actual / padded,
        cached=cached / prompts,
        p50=percentile(seconds, 0.5),
        p95=percentile(seconds, 0.95),
    )


def _tell(report: Report, runs: Mapping[Key, Sequence[Run]]) -> None:
    for mode in dict.fromkeys(key[0] for key in runs):
        rows = list(_rows(runs, mode))
        ratio = f"ratio: to {report.options.policies[0]} on the same jobs in the same round"
        report.table(f"Policies, {mode} batching; medians; {ratio}", HEAD, rows)
    if {"static", "continuous"} <= {key[0] for key in runs}:
        rows = [
            [name, policy, *(_ratio(runs, ("continuous", name, policy), ("static", name, policy), of) for of in OF)]
            for mode, name, policy in runs
            if mode == "continuous"
        ]
        report.table("Continuous over static batching, medians of ratios", ["workload", "policy", *OF], rows)
    report.figures["runs"] = {", ".join(key): [asdict(run) for run in some] for key, some in runs.items()}


OF: Mapping[str, Callable[[Run], float]] = {
    "jobs/s": lambda run: run.jobs_rate,
    "tokens/s": lambda run: run.tokens_rate,
    "p50": lambda run: run.p50,
    "p95": lambda run: run.p95,
}


def _rows(runs: Mapping[Key, Sequence[Run]], mode: str) -> Iterator[list[object]]:
    names = dict.fromkeys(key[1] for key in runs)
    policies = list(dict.fromkeys(key[2] for key in runs))
    for name, policy in product(names, policies):
        some = [asdict(run) for run in runs[mode, name, policy]]
        medians = [median(run[field] for run in some) for field in some[0]]
        yield [name, policy, *medians, _ratio(runs, (mode, name, policy), (mode, name, policies[0]), "jobs/s")]


def _ratio(runs: Mapping[Key, Sequence[Run]], one: Key, other: Key, of: str) -> float:
    pairs = zip(runs[one], runs[other], strict=True)
    return median(OF[of](mine) / OF[of](theirs) for mine, theirs in pairs)


def _options(argv: Sequence[str]) -> argparse.Namespace:
    wanted = parser("policies", __doc__)
    wanted.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    wanted.add_argument("--policies", nargs="+", choices=POLICIES, default=list(POLICIES))
    wanted.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    wanted.add_argument("--jobs", type=int, default=400, help="jobs of each workload")
    wanted.add_argument("--warm", type=int, default=200, help="jobs before each, which are not counted")
    wanted.add_argument("--repeats", type=int, default=3, help="rounds")
    wanted.add_argument("--beginnings", type=int, default=workloads.SHARED, help="different ones, of `shared`")
    wanted.add_argument("--batch", type=int, default=16, help="largest batch of the lane, in jobs")
    wanted.add_argument("--tokens", type=int, default=16_384, help="most tokens of a batch")
    wanted.add_argument("--slots", type=int, default=64, help="requests that the fake engine has inside at once")
    wanted.add_argument("--token-ms", type=float, default=2.0, help="milliseconds a word takes in the fake engine")
    wanted.add_argument("--factor", type=float, default=0.02, help="how much each request inside slows down the others")
    wanted.add_argument("--real", action="store_true", help="vLLM instead of the fake engine")
    service.engine_options(wanted)
    return wanted.parse_args(argv)
