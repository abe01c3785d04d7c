"""20 prompts that kill the engine among 1,000, through the whole service: who fails, how many deaths it takes.

The same 1,000 jobs without poison run first, on a service of their own. Where the time goes is told by the engine's own
log of starts and by the times at which its processes were started.
"""

from __future__ import annotations

import argparse
import itertools
import random
import time
from collections.abc import Sequence

from benchmarks import load, service
from benchmarks.report import Report, parser, spread
from benchmarks.service import BenchmarkError, Service, wait_until

SEED = 20


def main(argv: Sequence[str]) -> None:
    """Run the jobs clean, then with poison, and write what it cost."""
    options = _options(argv)
    report = Report("poison", options)
    clean = _clean(report)
    poisoned = _poisoned(report)
    report.figures |= {"clean": clean, "poisoned": poisoned, "ratio": poisoned["seconds"] / clean["seconds"]}
    crashes, bound = poisoned["crashes"], options.bound
    report.table(
        f"{options.jobs} jobs, {options.poison} of them {options.mark}",
        ["run", "seconds", "succeeded", "poison", "other ends", "crashes", "starts of the engine"],
        [
            [name, run["seconds"], run["succeeded"], run["poison"], run["other"], run["crashes"], run["starts"]]
            for name, run in (("clean", clean), ("poisoned", poisoned))
        ],
    )
    report.table(
        "Where the time went, poisoned",
        ["engine down or starting (s)", "a restart (median s)", "engine open, no job running (s)", "rest (s)"],
        [[poisoned[name] for name in ("down", "restart", "idle", "working")]],
    )
    report.write()
    if poisoned["poison"] != options.poison or poisoned["other"] or (bound and crashes > bound):
        raise BenchmarkError(f"the promise is broken: {poisoned}")


def _clean(report: Report) -> dict[str, float]:
    options = report.options
    return _run(report, [""] * options.jobs)


def _poisoned(report: Report) -> dict[str, float]:
    options = report.options
    chosen = set(random.Random(options.seed).sample(range(options.jobs), options.poison))
    return _run(report, [options.mark if number in chosen else "" for number in range(options.jobs)])


def _run(report: Report, marks: Sequence[str]) -> dict[str, float]:
    options = report.options
    settings = {"engine": "fake", "log_level": "warning", "fake_base_ms": options.base_ms}
    with service.running(settings, sqlite=options.sqlite) as up:
        # All are queued before the first one runs: the engine takes as many as it has slots.
        jobs = [
            {"model": up.model, "prompt": f"{mark} job {number}", "lane": "bulk"} for number, mark in enumerate(marks)
        ]
        posted = load.post(up.url, jobs, 8)
        samples = _watch(report, up, options.within)
        ends = dict(up.rows("SELECT COALESCE(error_code, 'succeeded'), count(*) FROM results GROUP BY 1"))
        lasted = float(up.value("SELECT max(finished_at) FROM jobs")) - posted.began
        crashes = int(up.value("SELECT count(DISTINCT incarnation) FROM batches WHERE state = 'crashed'"))
        most = int(up.value("SELECT max(attempts) FROM jobs"))
        starts = 1 + sum("engine: died" in line for line in up.said)
    downs = _spells(samples, "down")
    figures: dict[str, float] = {
        "seconds": lasted,
        "succeeded": ends.pop("succeeded", 0),
        "poison": ends.pop("poison", 0),
        "other": sum(ends.values()),
        "crashes": crashes,
        "starts": starts,
        "most_attempts": most,
        "down": sum(downs),
        "restart": spread(downs)["median"] if downs else 0.0,
        "idle": sum(_spells(samples, "idle")),
    }
    return figures | {"working": max(0.0, lasted - figures["down"] - figures["idle"])}


def _watch(report: Report, up: Service, within: float) -> list[tuple[float, str]]:
    """Note all the time what the engine does, until no job is open; return the moments of change."""
    seen: list[tuple[float, str]] = []
    told = time.monotonic()

    def look() -> bool:
        nonlocal told
        live, running, opened = up.rows(
            "SELECT (SELECT pid FROM engines WHERE state = 'live'), "
            "EXISTS (SELECT 1 FROM batches WHERE state = 'running'), "
            "(SELECT count(*) FROM jobs WHERE state IN ('queued', 'batched', 'running', 'delayed'))"
        )[0]
        alive = live is not None and live == up.pids().get("engine")
        state = "down" if not alive else "working" if running else "idle"
        if not seen or seen[-1][1] != state:
            seen.append((time.monotonic(), state))
        if time.monotonic() - told > 15:
            told = time.monotonic()
            report.say(f"{opened} jobs are open")
        return not opened

    wait_until(look, within, "all jobs to end", every=0.05)
    seen.append((time.monotonic(), "end"))
    return seen


def _spells(samples: Sequence[tuple[float, str]], state: str) -> list[float]:
    return [end - begin for (begin, was), (end, _) in itertools.pairwise(samples) if was == state]


def _options(argv: Sequence[str]) -> argparse.Namespace:
    wanted = parser("poison", __doc__)
    wanted.add_argument("--jobs", type=int, default=1000)
    wanted.add_argument("--poison", type=int, default=20)
    wanted.add_argument("--mark", default="[[kill]]", help="what the fake engine finds in a poisoned prompt")
    wanted.add_argument("--bound", type=int, default=160, help="most crashes; 0: any number")
    wanted.add_argument("--base-ms", type=float, default=20.0, help="time that the fake engine takes for any job")
    wanted.add_argument("--seed", type=int, default=SEED)
    wanted.add_argument("--within", type=float, default=3600.0, help="seconds after which it is given up")
    wanted.add_argument("--sqlite", action="store_true")
    return wanted.parse_args(argv)
