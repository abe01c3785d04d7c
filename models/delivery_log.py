"""The log of deliveries: what an owner may see of them, and how they are sent once more."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from models.db import AnyRow, among, literal, now, one_of, upsert
from models.deliveries import table, tries
from models.errors import NotEnded, NotFound, TestOnly, TriedTooOften
from models.owed import NO_TEST, is_test

ENDED = ("delivered", "failed")
"""The states from which a delivery can be sent once more."""
MOST_TRIES = 1_000
"""From so many tries on a delivery is not sent once more: they are counted in a SMALLINT, and never go back."""

_SHOWN = tuple(column for column in table.c if column.name not in {"secret", "owner", "include_result", "host"})
_SLACK = 3600.0
"""Seconds by which the clock that made the ids may differ from the database's."""
_AGAIN = (
    one_of(table.c.state, ENDED),
    table.c["try"] < MOST_TRIES,
    # Whoever asked for a test has been answered.
    NO_TEST,
)


@dataclass(frozen=True, slots=True)
class Filters:
    """Which deliveries are meant; None means all. Times in seconds since 1970, `until` not included."""

    state: str | None = None
    event: str | None = None
    endpoint_id: str | None = None
    job_id: str | None = None
    since: float | None = None
    until: float | None = None


def get(tx: sa.Connection, owner: str, delivery_id: str) -> AnyRow:
    """Return a delivery of this owner. Raises NotFound."""
    row = tx.execute(sa.select(*_SHOWN).where(table.c.id == delivery_id, table.c.owner == owner)).one_or_none()
    if row is None:
        raise NotFound("delivery", delivery_id)
    return row


def of_id(tx: sa.Connection, delivery_id: str) -> AnyRow:
    """Return a delivery that is known to be there, whoever's it is."""
    return tx.execute(sa.select(*_SHOWN).where(table.c.id == delivery_id)).one()


def page(
    tx: sa.Connection, owner: str, filters: Filters, *, after: str | None, limit: int
) -> tuple[Sequence[AnyRow], bool]:
    """Return up to `limit` deliveries from behind the id `after`, newest first, and whether more follow."""
    where = [*_where(tx, owner, filters)]
    if after is not None:
        where.append(table.c.id < after)
    rows = tx.execute(sa.select(*_SHOWN).where(*where).order_by(table.c.id.desc()).limit(limit + 1)).all()
    return rows[:limit], len(rows) > limit


def _where(tx: sa.Connection, owner: str, filters: Filters) -> Iterable[sa.ColumnElement[bool]]:
    yield table.c.owner == owner
    if filters.state is not None:
        yield table.c.state == filters.state
    if filters.event is not None:
        yield table.c.event == filters.event
    if filters.endpoint_id is not None:
        yield table.c.endpoint_id == filters.endpoint_id
        yield table.c.endpoint_id != literal("")  # the proof of the index's condition
    if filters.job_id is not None:
        # Few tell of one job: looked up first, since the planner may rather walk through all of the owner's.
        yield among(table.c.id, tx.execute(sa.select(table.c.id).where(table.c.job_id == filters.job_id)).scalars())
    # Ids are ordered by time, and have the index.
    if filters.since is not None:
        yield table.c.id >= _first_id(filters.since - _SLACK)
        yield table.c.created_at >= filters.since
    if filters.until is not None:
        yield table.c.id < _first_id(filters.until + _SLACK)
        yield table.c.created_at < filters.until


def _first_id(at: float) -> str:
    return f"msg_{max(0, int(at * 1000)):012x}"


def history(tx: sa.Connection, row: AnyRow) -> Sequence[AnyRow]:
    """Return the tries (nth, at, status, latency_ms, error) that a delivery's log has, alone or in its group."""
    ids = [row.id] if row.group_id is None else [row.id, row.group_id]
    # A group's tries count from 1, whatever tries its events had before.
    offset = sa.case((tries.c.delivery_id == (row.group_id or ""), row.tries_before), else_=0)
    columns = ((tries.c["try"] + offset).label("nth"), tries.c.at, tries.c.status, tries.c.latency_ms, tries.c.error)
    return tx.execute(sa.select(*columns).where(among(tries.c.delivery_id, ids)).order_by(sa.text("nth"))).all()


def redeliver(tx: sa.Connection, owner: str, delivery_id: str) -> AnyRow:
    """Send a delivery that has ended once more, with the same id.

    Raises NotFound; NotEnded while it is on its way; TestOnly; TriedTooOften.
    """
    row = get(tx, owner, delivery_id)
    if is_test(row.job_id):
        raise TestOnly(delivery_id)
    if not _again(tx, [delivery_id]):
        row = get(tx, owner, delivery_id)  # as it is now: others may have been faster
        if row.state in ENDED:
            raise TriedTooOften(delivery_id, MOST_TRIES)
        raise NotEnded(delivery_id, row.state)
    return get(tx, owner, delivery_id)


def redeliver_some(
    tx: sa.Connection, owner: str, filters: Filters, *, after: str | None, limit: int
) -> tuple[int, str | None]:
    """Send the next `limit` deliveries behind the id `after` once more, oldest first.

    Tests, and what was tried too often, are passed over.
    Returns how many, and the id to go on behind; None when there are no more.
    """
    where = [*_where(tx, owner, filters), *_AGAIN]
    if after is not None:
        where.append(table.c.id > after)
    ids = tx.execute(sa.select(table.c.id).where(*where).order_by(table.c.id).limit(limit)).scalars().all()
    return len(_again(tx, ids)) if ids else 0, ids[-1] if len(ids) == limit else None


def _again(tx: sa.Connection, ids: Sequence[str]) -> Sequence[str]:
    """Bring ended deliveries back to the beginning of their schedule; return the ids of those that were ended."""
    mine = sa.select(table.c.id, table.c.group_id).where(among(table.c.id, ids), *_AGAIN)
    locked = tx.execute(mine.order_by(table.c.id).with_for_update()).all()
    ended = [row.id for row in locked]
    if not ended:
        return []
    _keep_history(tx, ended)
    # `try` is the fence of a sender that may still be out there: it never goes back.
    back = {"state": "pending", "tries_before": table.c["try"], "next_at": now(), "group_id": None}
    tx.execute(sa.update(table).where(among(table.c.id, ended)).values({**back, "delivered_at": None}))
    forget_groups(tx, {row.group_id for row in locked if row.group_id is not None})
    return ended


def _keep_history(tx: sa.Connection, ids: Sequence[str]) -> None:
    """Give deliveries that leave their group the tries made with it, and the one that succeeded."""
    one, chosen = table.c, among(table.c.id, ids)
    columns = ["delivery_id", "try", "at", "status", "latency_ms", "error"]
    nth = tries.c["try"] + one.tries_before
    in_group = sa.select(one.id, nth, tries.c.at, tries.c.status, tries.c.latency_ms, tries.c.error)
    in_group = in_group.join(tries, tries.c.delivery_id == one.group_id).where(chosen, one.group_id.is_not(None))
    done = sa.select(
        one.id, one["try"], one.delivered_at, one.status, sa.func.coalesce(one.latency_ms, 0), sa.null()
    ).where(chosen, one.delivered_at.is_not(None))
    for kept in (in_group, done):
        tx.execute(upsert(tx, tries).from_select(columns, kept).on_conflict_do_nothing())


def purge(tx: sa.Connection, ids: Sequence[str]) -> None:
    """Delete deliveries and what their tries came to: a group's with the last of its events."""
    if not ids:
        return
    doomed = sa.delete(table).where(among(table.c.id, ids)).returning(table.c.group_id)
    groups = {group for group in tx.execute(doomed).scalars() if group is not None}
    tx.execute(sa.delete(tries).where(among(tries.c.delivery_id, ids)))
    forget_groups(tx, groups)


def forget_groups(tx: sa.Connection, groups: Iterable[str]) -> None:
    """Delete the tries of those of these groups to which no delivery belongs any more."""
    listed = sorted(groups)
    if not listed:
        return
    _alone(tx, listed)
    kept = sa.select(table.c.group_id).where(table.c.group_id.is_not(None), among(table.c.group_id, listed))
    left = set(listed) - set(tx.execute(kept.distinct()).scalars())
    tx.execute(sa.delete(tries).where(among(tries.c.delivery_id, left)))


_LOCKS = 64


def _alone(tx: sa.Connection, groups: Iterable[str]) -> None:
    """Let others who take deliveries out of these groups wait: two at once would both see what the other takes out.

    Whoever comes second asks when the first has committed. Groups share a few locks, taken in order and at the end.
    """
    if tx.dialect.name == "postgresql":  # SQLite's transaction that writes is alone
        for lock in sorted({zlib.crc32(group.encode()) % _LOCKS for group in groups}):
            tx.execute(sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtext("delivery_groups"), lock)))


def give_up(tx: sa.Connection, delivery_id: str, why: str) -> bool:
    """End a delivery that no sender has taken yet; False, and nothing is changed, when one has."""
    mine = (table.c.id == delivery_id, table.c.state == literal("pending"))
    return tx.execute(sa.update(table).where(*mine).values(state="failed", error=why)).rowcount == 1
