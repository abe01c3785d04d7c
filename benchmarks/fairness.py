"""Ten jobs of one owner while another owner's bulk of 100,000 lines runs: their latency beside an idle system's.

The fake engine takes a second for any batch, however many requests it has at once, so that a batch costs something.
Owner B posts ten jobs at once, waits until all have ended, and does so again, in each lane in turn: first alone, then
while the bulk of owner A, which is in the lane `bulk`, is worked off. A job's latency is from its COMMIT to its result.
The aim: no more than a batch or two of delay.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from statistics import median

from benchmarks import bulks, load, service
from benchmarks.bulks import Client
from benchmarks.report import Report, parser, percentile
from benchmarks.service import BenchmarkError, Service, wait_until
from models import keys

SEED = 20
HEAD = ["B's lane", "meanwhile", "jobs", "p50 s", "p90 s", "max s", "delay s", "delay in batches"]
_BATCHES = "SELECT finished_at - claimed_at, size FROM batches WHERE lane = 'bulk' AND finished_at > :since"


def main(argv: Sequence[str]) -> None:
    """Measure B alone, then beside A."""
    options = _options(argv)
    report = Report("fairness", options)
    settings = {"engine": "fake", "fake_base_ms": options.batch_ms, "log_level": "warning"}
    with service.running(settings) as up:
        report.machine["postgresql"] = up.value("SHOW server_version")
        with up.database.transaction() as tx:
            a, b = (Client(up.url, keys.create(tx, owner).secret) for owner in ("a", "b"))
        took = {(lane, "nothing else"): rounds for lane, rounds in _measured(up, b, options).items()}
        _begin(report, up, a, options)
        since = time.time()
        took |= {(lane, "A's bulk"): rounds for lane, rounds in _measured(up, b, options).items()}
        _tell(report, up, took, since)
    report.write()


def _measured(up: Service, b: Client, options: argparse.Namespace) -> dict[str, list[float]]:
    """Return the latencies of B's jobs by lane."""
    chance = random.Random(SEED)
    took: dict[str, list[float]] = {lane: [] for lane in options.lanes}
    for _ in range(options.rounds):
        for lane in options.lanes:
            # At any moment of a batch.
            time.sleep(chance.uniform(0, 2 * options.batch_ms / 1000))
            took[lane] += _round(up, b, lane, options.jobs)
    return took


def _round(up: Service, b: Client, lane: str, count: int) -> list[float]:
    """Post so many jobs at once and wait until they have ended; return the latency of each."""
    body = {"prompt": "hello", "lane": lane, "max_tokens": 16}
    with ThreadPoolExecutor(count) as threads:
        posted = list(threads.map(lambda _: b.call("POST", "/v1/jobs", body, 202)["id"], range(count)))

    def ended() -> Sequence[Sequence[float]]:
        return up.rows("SELECT created_at, finished_at FROM jobs WHERE owner = 'b' AND id >= :first", first=min(posted))

    wait_until(lambda: all(row[1] for row in ended()), 300, "B's jobs to end", every=0.05)
    found = [row[1] - row[0] for row in ended()]
    if len(found) != count:
        raise BenchmarkError(f"{len(found)} jobs instead of {count}")
    return found


def _begin(report: Report, up: Service, a: Client, options: argparse.Namespace) -> None:
    """Submit A's bulk, and wait until all of it is read and some of it has run."""
    file = up.data / "input.jsonl"
    bulks.write(file, load.lines(options.lines, SEED, "messages"))
    bulk_id = a.upload(file)["id"]
    wait_until(
        lambda: up.value("SELECT ingest_done AND done > 1000 FROM bulks WHERE id = :id", id=bulk_id), 900, "A's bulk"
    )
    report.say(f"A's bulk of {options.lines:,} lines is read and runs")


def _tell(report: Report, up: Service, took: dict[tuple[str, str], list[float]], since: float) -> None:
    left, done = up.rows("SELECT total - done, done FROM bulks")[0]
    if not left:
        raise BenchmarkError("A's bulk ended before B's last job: give it more lines")
    batches = up.rows(_BATCHES, since=since)
    batch, size = (median(float(row[at]) for row in batches) for at in (0, 1))
    report.say(f"A: {done:,} lines have run, {left:,} wait; {len(batches)} batches meanwhile")
    rows: list[list[object]] = []
    for (lane, what), seconds in took.items():
        delay = median(seconds) - median(took[lane, "nothing else"])
        spread = [percentile(seconds, share) for share in (0.5, 0.9)]
        rows.append([lane, what, len(seconds), *spread, max(seconds), delay, delay / batch])
    told = f"a batch has {size:.0f} jobs and takes {batch:.2f} s (medians)"
    title = f"Jobs of B beside {done + left:,} lines of A in the lane bulk; {told}"
    report.table(title, HEAD, sorted(rows, key=lambda row: str(row[0])))
    report.figures["seconds"] = {f"{lane}, {what}": seconds for (lane, what), seconds in took.items()}
    report.figures["batch"] = {"seconds": batch, "size": size, "n": len(batches)}


def _options(argv: Sequence[str]) -> argparse.Namespace:
    wanted = parser("fairness", __doc__)
    wanted.add_argument("--lines", type=int, default=100_000, help="lines of A's bulk")
    wanted.add_argument("--jobs", type=int, default=10, help="jobs of B that are posted at once")
    wanted.add_argument("--rounds", type=int, default=10)
    wanted.add_argument("--lanes", nargs="+", default=["bulk", "standard", "realtime"])
    wanted.add_argument("--batch-ms", type=float, default=1000.0, help="milliseconds that a batch takes in the engine")
    return wanted.parse_args(argv)
