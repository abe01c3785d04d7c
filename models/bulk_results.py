"""The results of a bulk in the order in which they came to be, by pages: never a cursor that stays open.

A snapshot that is held for long keeps every dead row of the queue alive and makes each cut slower.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import sqlalchemy as sa

from models import jobs, results
from models.db import AnyRow, Database

_job, _body, _result = jobs.table.c, jobs.bodies.c, results.table.c

LARGEST_PAGE = 500
BLOCK = 1 << 18
"""Bytes that are written at once."""
_ENOUGH = 4_000_000
"""Bytes of answers and requests in a page, about; but one line is always taken."""

_PLAIN = (
    _result.seq,
    _result.job_id,
    _result.line_no,
    _result.custom_id,
    _result.status,
    _result.body,
    _result.error_code,
    _result.error_message,
    _result.engine_id,
    _result.prompt_tokens,
    _result.completion_tokens,
    _result.created_at,
)
_DETAILS = (
    _job.model,
    _job.endpoint,
    _job.state,
    _job.attempts,
    _job.finished_at,
    _body.body.label("request"),
    _body.columns,
)


def page(
    tx: sa.Connection, bulk_id: str, *, ok: bool, after: int, limit: int, details: bool = False
) -> Sequence[AnyRow]:
    """Return up to `limit` results of a bulk behind the `seq` `after`: those that succeeded, or the others.

    With `details`, what the job itself says as well (None for a line that never became one).
    """
    chosen = sa.select(*_PLAIN, *(_DETAILS if details else ())).where(
        _result.bulk_id == bulk_id, _result.ok.is_(ok), _result.seq > after
    )
    if details:
        chosen = chosen.outerjoin(jobs.table, _job.id == _result.job_id)
        chosen = chosen.outerjoin(jobs.bodies, _body.job_id == _result.job_id)
    return tx.execute(chosen.order_by(_result.seq).limit(limit)).all()


def fitting(
    tx: sa.Connection, bulk_id: str, *, ok: bool, after: int, limit: int, details: bool = False
) -> tuple[int, bool]:
    """Return how many results of a page fit into memory, one at least, and whether these are all."""
    # In PostgreSQL the length in bytes is known without reading a long text.
    length = sa.func.octet_length if tx.dialect.name == "postgresql" else sa.func.length
    size = sa.func.coalesce(length(_result.body), 0)
    mine = (_result.bulk_id == bulk_id, _result.ok.is_(ok), _result.seq > after)
    if details:
        chosen = sa.select(size + sa.func.coalesce(length(_body.body), 0))
        chosen = chosen.select_from(results.table.outerjoin(jobs.bodies, _body.job_id == _result.job_id))
    else:
        chosen = sa.select(size)
    sizes = tx.execute(chosen.where(*mine).order_by(_result.seq).limit(limit)).scalars().all()
    taken = total = 0
    for one in sizes:
        total += one
        if taken and total > _ENOUGH:
            break
        taken += 1
    return taken, taken == len(sizes) < limit


def follow(
    database: Database, bulk_id: str, *, ok: bool, after: int = 0, most: int | None = None, details: bool = False
) -> Iterator[Sequence[AnyRow]]:
    """Yield page after page of what is there now, each read in a transaction of its own, in bounded memory."""
    left, last = most, False
    while not last and (left is None or left > 0):
        asked = LARGEST_PAGE if left is None else min(LARGEST_PAGE, left)
        with database.reading() as tx:
            many, last = fitting(tx, bulk_id, ok=ok, after=after, limit=asked, details=details)
            rows = page(tx, bulk_id, ok=ok, after=after, limit=many, details=details) if many else ()
        if not rows:
            return
        after = rows[-1].seq
        left = None if left is None else left - len(rows)
        yield rows
        del rows  # not kept while the next page is read


def in_blocks(lines: Iterable[bytes]) -> Iterator[bytes]:
    """Yield lines in blocks that are worth a write each."""
    held: list[bytes] = []
    size = 0
    for line in lines:
        held.append(line)
        size += len(line)
        if size >= BLOCK:
            yield b"".join(held)
            held, size = [], 0
    if held:
        yield b"".join(held)
