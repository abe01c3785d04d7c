"""The tender's ingest and bare inserts of the same rows in turn, in this process."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import psycopg
import sqlalchemy as sa

from benchmarks import load
from benchmarks.report import Report
from benchmarks.service import BenchmarkError
from models import bulks, engines, files, jobs, schema
from models.bulks import BATCH_KIND, BULK_KIND, NewBulk
from models.calls import CHAT
from models.db import Database
from models.storage import Storage
from stoker.settings import Settings
from stoker.settings import load as settings_of
from tasks.bulks import tend_bulk
from tasks.doorbell import Doorbell
from tests import servers

SEED = 20
_TABLES = (jobs.table, jobs.bodies)
_CHUNK = 200


@dataclass(frozen=True)
class Run:
    """One run of one side; `validation` are the seconds of the pass before, which only a batch has."""

    form: str
    side: str
    rate: float
    validation: float = 0.0


class _Silent:
    """A doorbell that nobody hears."""

    def collector(self, model: str, lane: str | None = None) -> None:
        """Ring for nobody."""


@dataclass
class Bench:
    """A database with the input of one bulk, and nothing else."""

    database: Database
    settings: Settings
    form: str
    lines: int
    file_id: str = ""
    storage: Storage = field(init=False)

    def __post_init__(self) -> None:
        """Make the tables and store the input."""
        schema.upgrade(self.database)
        self.storage = Storage(self.settings.storage)
        with self.database.transaction() as tx:
            engines.remember(tx, "fake", 4096, None)
            new = files.begin(tx, "alice", self._purpose)
        with self.storage.writer(new.key) as out:
            for block in load.packed(load.lines(self.lines, SEED, self.form)):
                out.write(block)
        with self.database.transaction() as tx:
            files.finish(tx, new.id, filename="in", purpose=self._purpose, size=out.size, expires_in=None)
        self.file_id = new.id

    @property
    def _purpose(self) -> str:
        return "batch" if self.form == "batch" else files.BULK_INPUT

    def ingest(self) -> Run:
        """Tend a bulk of the input until nothing is to be done for it."""
        batch = self.form == "batch"
        given: dict[str, Any] = {"endpoint": CHAT, "window": "24h"} if batch else {"model": "fake"}
        new = NewBulk("alice", BATCH_KIND if batch else BULK_KIND, "bulk", file_id=self.file_id, **given)
        with self.database.transaction() as tx:
            bulk_id = bulks.create(tx, new).id
        began = time.time()
        tend_bulk(self.database, self.settings, self.storage, cast("Doorbell", _Silent()), bulk_id)
        ended = time.time()
        with self.database.reading() as tx:
            row = tx.execute(sa.select(bulks.table).where(bulks.table.c.id == bulk_id)).one()
        self.check()
        validation = row.in_progress_at - began if batch else 0.0
        return Run(self.form, "ingest", self.lines / (ended - began - validation), validation)

    def bare(self, side: str, insert: Callable[[], None]) -> Run:
        """Time an insert of the same rows."""
        began = time.perf_counter()
        insert()
        seconds = time.perf_counter() - began
        self.check()
        return Run(self.form, side, self.lines / seconds)

    def check(self) -> None:
        """Raise BenchmarkError unless all rows are there."""
        with self.database.reading() as tx:
            for table in _TABLES:
                found = tx.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()
                if found != self.lines:
                    raise BenchmarkError(f"{found} rows in {table.name} for {self.lines} lines")


def on_postgresql(report: Report, lines: int, repeats: int) -> list[Run]:
    """Return the runs on PostgreSQL."""
    with servers.postgres(fsync=True) as server, tempfile.TemporaryDirectory(prefix="stoker-bench-") as folder:
        return [
            run
            for form in load.FORMS
            for run in _on_postgresql(report, server, _settings(folder, form, server.create(form)), lines, repeats)
        ]


def _on_postgresql(
    report: Report, server: servers.Postgres, settings: Settings, lines: int, repeats: int
) -> Iterator[Run]:
    form = settings.data.name
    with closing(Database(settings.database)) as database:
        bench = Bench(database, settings, form, lines)
        with psycopg.connect(server.url(form), autocommit=True) as raw:
            report.machine["postgresql"] = raw.info.parameter_status("server_version")

            def empty() -> None:
                raw.execute("TRUNCATE jobs, bodies, bulks, results")
                raw.execute("CHECKPOINT")

            bench.ingest()
            rows = {table.name: _copied(raw, table) for table in _TABLES}
            sides = {"ingest": bench.ingest, "bare COPY": lambda: bench.bare("bare COPY", lambda: _copy(raw, rows))}
            yield from _in_turn(report, sides, repeats, empty)
    server.drop(form)


def _copied(raw: psycopg.Connection, table: sa.Table) -> list[bytes]:
    """Return the rows as COPY's text, in the order in which they were stored."""
    order = "ORDER BY line_no" if table is jobs.table else "ORDER BY job_id"
    statement = f"COPY (SELECT * FROM {table.name} {order}) TO STDOUT"  # noqa: S608  # names of ours
    with raw.cursor().copy(statement.encode()) as copy:
        return list(load.packed(map(bytes, copy)))


def _copy(raw: psycopg.Connection, rows: dict[str, list[bytes]]) -> None:
    with raw.transaction():
        for name, blocks in rows.items():
            with raw.cursor().copy(f"COPY {name} FROM STDIN".encode()) as copy:
                for block in blocks:
                    copy.write(block)


def on_sqlite(report: Report, lines: int, repeats: int) -> list[Run]:
    """Return the runs on SQLite, each in a new copy of one file."""
    with tempfile.TemporaryDirectory(prefix="stoker-bench-") as folder:
        return [run for form in load.FORMS for run in _on_sqlite(report, _settings(folder, form), lines, repeats)]


def _on_sqlite(report: Report, settings: Settings, lines: int, repeats: int) -> Iterator[Run]:
    form = settings.data.name
    settings.data.mkdir()
    file, kept = settings.data / "stoker.db", settings.data / "kept.db"
    database = Database(settings.database)
    bench = Bench(database, settings, form, lines)
    database.close()
    shutil.copy(file, kept)

    def empty() -> None:
        database.close()
        for old in settings.data.glob("stoker.db*"):
            old.unlink()
        shutil.copy(kept, file)

    bench.ingest()
    with database.reading() as tx:
        rows = {
            table: [tuple(row) for row in tx.execute(sa.select(table).order_by(_order(table)))] for table in _TABLES
        }
    one, many = "bare INSERT, one transaction", f"bare INSERT, {_CHUNK} rows each"
    sides = {
        "ingest": bench.ingest,
        one: lambda: bench.bare(one, lambda: _insert(database, rows, lines)),
        many: lambda: bench.bare(many, lambda: _insert(database, rows, _CHUNK)),
    }
    yield from _in_turn(report, sides, repeats, empty)
    database.close()


def _order(table: sa.Table) -> sa.ColumnElement[Any]:
    return table.c.line_no if table is jobs.table else table.c.job_id


def _insert(database: Database, rows: dict[sa.Table, list[tuple[object, ...]]], chunk: int) -> None:
    for start in range(0, max(map(len, rows.values())), chunk):
        with database.transaction() as tx:
            for table, values in rows.items():
                marks = ", ".join("?" * len(table.c))
                statement = f"INSERT INTO {table.name} VALUES ({marks})"  # noqa: S608  # names of ours
                tx.exec_driver_sql(statement, values[start : start + chunk])


def _in_turn(
    report: Report, sides: dict[str, Callable[[], Run]], repeats: int, empty: Callable[[], None]
) -> Iterator[Run]:
    for number in range(repeats):
        for side in sides if number % 2 == 0 else reversed(sides):
            empty()
            run = sides[side]()
            report.say(f"{run.form}, {side}: {run.rate:,.0f} lines/s")
            yield run


def _settings(folder: str, form: str, url: str = "") -> Settings:
    return settings_of(
        data=Path(folder) / form,
        database_url=url,
        redis_url="redis://127.0.0.1:1/0",
        engine="fake",
        max_batch_lines=10_000_000,
    )
