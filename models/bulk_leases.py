"""Who tends a bulk: one holder at a time, whose every write says `holder = :mine`, as a batch's says `batch_id`.

A holder that dies leaves a lease that runs out; one that was frozen finds its writes refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from models import bulks
from models.bulks import BATCH_KIND, table
from models.db import AnyRow, now
from models.errors import StokerError

CLOCK = now().label("clock")


class Superseded(StokerError):
    """The bulk is no longer as its holder believes: another has it, or its owner changed it. Look again."""


@dataclass(frozen=True, slots=True)
class Step:
    """How far a chunk brings the reading: lines that became jobs, and lines that ended at once by their state."""

    offset: int
    line: int
    jobs: int = 0
    ended: int = 0


def look(tx: sa.Connection, bulk_id: str) -> AnyRow | None:
    """Return a bulk with the database's `clock`; None when it is gone."""
    return tx.execute(sa.select(table, CLOCK).where(table.c.id == bulk_id)).one_or_none()


def hold(tx: sa.Connection, bulk_id: str, me: str, lease: float) -> AnyRow | None:
    """Become (or stay) a bulk's holder for so many seconds; None when another is, or it is gone."""
    free = sa.or_(table.c.holder.is_(None), table.c.holder == me, table.c.lease_until < now())
    held = sa.update(table).where(table.c.id == bulk_id, free).values(holder=me, lease_until=now() + lease)
    return tx.execute(held.returning(table, CLOCK)).one_or_none()


def let_go(tx: sa.Connection, bulk_id: str, me: str) -> None:
    """Let another hold it."""
    mine = (table.c.id == bulk_id, table.c.holder == me)
    tx.execute(sa.update(table).where(*mine).values(holder=None, lease_until=None))


def _mine(held: AnyRow, me: str) -> tuple[sa.ColumnElement[bool], ...]:
    return (table.c.id == held.id, table.c.holder == me, table.c.deleted_at.is_not_distinct_from(held.deleted_at))


def renew(tx: sa.Connection, held: AnyRow, me: str, lease: float) -> None:
    """Stay the holder of a bulk that is still in the same state. Raises Superseded."""
    change(tx, held, me, lease_until=now() + lease)


def advance(tx: sa.Connection, held: AnyRow, me: str, lease: float, step: Step) -> AnyRow:
    """Record what was read up to `step`, in the transaction that stores it; return the row.

    `held` is the row as it was read: its state, place and lane must be unchanged. Raises Superseded.
    """
    same = (
        *_mine(held, me),
        table.c.state == held.state,
        table.c.offset == held.offset,
        table.c.line == held.line,
        table.c.lane == held.lane,
        table.c.paused_at.is_not_distinct_from(held.paused_at),
    )
    values = {
        "offset": step.offset,
        "line": step.line,
        "total": table.c.total + step.jobs + step.ended,
        "lease_until": now() + lease,
    }
    after = tx.execute(sa.update(table).where(*same).values(values).returning(table, CLOCK)).one_or_none()
    if after is None:
        raise Superseded(held.id)
    return after


def change(tx: sa.Connection, held: AnyRow, me: str, **values: Any) -> AnyRow:
    """Write values of a bulk that is still ours and in the same state; return the row. Raises Superseded."""
    same = (*_mine(held, me), table.c.state == held.state)
    row = tx.execute(sa.update(table).where(*same).values(**values).returning(table, CLOCK)).one_or_none()
    if row is None:
        raise Superseded(held.id)
    return row


def move(tx: sa.Connection, held: AnyRow, me: str, to: str, **values: Any) -> AnyRow:
    """Bring a bulk that is still ours and in the same state to the state `to`. Raises Superseded."""
    moved = bulks.move(tx, to, *_mine(held, me), table.c.state == held.state, **values)
    if not moved:
        raise Superseded(held.id)
    return moved[0]


def duty(row: AnyRow) -> str | None:  # noqa: PLR0911  # one line a duty, in the order of their urgency
    """Return what is to be done for a bulk now, None when nothing is; pure.

    `row` is a bulk with `clock`. Duties: delete, validate, start, stop, relane, cancel, expire, ingest, close, export.
    """
    state, open_lines = row.state, row.total - row.done
    if row.deleted_at is not None:
        return "delete"
    if state == "validating":
        return "validate" if row.kind == BATCH_KIND or row.dry_run else "start"
    if state == "finalizing":
        return "export"
    if state == "running" and _fails_too_much(row):
        return "stop"
    if state == "running" and open_lines and expired(row):
        return "expire"
    if state == "cancelling" and open_lines:
        return "cancel"
    if state == "running" and row.lane_applied != bulks.effective_lane(row):
        return "relane"
    # One that is cancelled before it ran has no lines to account for.
    if state in {"running", "cancelling"} and not row.ingest_done and row.in_progress_at is not None:
        return "ingest"
    if state in {"running", "cancelling"} and not open_lines:
        return "close" if state == "running" else "export"
    return None


def expired(row: AnyRow) -> bool:
    """Tell whether a bulk's time has passed."""
    return bool(row.expires_at is not None and row.expires_at <= row.clock)


FEWEST_JUDGED = 20
"""Lines that must have ended before a bulk is stopped for its failures."""


def _fails_too_much(row: AnyRow) -> bool:
    most = row.stop_after_failed
    enough = row.done >= min(FEWEST_JUDGED, row.total if row.ingest_done else FEWEST_JUDGED)
    return bool(most is not None and row.done and enough and row.failed > most * row.done)


def holders(tx: sa.Connection) -> Sequence[AnyRow]:
    """Return (id, holder) of the bulks that somebody holds."""
    held = sa.select(table.c.id, table.c.holder).where(bulks.UNFINISHED, table.c.holder.is_not(None))
    return tx.execute(held).all()


def unattended(tx: sa.Connection) -> Sequence[str]:
    """Return the bulks for which something is to be done and which nobody holds."""
    free = sa.or_(table.c.holder.is_(None), table.c.lease_until < now())
    rows = tx.execute(sa.select(table, CLOCK).where(bulks.UNFINISHED, free).order_by(table.c.id)).all()
    return [row.id for row in rows if duty(row) is not None]


def outcome(row: AnyRow) -> str:
    """Return the end state of a bulk of which every line has ended; pure.

    One with errors was stopped early, or its input could not be read to the end.
    """
    if row.errors:
        return "failed"
    if row.state == "cancelling":
        return "cancelled"
    return "expired" if row.expired else "completed"
