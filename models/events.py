"""What a delivery tells: the end of a job, as it was stored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import sqlalchemy as sa

from models import jobs, results
from models.db import among
from models.deliveries import Delivery

_job, _body, _result = jobs.table.c, jobs.bodies.c, results.table.c


@dataclass(frozen=True, slots=True)
class Ending:
    """How a job ended. It never changes, so an event built from it is the same at each try. `answer` is JSON text."""

    job_id: str
    state: str
    model: str
    metadata: Mapping[str, str] | None = field(repr=False)
    code: str | None
    message: str | None = field(repr=False)
    answer: str | None = field(repr=False)


def endings(tx: sa.Connection, claimed: Iterable[Delivery]) -> dict[str, Ending]:
    """Return the ends of the deliveries' jobs by job id, answers only where they are to be sent."""
    chosen = list(claimed)
    with_answer = {delivery.job_id for delivery in chosen if delivery.include_result}
    answer = sa.case((among(_job.id, with_answer), _result.body), else_=None) if with_answer else sa.null()
    found = (
        sa.select(_job.id, _job.state, _job.model, _body.metadata, _result.error_code, _result.error_message, answer)
        .join(jobs.bodies, _body.job_id == _job.id)
        .outerjoin(results.table, _result.job_id == _job.id)
        .where(among(_job.id, {delivery.job_id for delivery in chosen}))
    )
    return {row[0]: Ending(*row) for row in tx.execute(found)}
