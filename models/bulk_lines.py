"""The lines of a bulk as jobs: stored by the thousand, and changed in slices while they wait.

PostgreSQL takes them by COPY; SQLite, which has one writer, by small `executemany`s with pauses between them, which
the caller makes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from models import bulks, ends, jobs, past_attempts, results
from models.db import AnyRow, among, in_order, literal, new_id, now, one_of
from models.results import Ended, NewResult
from models.states import JOB

_job, _body, _result = jobs.table.c, jobs.bodies.c, results.table.c

_JOB_COLUMNS = (
    *("id", "line_no", "custom_id", "pos", "model", "endpoint", "tokens", "prefix"),
    *("owner", "lane", "bulk_id", "created_at", "state", "notify", "attempts", "deferrals", "lone_deaths"),
)
_BODY_COLUMNS = ("job_id", "body", "columns", "webhook_include_result")


@dataclass(slots=True)  # not frozen: that makes it three times as slow to make
class NewLine:
    """A line that becomes a job. `body` and `columns` are JSON text."""

    number: int
    custom_id: str | None
    model: str
    endpoint: str
    body: str = field(repr=False)
    tokens: int
    columns: str | None = field(default=None, repr=False)
    prefix: int = 0


@dataclass(frozen=True, slots=True)
class EndedLine:
    """A line that never becomes a job: it cannot be read, or its bulk was cancelled or expired before its turn."""

    number: int
    custom_id: str | None
    state: str
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Rows:
    """Lines as the database takes them: COPY's text for PostgreSQL, a tuple for each line for SQLite."""

    jobs: str | list[tuple[object, ...]] = field(repr=False)
    bodies: str | list[tuple[object, ...]] = field(repr=False)


def rows(dialect: str, bulk: AnyRow, lane: str, lines: Sequence[NewLine], clock: float) -> Rows:
    """Make rows of lines, queued jobs of a bulk, at a time by the database's clock.

    Ahead of the transaction that stores them: it is the shorter for it, and the next chunk is made during this one.
    """
    pos, ids = int(clock * 1e6), [new_id("job") for _ in lines]
    same = (bulk.owner, lane, bulk.id, clock, "queued", False, 0, 0, 0)
    if dialect == "postgresql":
        return Rows(_job_texts(ids, lines, pos, same), _body_texts(ids, lines))
    made: list[tuple[object, ...]] = [
        (ident, line.number, line.custom_id, pos + nth, line.model, line.endpoint, line.tokens, line.prefix, *same)
        for nth, (ident, line) in enumerate(zip(ids, lines, strict=True))
    ]
    return Rows(made, [(ident, line.body, line.columns, False) for ident, line in zip(ids, lines, strict=True)])


def insert(tx: sa.Connection, made: Rows) -> None:
    """Store lines as queued jobs."""
    for table, columns, values in (("jobs", _JOB_COLUMNS, made.jobs), ("bodies", _BODY_COLUMNS, made.bodies)):
        if isinstance(values, str):
            _copy(tx, table, columns, values)
        elif values:
            tx.exec_driver_sql(_insert_sql(table, columns), values)


def _insert_sql(table: str, columns: Sequence[str]) -> str:
    named = ", ".join(f'"{name}"' for name in columns)
    return f"INSERT INTO {table} ({named}) VALUES ({', '.join('?' * len(columns))})"  # noqa: S608  # names of ours


def _copy(tx: sa.Connection, table: str, columns: Sequence[str], rows: str) -> None:
    """Hand over rows in COPY's text form: writing values one by one through the driver costs three times as much."""
    named = ", ".join(f'"{name}"' for name in columns)
    statement = f"COPY {table} ({named}) FROM STDIN"
    raw: Any = tx.connection.driver_connection
    driver = tx.dialect.loaded_dbapi.Error
    try:
        with raw.cursor() as cursor, cursor.copy(statement) as copy:
            copy.write(rows)
    except driver as error:
        # As SQLAlchemy would raise it: whoever sits out an outage, or repeats after a deadlock, knows it by that.
        raise sa.exc.DBAPIError.instance(statement, None, error, driver) from error


def _job_texts(ids: Sequence[str], lines: Sequence[NewLine], pos: int, same: tuple[Any, ...]) -> str:
    tail = "\t".join(_text(value) for value in same) + "\n"
    return "".join(
        f"{ident}\t{line.number}\t{_text(line.custom_id)}\t{pos + nth}\t{_text(line.model)}\t{_text(line.endpoint)}"
        f"\t{line.tokens}\t{line.prefix}\t{tail}"
        for nth, (ident, line) in enumerate(zip(ids, lines, strict=True))
    )


def _body_texts(ids: Sequence[str], lines: Sequence[NewLine]) -> str:
    return "".join(
        f"{ident}\t{_text(line.body)}\t{_text(line.columns)}\tf\n" for ident, line in zip(ids, lines, strict=True)
    )


def _text(value: object) -> str:
    """Return a value as COPY's text form has it."""
    if value is None:
        return r"\N"
    if isinstance(value, bool):
        return "t" if value else "f"
    text = str(value)
    if "\\" in text:
        text = text.replace("\\", "\\\\")
    if "\t" in text or "\n" in text or "\r" in text:
        text = text.replace("\t", "\\t").replace("\n", "\\n").replace("\r", "\\r")
    return text


def end_unread(tx: sa.Connection, bulk_id: str, lines: Iterable[EndedLine]) -> None:
    """Store how lines ended that never became jobs, and count them."""
    ended = [
        Ended(
            new_id("line"),
            line.state,
            NewResult(400 if line.state == "failed" else 0, code=line.code, message=line.message),
            bulk_id=bulk_id,
            line_no=line.number,
            custom_id=line.custom_id,
        )
        for line in lines
    ]
    results.store(tx, None, ended, bulks.count(tx, ended))
    unreadable = sum(one.state == "failed" for one in ended)
    if unreadable:
        counted = sa.update(bulks.table).where(bulks.table.c.id == bulk_id)
        tx.execute(counted.values(invalid=bulks.table.c.invalid + unreadable))


def end_slice(tx: sa.Connection, bulk_id: str, to: str, behind: int, limit: int) -> tuple[int, list[str]] | None:
    """End up to `limit` open jobs of a bulk, behind a line number, as cancelled or expired.

    Returns the last line number and the ids; None when there is none left. In the order of the lines, in which they
    would run: the front of the queue goes first.
    """
    open_lines = sa.select(_job.id, _job.line_no).where(_job.bulk_id == bulk_id, _job.line_no > behind, jobs.OPEN)
    found = tx.execute(open_lines.order_by(_job.line_no).limit(limit)).all()
    if not found:
        return None
    moved = jobs.move(tx, to, among(_job.id, [row.id for row in found]), finished_at=now())
    ends.record(tx, [(row, to, None) for row in moved])
    return found[-1].line_no, [row.id for row in moved]


def relane_slice(tx: sa.Connection, bulk_id: str, lane: str, behind: int, limit: int) -> int | None:
    """Put up to `limit` waiting jobs of a bulk, behind a line number, into a lane; return the last line number.

    None when there is none left. Jobs in a batch or a cohort stay as they are: they are nearly running.
    """
    waiting = (one_of(_job.state, JOB.initial), _job.cohort_id.is_(None), _job.lane != lane)
    chosen = sa.select(_job.id, _job.line_no).where(_job.bulk_id == bulk_id, _job.line_no > behind, *waiting)
    found = tx.execute(chosen.order_by(_job.line_no).limit(limit)).all()
    if not found:
        return None
    mine = in_order(tx, jobs.table, among(_job.id, [row.id for row in found]), *waiting)
    tx.execute(sa.update(jobs.table).where(mine).values(lane=lane))
    return int(found[-1].line_no)


def failed_jobs(tx: sa.Connection, bulk_id: str, behind: int, limit: int) -> Sequence[AnyRow]:
    """Return jobs that ended without success, behind a line number, with their bodies."""
    # Told by what they are not: else PostgreSQL may read the index of all jobs that did not succeed, whoever's.
    states = sa.not_(one_of(_job.state, JOB.states - jobs.UNSUCCESSFUL))
    chosen = (
        sa.select(_job.line_no, _job.custom_id, _job.model, _job.endpoint, _body.body, _body.columns)
        .join(jobs.bodies, _body.job_id == _job.id)
        .where(_job.bulk_id == bulk_id, _job.line_no > behind, states)
    )
    return tx.execute(chosen.order_by(_job.line_no).limit(limit)).all()


def delete_slice(tx: sa.Connection, bulk_id: str, limit: int) -> int:
    """Delete up to `limit` jobs of a bulk, and as many results, with all that belongs to them; return how many rows."""
    ids = tx.execute(sa.select(_job.id).where(_job.bulk_id == bulk_id).limit(limit)).scalars().all()
    if ids:
        for column in (_body.job_id, _result.job_id, past_attempts.table.c.job_id, _job.id):
            tx.execute(sa.delete(column.table).where(among(column, ids)))
    unread = tx.execute(sa.select(_result.job_id).where(_result.bulk_id == bulk_id).limit(limit)).scalars().all()
    if unread:
        tx.execute(sa.delete(results.table).where(among(_result.job_id, unread)))
    return len(ids) + len(unread)


def running(tx: sa.Connection, bulk_id: str) -> int:
    """Return how many of a bulk's jobs are in an engine now."""
    # Written so that it is looked for among what is in batches, not among all lines of the bulk.
    mine = (sa.func.coalesce(_job.bulk_id, "") == bulk_id, _job.state == literal("running"), jobs.IN_BATCH)
    return tx.execute(sa.select(sa.func.count()).select_from(jobs.table).where(*mine)).scalar_one()
