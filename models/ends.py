"""How jobs end, and what is written with it: state, result, its bulk's counts and the delivery in one transaction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from models import bulks, jobs, outbox, past_attempts, results, usage
from models.db import AnyRow, among, now
from models.errors import AlreadyFinished, NotFound
from models.failpoints import failpoint
from models.jobs import table
from models.states import JOB


@dataclass(frozen=True, slots=True)
class Settled:
    """What became of one running job: its next state and what is stored with it; `run_in` (seconds) when delayed."""

    job_id: str
    state: str
    result: results.NewResult | None = None
    run_in: float = 0.0


def settle(tx: sa.Connection, engine_id: str, by_batch: Mapping[str, Sequence[Settled]]) -> set[str]:
    """Store what became of jobs of these batches: state, result and delivery together. Returns the ids that were ours.

    Fenced: a job that no longer runs in its batch (cancelled, expired, given to another) is left as it is and gets no
    result. So calling it twice, or after the lease was lost, is harmless.
    """
    stored: set[str] = set()
    ended: list[tuple[AnyRow, str, results.NewResult | None]] = []
    for batch_id in sorted(by_batch):
        outcomes = by_batch[batch_id]
        states = sorted({outcome.state for outcome in outcomes})
        if len(states) > 1:
            jobs.lock(tx, among(table.c.id, [outcome.job_id for outcome in outcomes]), table.c.batch_id == batch_id)
        for state in states:
            chosen = {outcome.job_id: outcome for outcome in outcomes if outcome.state == state}
            mine = (among(table.c.id, chosen), table.c.batch_id == batch_id)
            if state == "delayed":
                moved = _defer(tx, chosen, mine)
            else:
                moved = jobs.move(tx, state, *mine, sources=["running"], finished_at=now())
                ended += [(row, state, chosen[row.id].result) for row in moved]
            stored.update(row.id for row in moved)
    record(tx, ended, engine_id)
    failpoint("settle.storing")
    return stored


def _defer(
    tx: sa.Connection, chosen: Mapping[str, Settled], mine: tuple[sa.ColumnElement[bool], ...]
) -> Sequence[AnyRow]:
    # One delay for the group: the longest that an upstream asked for.
    delay = max(outcome.run_in for outcome in chosen.values())
    past_attempts.note(tx, "deferred", *mine)
    return jobs.move(
        tx,
        "delayed",
        *mine,
        sources=["running"],
        run_at=now() + delay,
        deferrals=table.c.deferrals + 1,
        batch_id=None,
    )


def record(
    tx: sa.Connection, moved: Sequence[tuple[AnyRow, str, results.NewResult | None]], engine_id: str | None = None
) -> None:
    """Do what belongs to an end, for jobs just moved to one (row, state, result): count it, store it, announce it."""
    if not moved:
        return
    ended = [
        results.Ended(row.id, state, result, row.batch_id, row.bulk_id, row.line_no, row.custom_id)
        for row, state, result in moved
    ]
    outbox.tell_jobs(tx, moved)
    usage.count(tx, moved, engine_id)
    results.store(tx, engine_id, ended, bulks.count(tx, ended))


def fail(tx: sa.Connection, code: str, message: str, *where: sa.ColumnElement[bool]) -> list[str]:
    """Fail running jobs for a reason that is not the engine's answer (poison, too many attempts); return their ids."""
    moved = jobs.move(tx, "failed", *where, sources=["running"], finished_at=now(), cohort_id=None)
    result = results.NewResult(status=500, code=code, message=message)
    record(tx, [(row, "failed", result) for row in moved])
    return [row.id for row in moved]


def cancel(tx: sa.Connection, owner: str, job_id: str) -> None:
    """Cancel an open job of this owner; the worker's heartbeat then tells the engine to abort it.

    Raises NotFound, and AlreadyFinished for a job in an end state.
    """
    moved = jobs.move(tx, "cancelled", table.c.id == job_id, table.c.owner == owner, finished_at=now())
    if not moved:
        mine = sa.select(table.c.state).where(table.c.id == job_id, table.c.owner == owner)
        state = tx.execute(mine).scalar_one_or_none()
        if state is None:
            raise NotFound("job", job_id)
        raise AlreadyFinished(job_id, state)
    record(tx, [(row, "cancelled", None) for row in moved])


def withdraw(tx: sa.Connection, job_id: str) -> bool:
    """Cancel a job that no engine has begun; False, and nothing is changed, when one has or it has ended."""
    waiting = sorted(JOB.sources("cancelled") - {"running"})
    moved = jobs.move(tx, "cancelled", table.c.id == job_id, sources=waiting, finished_at=now())
    record(tx, [(row, "cancelled", None) for row in moved])
    return bool(moved)
