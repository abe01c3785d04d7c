"""Batches of 1 to 64 jobs through the service on the real model: total time and tokens per second of each size.

The table of the hosting guides: output limited to 100 tokens a request. A batch of n is n jobs posted at once in a lane
whose largest batch is n, one of the three lanes of a service that is idle otherwise; that it ran as one batch of n is
read from the database. Prompts are never repeated, so no prefix cache helps. Total: from the first POST to the last
stored result; in the engine: from the claim of the batch to its last
result.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from benchmarks import load, service
from benchmarks.report import Report, parser
from benchmarks.service import BenchmarkError, Service
from stoker.settings import LANES

TRIES = 5


def main(argv: Sequence[str]) -> None:
    """Run every size, three of them on each service, and write the table and the plot."""
    options = _options(argv)
    report = Report("batch_size", options)
    settings = service.engine_settings(options)
    runs: dict[int, list[dict[str, Any]]] = {}
    seeds = count(1)
    for sizes in _threes(sorted(options.sizes)):
        lanes = dict(zip(LANES, sizes, strict=False))
        with service.running(settings | _lane_settings(lanes, options.wait)) as up:
            _one(up, LANES[0], sizes[0], options.tokens, seeds)  # the first batch of all warms the engine up
            for _ in range(options.repeats):
                for lane, size in lanes.items():
                    run = _one(up, lane, size, options.tokens, seeds)
                    runs.setdefault(size, []).append(run)
                    report.say(f"{size}: {run['tokens'] / run['total']:.1f} tokens/s")
    _tell(report, runs)
    report.write()


def _threes(sizes: Sequence[int]) -> Iterator[Sequence[int]]:
    for at in range(0, len(sizes), len(LANES)):
        yield sizes[at : at + len(LANES)]


def _lane_settings(lanes: dict[str, int], wait: float) -> dict[str, object]:
    settings: dict[str, object] = {"log_level": "warning"}
    for lane, size in lanes.items():
        settings |= {f"{lane}_batch": size, f"{lane}_wait": wait}
    return settings


def _one(up: Service, lane: str, size: int, tokens: int, seeds: Iterator[int]) -> dict[str, Any]:
    """Run one batch of a size; again when a slow client let it be cut too early."""
    for _ in range(TRIES):
        chats = [chat | {"lane": lane} for chat in load.chats(size, next(seeds), up.model, tokens, tokens)]
        posted = load.post(up.url, chats, size)
        up.drain(within=1800, every=0.01)
        total = time.time() - posted.began
        found = up.rows(
            "SELECT batches.size, max(results.created_at) - batches.claimed_at, "
            "sum(results.completion_tokens), batches.created_at - min(jobs.created_at) "
            "FROM jobs JOIN batches ON batches.id = jobs.batch_id JOIN results ON results.job_id = jobs.id "
            "WHERE jobs.id = ANY (:ids) GROUP BY batches.id",
            ids=posted.ids,
        )
        if len(found) == 1 and found[0][0] == size:
            _, engine, made, gathering = found[0]
            if made != size * tokens:
                raise BenchmarkError(f"a batch of {size} made {made} tokens")
            return {"total": total, "engine": engine, "gathering": gathering, "tokens": int(made)}
    raise BenchmarkError(f"{TRIES} times no single batch of {size}: give them more time to gather (--wait)")


def _tell(report: Report, runs: dict[int, list[dict[str, Any]]]) -> None:
    rows: list[list[object]] = []
    for size, same in runs.items():
        total, engine, gathering = (
            statistics.median(run[name] for run in same) for name in ("total", "engine", "gathering")
        )
        tokens = same[0]["tokens"]
        rows.append([size, round(1000 * total), tokens, tokens / total, round(1000 * engine), tokens / engine])
        report.figures[str(size)] = {"runs": same, "gathering_ms": 1000 * gathering}
    head = ["Batch size", "Total time (ms)", "Tokens produced", "Tokens/s", "in the engine (ms)", "Tokens/s there"]
    title = f"Medians of {report.options.repeats} batches, {report.options.tokens} tokens a request"
    report.table(title, head, rows)
    _plot(
        report.folder / "batch_size.svg", {size: [run["tokens"] / run["total"] for run in runs[size]] for size in runs}
    )


def _plot(target: Path, rates: dict[int, list[float]]) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "stoker"
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4))
    sizes = list(rates)
    axes.plot(sizes, [statistics.median(rates[size]) for size in sizes], marker="o")
    axes.fill_between(sizes, [min(rates[size]) for size in sizes], [max(rates[size]) for size in sizes], alpha=0.2)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("batch size (requests)")
    axes.set_ylabel("tokens per second, POST to stored result")
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(target, metadata={"Date": None})
    plt.close(figure)


def _options(argv: Sequence[str]) -> argparse.Namespace:
    wanted = parser("batch_size", __doc__)
    wanted.add_argument("--sizes", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    wanted.add_argument("--tokens", type=int, default=100, help="new tokens of each request")
    wanted.add_argument("--repeats", type=int, default=3, help="batches of each size")
    wanted.add_argument("--wait", type=float, default=0.5, help="seconds that a lane waits for company")
    service.engine_options(wanted)
    return wanted.parse_args(argv)
