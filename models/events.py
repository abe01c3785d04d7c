"""What a delivery tells: the end of a job or of a bulk, as it was stored; or nothing but that it arrives."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import sqlalchemy as sa

from models import bulks, event_types, jobs, results
from models.db import AnyRow, among
from models.owed import is_test
from models.sending import Delivery

_COUNTS = ("total", "succeeded", "failed", "cancelled", "expired")
_job, _body, _result = jobs.table.c, jobs.bodies.c, results.table.c


@dataclass(frozen=True, slots=True)
class Ending:
    """How a job, or (with `counts`) a bulk, ended.

    It never changes, so an event built from it is the same at each try. `answer` is JSON text, `trace` a `traceparent`.
    """

    job_id: str
    state: str
    model: str | None
    metadata: Mapping[str, str] | None = field(repr=False)
    code: str | None
    message: str | None = field(repr=False)
    answer: str | None = field(repr=False)
    counts: Mapping[str, int] | None = None
    trace: str | None = None


def endings(tx: sa.Connection, claimed: Iterable[Delivery], *, traced: bool = False) -> dict[str, Ending]:
    """Return the ends of the deliveries' jobs and bulks by id: answers only where they are to be sent.

    The jobs' traces only with `traced`: on SQLite they lie behind the bodies.
    """
    chosen = list(claimed)
    tests = {one.job_id: _of_test(one) for one in chosen if is_test(one.job_id)}
    of_bulks = {one.job_id for one in chosen if one.event in event_types.BULKS} - tests.keys()
    of_jobs = [one for one in chosen if one.job_id not in of_bulks and one.job_id not in tests]
    return _of_jobs(tx, of_jobs, traced=traced) | _of_bulks(tx, of_bulks) | tests


def _of_test(delivery: Delivery) -> Ending:
    counts = dict.fromkeys(_COUNTS, 0) if delivery.event in event_types.BULKS else None
    return Ending(delivery.job_id, event_types.state_of(delivery.event), None, {}, None, None, None, counts)


def _of_bulks(tx: sa.Connection, ids: Iterable[str]) -> dict[str, Ending]:
    asked = list(ids)
    if not asked:
        return {}
    rows = tx.execute(sa.select(bulks.table).where(among(bulks.table.c.id, asked))).all()
    return {row.id: _of_bulk(row) for row in rows}


def _of_bulk(row: AnyRow) -> Ending:
    first = row.errors[0] if row.errors else {"code": None, "message": None}
    counts = {name: getattr(row, name) for name in _COUNTS}
    return Ending(row.id, row.state, row.model, row.metadata, first["code"], first["message"], None, counts)


def _of_jobs(tx: sa.Connection, chosen: list[Delivery], *, traced: bool) -> dict[str, Ending]:
    if not chosen:
        return {}
    with_answer = {delivery.job_id for delivery in chosen if delivery.include_result}
    answer = sa.case((among(_job.id, with_answer), _result.body), else_=None) if with_answer else sa.null()
    told = (_job.id, _job.state, _job.model, _body.metadata, _result.error_code, _result.error_message)
    found = (
        sa.select(*told, answer, sa.null(), _body.trace if traced else sa.null())
        .join(jobs.bodies, _body.job_id == _job.id)
        .outerjoin(results.table, _result.job_id == _job.id)
        .where(among(_job.id, {delivery.job_id for delivery in chosen}))
    )
    return {row[0]: Ending(*row) for row in tx.execute(found)}
