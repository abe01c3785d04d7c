"""Lines a second that become jobs, beside a bare COPY or INSERT of the same rows; and what a POST notices of it.

Bare: the rows that an ingest stored, read back, go into the same empty tables with the same indexes, as fast as the
database takes them: PostgreSQL by one COPY for each table in one transaction, SQLite by one `executemany` for each
table in one transaction, and in transactions of 200 rows as ingest does it. Both take turns, each starting from empty
tables. The ingest is the tender itself (`tasks.bulks.tend_bulk`), from the stored file to the last COMMIT.

Then through the whole service: POSTs at a steady rate, each timed from the moment it was due, while a bulk is read, and
the memory of every process meanwhile.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from statistics import median

from benchmarks import ingest_rate, ingest_service, load
from benchmarks.ingest_rate import Run
from benchmarks.report import Report, parser

DATABASES = ["PostgreSQL", "SQLite"]
HEAD = ["form of the lines", "side", "runs", "lines/s, median", "min", "max", "ingest / this"]


def main(argv: Sequence[str]) -> None:
    """Measure the rate, then what it does to POSTs and memory."""
    options = _options(argv)
    # A file of its own: POSTs, measured by themselves, do not take the place of the rates.
    report = Report("ingest_service" if options.parts == ["service"] else "ingest", options)
    for database in options.databases:
        sqlite = database == "SQLite"
        if "rate" in options.parts:
            measure, lines = (
                (ingest_rate.on_sqlite, options.few) if sqlite else (ingest_rate.on_postgresql, options.lines)
            )
            _rates(report, database, lines, measure(report, lines, options.repeats))
        if "service" in options.parts:
            ingest_service.measure(report, sqlite=sqlite)
    report.write()


def _rates(report: Report, database: str, lines: int, runs: Sequence[Run]) -> None:
    rows: list[list[object]] = []
    for form in load.FORMS:
        sides = {side: [run for run in runs if run.form == form and run.side == side] for side in _sides(runs)}
        ingest = median(run.rate for run in sides["ingest"])
        for side, same in sides.items():
            rates = [run.rate for run in same]
            rows.append([form, side, len(rates), median(rates), min(rates), max(rates), ingest / median(rates)])
        if form == "batch":
            rates = [lines / run.validation for run in sides["ingest"]]
            rows.append([form, "validation before it", len(rates), median(rates), min(rates), max(rates), ""])
    report.table(f"Lines/s into {database}, {lines:,} lines a run", HEAD, rows)
    report.figures[f"rates_{database.lower()}"] = [vars(run) for run in runs]


def _sides(runs: Sequence[Run]) -> list[str]:
    return list(dict.fromkeys(run.side for run in runs))


def _options(argv: Sequence[str]) -> argparse.Namespace:
    wanted = parser("ingest", __doc__)
    wanted.add_argument("--lines", type=int, default=200_000, help="lines of a run on PostgreSQL")
    wanted.add_argument("--few", type=int, default=40_000, help="lines of a run on SQLite")
    wanted.add_argument("--repeats", type=int, default=5)
    wanted.add_argument("--parts", nargs="+", choices=("rate", "service"), default=["rate", "service"])
    wanted.add_argument("--databases", nargs="+", choices=DATABASES, default=DATABASES)
    wanted.add_argument("--bulk", type=int, default=1_000_000, help="lines of the bulk that is put aside")
    wanted.add_argument("--running", type=int, default=200_000, help="lines of the one that runs at once")
    wanted.add_argument("--rate", type=float, default=25.0, help="POSTs a second")
    wanted.add_argument("--seconds", type=float, default=60.0, help="seconds of POSTs without an ingest")
    return wanted.parse_args(argv)
