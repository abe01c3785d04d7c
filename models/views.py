"""What a client may see of its jobs: one job, its result, a page of the list."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from models import jobs, results
from models.db import AnyRow, among, literal, one_of
from models.errors import NotFound
from models.tags import tagged

_job, _body, _result = jobs.table.c, jobs.bodies.c, results.table.c

_COLUMNS = (
    _job.id,
    _job.owner,
    _job.model,
    _job.lane,
    _job.endpoint,
    _job.state,
    _job.pos,
    _job.attempts,
    _job.created_at,
    _job.started_at,
    _job.finished_at,
    _job.expires_at,
    _job.batch_id,
    _job.bulk_id,
    _job.line_no,
    _job.custom_id,
    _body.metadata.label("tags"),
    _body.webhook_url,
    _result.status,
    _result.error_code,
    _result.error_message,
    _result.prompt_tokens,
    _result.completion_tokens,
    _result.engine_id,
)
_SOURCE = jobs.table.join(jobs.bodies, _body.job_id == _job.id).outerjoin(results.table, _result.job_id == _job.id)


@dataclass(frozen=True, slots=True)
class Filters:
    """Which jobs a list shows; None and empty mean all. `begins`: how their ids begin, `job_` and hex digits."""

    state: str | None = None
    lane: str | None = None
    model: str | None = None
    bulk_id: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    begins: str | None = None


def get(tx: sa.Connection, owner: str, job_id: str) -> AnyRow:
    """Return one job with its result. Raises NotFound."""
    row = find(tx, owner, job_id)
    if row is None:
        raise NotFound("job", job_id)
    return row


def find(tx: sa.Connection, owner: str, job_id: str) -> AnyRow | None:
    """Return one job with its result, None when there is none such."""
    found = sa.select(*_COLUMNS, _result.body).select_from(_SOURCE).where(_job.id == job_id, _job.owner == owner)
    return tx.execute(found).one_or_none()


def body(tx: sa.Connection, job_id: str) -> str:
    """Return what a job asks its engine for. Raises NotFound."""
    found: str | None = tx.execute(sa.select(_body.body).where(_body.job_id == job_id)).scalar_one_or_none()
    if found is None:
        raise NotFound("job", job_id)
    return found


def sent(tx: sa.Connection, owner: str, job_id: str) -> AnyRow:
    """Return what a job was submitted with: its row and what lies beside it. Raises NotFound."""
    chosen = sa.select(jobs.table, jobs.bodies).join(jobs.bodies, _body.job_id == _job.id)
    row = tx.execute(chosen.where(_job.id == job_id, _job.owner == owner)).one_or_none()
    if row is None:
        raise NotFound("job", job_id)
    return row


def page(
    tx: sa.Connection, owner: str, filters: Filters, *, after: str | None, limit: int
) -> tuple[Sequence[AnyRow], bool]:
    """Return up to `limit` jobs from behind the id `after`, newest first, without results, and whether more follow."""
    chosen = sa.select(_job.id).where(_job.owner == owner)
    # The jobs of a bulk have an index by their lines, which are as old as they are numbered.
    order: sa.ColumnElement[Any] = _job.id if filters.bulk_id is None else _job.line_no
    if after is not None:
        chosen = chosen.where(order < (after if filters.bulk_id is None else _line_of(owner, after)))
    for column, wanted in (
        (_job.state, filters.state),
        (_job.lane, filters.lane),
        (_job.model, filters.model),
        (_job.bulk_id, filters.bulk_id),
    ):
        if wanted is not None:
            chosen = chosen.where(column == wanted)
    if filters.state in jobs.UNSUCCESSFUL and filters.bulk_id is None:
        chosen = chosen.where(one_of(_job.state, jobs.UNSUCCESSFUL))  # the index's own condition
    if filters.begins is not None:
        chosen = chosen.where(_job.id >= filters.begins, _job.id < f"{filters.begins}g")  # behind every hex digit
    if filters.metadata:
        chosen = chosen.join(jobs.bodies, _body.job_id == _job.id).where(*tagged(tx, _body.metadata, filters.metadata))
    # Ids first: joined with the bodies before it is cut off, the list may read the bodies of all owners.
    ids = tx.execute(chosen.order_by(order.desc()).limit(limit + 1)).scalars().all()
    shown = sa.select(*_COLUMNS).select_from(_SOURCE).where(among(_job.id, ids[:limit]))
    return tx.execute(shown.order_by(order.desc())).all(), len(ids) > limit


def _line_of(owner: str, job_id: str) -> sa.ScalarSelect[Any]:
    # Of another owner's job it would tell that it is there, and which line it is.
    last = jobs.table.alias()
    return sa.select(last.c.line_no).where(last.c.id == job_id, last.c.owner == owner).scalar_subquery()


def queue_position(tx: sa.Connection, row: AnyRow, most: int = 1000) -> int | None:
    """Return how many of the owner's jobs in the same lane go before this queued one; counts no further than `most`."""
    if row.state != "queued":
        return None
    ahead = (
        sa.select(sa.literal(1))
        .where(
            _job.model == row.model,
            _job.lane == row.lane,
            _job.owner == row.owner,
            _job.pos < row.pos,
            _job.state == literal("queued"),
            _job.cohort_id.is_(None),
        )
        .limit(most)
        .subquery()
    )
    return tx.execute(sa.select(sa.func.count()).select_from(ahead)).scalar_one()


def states(tx: sa.Connection, ids: Iterable[str]) -> dict[str, str]:
    """Return the state of each of these jobs that exists."""
    return {row[0]: row[1] for row in tx.execute(sa.select(_job.id, _job.state).where(among(_job.id, ids)))}
