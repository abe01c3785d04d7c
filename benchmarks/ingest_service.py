"""What POSTs notice of an ingest in the whole service, and what memory it takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from benchmarks import bulks, load, service
from benchmarks.bulks import Client
from benchmarks.memory import watched
from benchmarks.report import Report, percentile
from benchmarks.service import Service, wait_until

SETTINGS = {"engine": "fake", "log_level": "warning"}
HEAD = ["meanwhile", "POSTs", "p50 ms", "p90 ms", "p99 ms", "max ms"]
_WITHIN = 3600.0
_SEED = 20


@dataclass
class Posts:
    """The seconds that POSTs took, by what else went on."""

    rate: float
    seconds: dict[str, list[float]] = field(default_factory=dict)

    @contextmanager
    def during(self, up: Service, what: str) -> Iterator[None]:
        """Post at a steady rate during the `with`."""
        with load.steadily(up.url, self.rate) as took:
            yield
        self.seconds[what] = [seconds for _, seconds in took]

    def rows(self) -> Sequence[Sequence[object]]:
        """Return a line of the table for each."""
        shares = (0.5, 0.9, 0.99)
        return [
            [what, len(took), *(1000 * percentile(took, share) for share in shares), 1000 * max(took)]
            for what, took in self.seconds.items()
        ]


def measure(report: Report, *, sqlite: bool) -> None:
    """Measure one database: POSTs and memory while a bulk is read, its lines run or are put aside."""
    name = "SQLite" if sqlite else "PostgreSQL"
    posts = Posts(report.options.rate)
    with service.running(SETTINGS, sqlite=sqlite) as up:
        _put_aside(report, up, posts, name)
    with service.running(SETTINGS, sqlite=sqlite) as up:
        _working(report, up, posts, name)
    report.table(f"POST /v1/jobs, {posts.rate:g} a second, on {name}", HEAD, posts.rows())
    report.figures[f"posts_{name.lower()}"] = posts.seconds


def _put_aside(report: Report, up: Service, posts: Posts, name: str) -> None:
    """Read a paused bulk: only the ingest is at work."""
    options = report.options
    _warm(up)
    with watched(up) as memory:
        with posts.during(up, "nothing else"):
            time.sleep(options.seconds)
        with posts.during(up, "ingest"):
            rate = _ingested(report, up, options.bulk, paused=True)
        with posts.during(up, f"nothing else, {options.bulk:,} lines in the tables"):
            time.sleep(options.seconds)
    report.figures[f"lines_per_second_{name.lower()}"] = rate
    report.table(f"Memory while {options.bulk:,} lines come in, {name}", *memory.table())


def _working(report: Report, up: Service, posts: Posts, name: str) -> None:
    """Read a bulk whose lines run at once; then go on with only the run."""
    options = report.options
    _warm(up)
    with posts.during(up, "ingest, and the bulk runs"):
        rate = _ingested(report, up, options.running, paused=False)
    report.figures[f"lines_per_second_running_{name.lower()}"] = rate
    with posts.during(up, "the bulk runs"):
        _until(lambda: not up.busy(), options.seconds)
    done = up.value("SELECT done FROM bulks")
    report.say(f"{name}: {done:,} of {options.running:,} lines have run")


def _warm(up: Service) -> None:
    with load.steadily(up.url, 20):
        time.sleep(3)
    up.drain(within=60)


def _ingested(report: Report, up: Service, lines: int, *, paused: bool) -> float:
    """Submit a bulk, wait until all of it is read, and return the lines read a second."""
    file = up.data / "input.jsonl"
    size = bulks.write(file, load.lines(lines, _SEED, "messages"))
    client, began = Client(up.url), time.monotonic()
    bulk_id = client.upload(file)["id"]
    report.say(f"{size / 1e6:.0f} MB uploaded in {time.monotonic() - began:.1f} s")
    if paused:
        client.call("POST", f"/v1/bulks/{bulk_id}/pause")
    wait_until(lambda: up.value("SELECT ingest_done FROM bulks"), _WITHIN, "the ingest to end", every=0.2)
    rate = float(lines / (time.time() - up.value("SELECT in_progress_at FROM bulks")))
    report.say(f"{lines:,} lines read, {rate:,.0f}/s")
    file.unlink()
    return rate


def _until(done: Callable[[], bool], most: float) -> None:
    """Wait until it is done, or for so many seconds."""
    until = time.monotonic() + most
    while time.monotonic() < until and not done():
        time.sleep(1)
