"""Tokens per second of the whole service over those of vLLM's own batch runner.

The same chats on the same model with the same engine flags, in pairs within one run: (a) `run_batch`, (b) stoker on
PostgreSQL and Redis, from the first POST to the last stored result. Both start afresh for each measurement, so that
nobody finds a warm prefix cache, and end before the other starts; the start is not counted. Which goes first
alternates. Answers have between 16 and 128 tokens, fixed by `ignore_eos`; both must produce the same number.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import load, service
from benchmarks.report import Report, parser, spread
from benchmarks.service import BenchmarkError

SEED = 20
CONNECTIONS = 8


def main(argv: Sequence[str]) -> None:
    """Measure the pairs and write the ratio."""
    options = _options(argv)
    report = Report("overhead", options)
    settings = service.engine_settings(options)
    chats = load.chats(options.requests, SEED, str(settings["model_name"]), options.shortest, options.longest)
    pairs: list[dict[str, Any]] = []
    for number in range(options.pairs):
        pair = {}
        for side in ("run_batch", "stoker") if number % 2 == 0 else ("stoker", "run_batch"):
            measure = run_batch if side == "run_batch" else stoker
            pair[side] = measure(chats, settings)
            report.say(f"pair {number + 1}: {side}: {pair[side]['tokens_per_second']:.1f} tokens/s")
        if pair["run_batch"]["tokens"] != pair["stoker"]["tokens"]:
            raise BenchmarkError(f"not the same work: {pair}")
        pairs.append(pair)
    _tell(report, pairs)
    report.write()


def run_batch(chats: Sequence[dict[str, Any]], settings: dict[str, object]) -> dict[str, Any]:
    """Run the chats through vLLM's batch runner, in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="stoker-bench-") as folder:
        source, target, times = (Path(folder) / name for name in ("input.jsonl", "output.jsonl", "times.json"))
        lines = (
            json.dumps({"custom_id": str(at), "method": "POST", "url": "/v1/chat/completions", "body": chat})
            for at, chat in enumerate(chats)
        )
        source.write_text("\n".join(lines) + "\n")
        script = str(Path(__file__).with_name("run_batch_timed.py"))
        command = [sys.executable, script, str(source), str(target), str(times)]
        with service.child(command, service.environment(settings)) as (process, said):
            status = process.wait()
        if status != 0:
            raise BenchmarkError(f"run_batch ended with {status}:\n" + "\n".join(said[-20:]))
        seconds = json.loads(times.read_text())["seconds"]
        tokens = [_tokens(line) for line in target.read_text().splitlines()]
    if len(tokens) != len(chats):
        raise BenchmarkError(f"{len(tokens)} of {len(chats)} requests were answered")
    return _figures(seconds, sum(tokens))


def _tokens(line: str) -> int:
    answer = json.loads(line)
    if answer["error"] is not None:
        raise BenchmarkError(f"run_batch could not do a request: {answer['error']}")
    return int(answer["response"]["body"]["usage"]["completion_tokens"])


def stoker(chats: Sequence[dict[str, Any]], settings: dict[str, object]) -> dict[str, Any]:
    """Run the chats through a service: HTTP, PostgreSQL, Redis, batches, vLLM, stored results."""
    with service.running(settings) as up:
        posted = load.post(up.url, [chat | {"lane": "bulk"} for chat in chats], CONNECTIONS)
        up.drain(within=3600)
        seconds = time.time() - posted.began
        states = {row[0]: row[1] for row in up.rows("SELECT state, count(*) FROM jobs GROUP BY state")}
        if states != {"succeeded": len(chats)}:
            raise BenchmarkError(f"not every job succeeded: {states}")
        tokens = int(up.value("SELECT sum(completion_tokens) FROM results"))
        batches = [row[0] for row in up.rows("SELECT size FROM batches ORDER BY created_at")]
        return _figures(seconds, tokens) | {
            "post_seconds": posted.seconds,
            "batches": batches,
            "cpu_seconds": up.cpu_seconds(),
        }


def _figures(seconds: float, tokens: int) -> dict[str, Any]:
    return {"seconds": seconds, "tokens": tokens, "tokens_per_second": tokens / seconds}


def _tell(report: Report, pairs: Sequence[dict[str, Any]]) -> None:
    ratios = [p["stoker"]["tokens_per_second"] / p["run_batch"]["tokens_per_second"] for p in pairs]
    rows = [
        [
            at + 1,
            pair["run_batch"]["tokens"],
            pair["run_batch"]["seconds"],
            pair["stoker"]["seconds"],
            pair["run_batch"]["tokens_per_second"],
            pair["stoker"]["tokens_per_second"],
            f"{ratio:.3f}",
        ]
        for at, (pair, ratio) in enumerate(zip(pairs, ratios, strict=True))
    ]
    head = ["pair", "tokens", "run_batch s", "stoker s", "run_batch tok/s", "stoker tok/s", "stoker / run_batch"]
    report.table(f"{report.options.requests} chats, the same in every pair", head, rows)
    report.figures = {"ratio": spread(ratios), "ratios": ratios, "pairs": list(pairs)}
    found = report.figures["ratio"]
    print(f"stoker over run_batch: median {found['median']:.3f} ({found['min']:.3f} to {found['max']:.3f})")


def _options(argv: Sequence[str]) -> argparse.Namespace:
    wanted = parser("overhead", __doc__)
    wanted.add_argument("--requests", type=int, default=500)
    wanted.add_argument("--pairs", type=int, default=5)
    wanted.add_argument("--shortest", type=int, default=16, help="fewest tokens of an answer")
    wanted.add_argument("--longest", type=int, default=128, help="most tokens of an answer")
    service.engine_options(wanted)
    return wanted.parse_args(argv)
