"""Interactive streams beside a bulk that keeps the engine full: time to the first token, and what the bulk loses.

Three spells of the same length on one service: streams on an idle engine; a bulk alone; both together. The streams'
answers are short, the bulk's longer, as when a person asks while a nightly job runs.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Sequence
from typing import Any

from benchmarks import load, service, streaming
from benchmarks.report import Report, parser, percentile
from benchmarks.service import Service
from benchmarks.streaming import Timing

SHARES = (0.5, 0.9, 0.99)


def main(argv: Sequence[str]) -> None:
    """Take the three spells and write what each lane got."""
    options = _options(argv)
    report = Report("overtaking", options)
    with service.running(_settings(options), sqlite=options.sqlite) as up:
        idle = _streams(up, options)
        report.say(f"idle: {len(idle)} streams")
        _bulk(up, options)
        alone = _pace(up, options.seconds)
        report.say(f"bulk alone: {alone:.2f} jobs/s")
        beside: list[Timing] = []
        thread = threading.Thread(target=lambda: beside.extend(_streams(up, options)))
        thread.start()
        both = _pace(up, options.seconds)
        thread.join()
        report.say(f"both: {both:.2f} jobs/s, {len(beside)} streams")
        left = up.value("SELECT count(*) FROM jobs WHERE lane = 'bulk' AND state IN ('queued', 'batched', 'running')")
        report.figures = {"bulk": {"alone": alone, "both": both, "left": left}}
    rows: list[list[Any]] = []
    for what, timings in (("engine idle", idle), ("during the bulk", beside)):
        first = [1000 * timing.first for timing in timings]
        total = [1000 * timing.total for timing in timings]
        report.figures[what] = {str(share): percentile(first, share) for share in SHARES} | {"streams": len(first)}
        rows.append([what, len(first), *(percentile(first, share) for share in SHARES), percentile(total, 0.5)])
    head = ["interactive", "streams", *(f"first token p{share * 100:g} ms" for share in SHARES), "whole p50 ms"]
    report.table("Streams", head, rows)
    report.table("Bulk", ["jobs/s alone", "beside streams", "ratio", "jobs left"], [[alone, both, both / alone, left]])
    report.write()


def _streams(up: Service, options: argparse.Namespace) -> list[Timing]:
    until = time.monotonic() + options.seconds
    chats = streaming.bodies(100_000, up.model, options.tokens)
    return streaming.closed_loop(up.url, chats, options.clients, options.pause, until=lambda: time.monotonic() > until)


def _bulk(up: Service, options: argparse.Namespace) -> None:
    """Queue more bulk jobs than can be done, and wait until the engine is full of them."""
    chats = load.chats(options.jobs, 20, up.model, options.bulk_tokens // 2, options.bulk_tokens)
    load.post(up.url, [chat | {"lane": "bulk"} for chat in chats], 8)
    time.sleep(options.warm)


def _pace(up: Service, seconds: float) -> float:
    ended = "SELECT count(*) FROM jobs WHERE lane = 'bulk' AND state = 'succeeded'"
    before, began = up.value(ended), time.monotonic()
    time.sleep(seconds)
    return float(up.value(ended) - before) / (time.monotonic() - began)


def _settings(options: argparse.Namespace) -> dict[str, object]:
    if options.real:
        return {**service.engine_settings(options), "log_level": "warning"}
    return {
        "engine": "fake",
        "fake_slots": options.slots,
        "fake_token_ms": options.token_ms,
        "fake_batch_factor": 0.01,
        "log_level": "warning",
    }


def _options(argv: Sequence[str]) -> argparse.Namespace:
    wanted = parser("overtaking", __doc__)
    wanted.add_argument("--seconds", type=float, default=60)
    wanted.add_argument("--warm", type=float, default=10, help="seconds until the engine is full of the bulk")
    wanted.add_argument("--clients", type=int, default=4)
    wanted.add_argument("--pause", type=float, default=1.0)
    wanted.add_argument("--tokens", type=int, default=16, help="tokens of a stream's answer")
    wanted.add_argument("--bulk-tokens", type=int, default=128, help="most tokens of a bulk's answer")
    wanted.add_argument("--jobs", type=int, default=4000)
    wanted.add_argument("--slots", type=int, default=32, help="of the fake engine")
    wanted.add_argument("--token-ms", type=float, default=20)
    wanted.add_argument("--real", action="store_true", help="vLLM instead of the fake engine")
    wanted.add_argument("--sqlite", action="store_true")
    service.engine_options(wanted)
    return wanted.parse_args(argv)
