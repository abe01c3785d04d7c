"""One bulk of a million lines through the whole service, fake engine: time, memory, and that nothing is missing.

Uploaded by POST /v1/bulks, run, and read back by GET /v1/bulks/{id}/results and errors: each line must be there exactly
once, with the answer to its own prompt. The engine answers at once, so what is measured is everything around it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import sqlalchemy as sa

from benchmarks import bulks, load, service
from benchmarks.bulks import Client
from benchmarks.memory import watched
from benchmarks.report import Report, parser
from benchmarks.service import BenchmarkError, Service
from models import bulk_leases
from models import bulks as bulk_rows
from models.results import Ended, NewResult

SEED = 20
_LOOKS = 50
_WITHIN = 3 * 3600.0
_SIZES = """
SELECT tables.relname, coalesce(indexes.relname, ''), pg_relation_size(coalesce(indexes.oid, tables.oid)) / 1048576.0,
       CASE WHEN indexes.oid IS NULL THEN pg_relation_size(tables.reltoastrelid) / 1048576.0 END
FROM pg_class tables LEFT JOIN LATERAL (
    SELECT oid, relname FROM pg_class JOIN pg_index ON indexrelid = oid WHERE indrelid = tables.oid
    UNION ALL SELECT NULL, NULL) indexes ON true
WHERE tables.relname IN ('jobs', 'bodies', 'results', 'bulks', 'batches') AND tables.relkind = 'r'
ORDER BY tables.relname, indexes.relname NULLS FIRST
"""


@dataclass
class Phases:
    """How long each phase took, in seconds, and the processor time of every process in it."""

    up: Service
    rows: list[list[object]] = field(default_factory=list)
    used: dict[str, Mapping[str, float]] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str, lines: int) -> Iterator[None]:
        """Time what happens in the `with`."""
        before, began = self.up.cpu_seconds(), time.monotonic()
        yield
        seconds = time.monotonic() - began
        after = self.up.cpu_seconds()
        self.used[name] = {process: after[process] - before.get(process, 0.0) for process in after}
        self.rows.append([name, seconds, lines / seconds])


def main(argv: Sequence[str]) -> None:
    """Run the bulk, and look at everything."""
    options = _options(argv)
    report = Report("bulk_million", options)
    with service.running({"engine": "fake", "log_level": "warning"}) as up:
        report.machine["postgresql"] = up.value("SHOW server_version")
        file = up.data / "input.jsonl"
        size = bulks.write(file, load.lines(options.lines, SEED, "messages"))
        report.say(f"{options.lines:,} lines, {size / 1e6:.0f} MB")
        phases, client = Phases(up), Client(up.url)
        with watched(up) as memory:
            with phases.phase("upload", options.lines):
                bulk_id = client.upload(file)["id"]
            file.unlink()
            with phases.phase("run, from the 202 to the end", options.lines):
                _run(report, up, client, bulk_id)
            with phases.phase("read the results", options.lines):
                found = _check(client, bulk_id, options.lines)
        report.figures["results"] = found
        _tell(report, up, phases, bulk_id)
        report.table("Memory of the processes", *memory.table())
    report.write()


def _run(report: Report, up: Service, client: Client, bulk_id: str) -> None:
    """Wait for the bulk's end, and note how it gets on."""
    progress: list[tuple[float, int, int]] = []
    began, told = time.monotonic(), 0.0
    while True:
        bulk = client.call("GET", f"/v1/bulks/{bulk_id}")
        at, counts = time.monotonic() - began, bulk["counts"]
        progress.append((at, counts["total"], counts["succeeded"]))
        if bulk["counted"] and "looks" not in report.figures:
            report.say(f"{counts['total']:,} lines are read after {at:.1f} s")
            report.figures["read_after_seconds"] = at
            report.figures["looks"] = _looks(up, bulk_id)
        if bulk["state"] not in {"validating", "running", "finalizing"} or at > _WITHIN:
            break
        if at - told > 60:
            told = at
            report.say(f"{counts['succeeded']:,} of {counts['total']:,} have ended")
        time.sleep(1)
    report.figures["progress"] = progress[::10]
    if (bulk["state"], counts["succeeded"]) != ("completed", report.options.lines):
        raise BenchmarkError(f"the bulk is {bulk['state']}: {counts}, {bulk['errors']}")


def _looks(up: Service, bulk_id: str) -> dict[str, float]:
    """Return the milliseconds of what is done again and again while all lines are in the tables, medians."""

    def unattended() -> None:
        with up.database.reading() as tx:
            bulk_leases.unattended(tx)

    def count() -> None:
        ended = [Ended(f"job_{n}", "succeeded", NewResult(200), bulk_id=bulk_id, line_no=n) for n in range(128)]
        with up.database.reading() as tx:
            bulk_rows.count(tx, ended)
            tx.rollback()

    return {"the sweeper's look for bulks": _milliseconds(unattended), "counting 128 results": _milliseconds(count)}


def _milliseconds(work: Callable[[], None]) -> float:
    took = []
    for _ in range(_LOOKS):
        began = time.perf_counter()
        work()
        took.append(1000 * (time.perf_counter() - began))
    return median(took)


def _check(client: Client, bulk_id: str, lines: int) -> dict[str, int]:
    """Read all results and errors. Raises BenchmarkError unless each line is there once, with its own answer."""
    seen = bytearray(lines + 1)
    last = found = 0
    for line in client.ended(bulk_id, "results"):
        number = int(line["custom_id"].removeprefix("line-"))
        if seen[number] or line["line"] != number or line["seq"] <= last or not _answers(line, number):
            raise BenchmarkError(f"this line is wrong, or comes twice: {line}")
        seen[number], last = 1, line["seq"]
        found += 1
    errors = sum(1 for _ in client.ended(bulk_id, "errors"))
    if found != lines or errors or last != lines:
        raise BenchmarkError(f"{found} results and {errors} errors of {lines} lines, the last one is {last}")
    return {"results": found, "errors": errors, "last_seq": last}


def _answers(line: Mapping[str, Any], number: int) -> bool:
    return f"Story {SEED}-{number}:" in line["result"]["choices"][0]["message"]["content"]


def _tell(report: Report, up: Service, phases: Phases, bulk_id: str) -> None:
    with up.database.reading() as tx:
        row = tx.execute(sa.select(bulk_rows.table).where(bulk_rows.table.c.id == bulk_id)).one()
    report.figures["seconds_by_the_database"] = row.completed_at - row.in_progress_at
    report.table("Time by phase", ["phase", "seconds", "lines/s"], phases.rows)
    names = sorted(phases.used["upload"], key=lambda name: -sum(used.get(name, 0.0) for used in phases.used.values()))
    rows = [[name, *(used.get(name, 0.0) for used in phases.used.values())] for name in names]
    report.table("Processor seconds by phase", ["process", *phases.used], rows)
    sizes = [[*found[:2], *(float(size or 0) for size in found[2:])] for found in up.rows(_SIZES)]
    report.table("Sizes in MiB, after the run", ["table", "index", "MiB", "TOAST MiB"], sizes)
    report.figures["database_mib"] = float(up.value("SELECT pg_database_size(current_database())")) / 1048576
    looks = [[what, took] for what, took in report.figures["looks"].items()]
    report.table("With all lines in the tables, while they run", ["what", "ms, median"], looks)


def _options(argv: Sequence[str]) -> argparse.Namespace:
    wanted = parser("bulk_million", __doc__)
    wanted.add_argument("--lines", type=int, default=1_000_000)
    return wanted.parse_args(argv)
