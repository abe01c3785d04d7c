"""What a client may see of its bulks: the row, how many of its lines run now, and the database's clock."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import sqlalchemy as sa

from models import bulk_lines, bulks, jobs
from models.bulk_leases import CLOCK
from models.db import AnyRow

_job, _body = jobs.table.c, jobs.bodies.c


@dataclass(frozen=True, slots=True)
class Seen:
    """A bulk at one moment: `clock` is the database's, in seconds since 1970."""

    row: AnyRow
    clock: float
    running: int


def of(tx: sa.Connection, row: AnyRow) -> Seen:
    """Return a bulk as it is now."""
    return of_all(tx, [row])[0]


def of_all(tx: sa.Connection, rows: Iterable[AnyRow]) -> Sequence[Seen]:
    """Return bulks as they are now."""
    clock = tx.execute(sa.select(CLOCK)).scalar_one()
    return [Seen(row, clock, bulk_lines.running(tx, row.id) if _may_run(row) else 0) for row in rows]


def page(tx: sa.Connection, owner: str, **asked: Any) -> tuple[Sequence[Seen], bool]:
    """Return a page of bulks as they are now, and whether more follow; `asked`: as `bulks.page` takes it."""
    rows, more = bulks.page(tx, owner, **asked)
    return of_all(tx, rows), more


def _may_run(row: AnyRow) -> bool:
    return row.state in {"running", "cancelling"} and row.total > row.done


def columns(tx: sa.Connection, bulk_id: str) -> Sequence[str]:
    """Return the columns that each line of a bulk of CSV has besides its prompt; none of another bulk."""
    first = (
        sa.select(_body.columns)
        .join(jobs.table, _job.id == _body.job_id)
        .where(_job.bulk_id == bulk_id)
        .order_by(_job.line_no)
        .limit(1)
    )
    found = tx.execute(first).scalar_one_or_none()
    return list(msgspec.json.decode(found, type=dict[str, str])) if found else []
