"""The queue: whose turn it is, and who could be in the next batch.

`turns` has a row for each model and lane; locking a model's rows is what makes any number of collectors at once
correct. Looking costs the same at a thousand and at a million queued jobs: owners come from a skip scan of the index
`jobs_queue`, and of each owner only the head of its line is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from models import jobs
from models.db import Id, literal, metadata, now, upsert
from stoker.settings import LANES

turns = sa.Table(
    "turns",
    metadata,
    sa.Column("model", sa.String(255), primary_key=True),
    sa.Column("lane", sa.String(16), primary_key=True),
    sa.Column("last_owner", sa.String(64), nullable=False),
    sa.Column("deficit", sa.Double, nullable=False),
    sa.Column("cut_at", sa.Double, nullable=False),
)
"""`last_owner`: behind whom the next round starts. `deficit`: jobs that the lane is owed. `cut_at`: its last batch."""

collectors = sa.Table(
    "collectors",
    metadata,
    sa.Column("model", sa.String(255), primary_key=True),
    sa.Column("holder", Id),
    sa.Column("due_at", sa.Double, nullable=False),
)
"""Which collector has promised to look again, and when: the others need not wait as well."""

_job = jobs.table.c
_MOST_READ = 1024


@dataclass(frozen=True, slots=True)
class Turn:
    """A lane's place in the rotation, and the database's clock when it was read."""

    lane: str
    last_owner: str
    deficit: float
    cut_at: float
    clock: float


@dataclass(frozen=True, slots=True)
class Candidate:
    """A queued job as the policy sees it. `pos` is in microseconds; `prefix` is 0 where nothing is known of it."""

    id: str
    owner: str
    tokens: int
    pos: int
    prefix: int = 0


def lock(tx: sa.Connection, model: str) -> dict[str, Turn]:
    """Lock a model's turns, by lane, for the rest of the transaction; a second collector waits here."""
    chosen = sa.select(turns, now().label("clock")).where(turns.c.model == model).order_by(turns.c.lane)
    found = tx.execute(chosen.with_for_update()).all()
    if len(found) < len(LANES):
        fresh = [{"model": model, "lane": lane, "last_owner": "", "deficit": 0.0, "cut_at": 0.0} for lane in LANES]
        tx.execute(upsert(tx, turns).on_conflict_do_nothing(), fresh)
        found = tx.execute(chosen.with_for_update()).all()
    return {row.lane: Turn(row.lane, row.last_owner, row.deficit, row.cut_at, row.clock) for row in found}


def advance(tx: sa.Connection, model: str, turn: Turn, *, cut: bool) -> None:
    """Store a lane's turn; `cut` says that it just got a batch."""
    values = {"last_owner": turn.last_owner, "deficit": turn.deficit}
    mine = (turns.c.model == model, turns.c.lane == turn.lane)
    tx.execute(sa.update(turns).where(*mine).values(**values, **({"cut_at": now()} if cut else {})))


def _waiting_jobs(model: str, lane: str) -> tuple[sa.ColumnElement[bool], ...]:
    return (_job.model == model, _job.lane == lane, _job.state == literal("queued"), _job.cohort_id.is_(None))


def waiting(tx: sa.Connection, model: str) -> list[str]:
    """Return the lanes in which jobs of a model are queued, in the order they are served."""
    probes = [sa.exists().where(*_waiting_jobs(model, lane)).label(lane) for lane in LANES]
    row = tx.execute(sa.select(*probes)).one()
    return [lane for lane in LANES if getattr(row, lane)]


def candidates(tx: sa.Connection, model: str, lane: str, last_owner: str, most: int) -> list[Candidate]:
    """Return the heads of the owners' lines, the owner behind `last_owner` first; at least `most` where there are.

    At most `most` owners are looked at, since no batch has room for more.
    """
    if tx.dialect.name == "postgresql":
        return _candidates_postgresql(tx, model, lane, last_owner, most)
    owners = _owners_sqlite(tx, model, lane, last_owner, most)
    depth = _depth(most, len(owners))
    columns = (_job.id, _job.owner, _job.tokens, _job.pos, _job.prefix)
    lines = (
        sa.select(*columns).where(*_waiting_jobs(model, lane), _job.owner == owner).order_by(_job.pos).limit(depth)
        for owner in owners
    )
    return [Candidate(*row) for line in lines for row in tx.execute(line)]


def _depth(most: int, owners: int) -> int:
    # How far to read each owner's line: enough for one owner to fill the batch, but bounded when there are many. So
    # many owners that each needs to give one job only are not read any further: that would cost with the queue's depth.
    return 1 if owners >= most else min(most, max(_MOST_READ, most) // max(1, owners))


def _owners_sqlite(tx: sa.Connection, model: str, lane: str, last_owner: str, most: int) -> list[str]:
    """Return up to `most` owners by hops through the index: behind `last_owner` first, then from the start."""
    owners: list[str] = []
    at: str | None = last_owner
    wrapped = False
    while len(owners) < most:
        hop = sa.select(sa.func.min(_job.owner)).where(*_waiting_jobs(model, lane))
        owner = tx.execute(hop if at is None else hop.where(_job.owner > at)).scalar_one()
        if wrapped and (owner is None or owner > last_owner):
            break
        if owner is None:
            at, wrapped = None, True
            continue
        owners.append(owner)
        at = owner
    return owners


_CANDIDATES = sa.text(
    """
    WITH RECURSIVE behind AS (
        (SELECT owner, 1 AS nth FROM jobs
         WHERE model = :model AND lane = :lane AND state = 'queued' AND cohort_id IS NULL AND owner > :last
         ORDER BY owner LIMIT 1)
        UNION ALL
        SELECT hop.owner, behind.nth + 1 FROM behind CROSS JOIN LATERAL (
            SELECT owner FROM jobs
            WHERE model = :model AND lane = :lane AND state = 'queued' AND cohort_id IS NULL AND owner > behind.owner
            ORDER BY owner LIMIT 1) hop
        WHERE behind.nth < :most
    ), before AS (
        (SELECT owner, 1 AS nth FROM jobs
         WHERE model = :model AND lane = :lane AND state = 'queued' AND cohort_id IS NULL AND owner <= :last
         ORDER BY owner LIMIT 1)
        UNION ALL
        SELECT hop.owner, before.nth + 1 FROM before CROSS JOIN LATERAL (
            SELECT owner FROM jobs
            WHERE model = :model AND lane = :lane AND state = 'queued' AND cohort_id IS NULL
              AND owner > before.owner AND owner <= :last
            ORDER BY owner LIMIT 1) hop
        WHERE before.nth < :most
    ), owners AS (
        SELECT owner, nth FROM behind UNION ALL SELECT owner, nth + :most FROM before ORDER BY nth LIMIT :most
    ), counted AS (
        SELECT owner, nth, CASE WHEN total >= :most THEN 1 ELSE least(:most, :read / total) END AS depth
        FROM (SELECT owner, nth, count(*) OVER () AS total FROM owners) numbered
    )
    SELECT line.id, counted.owner, line.tokens, line.pos, line.prefix FROM counted CROSS JOIN LATERAL (
        SELECT id, tokens, pos, prefix FROM jobs
        WHERE model = :model AND lane = :lane AND state = 'queued' AND cohort_id IS NULL AND owner = counted.owner
        ORDER BY pos LIMIT counted.depth) line
    ORDER BY counted.nth, line.pos
    """
)


def _candidates_postgresql(tx: sa.Connection, model: str, lane: str, last_owner: str, most: int) -> list[Candidate]:
    values = {"model": model, "lane": lane, "last": last_owner, "most": most, "read": max(_MOST_READ, most)}
    return [Candidate(*row) for row in tx.execute(_CANDIDATES, values)]


def promise(tx: sa.Connection, model: str, holder: str, within: float) -> bool:
    """Promise to look at a model again in so many seconds. False: another collector will, as soon or sooner."""
    row = {"model": model, "holder": holder, "due_at": now() + within}
    taken = (
        upsert(tx, collectors)
        .values(row)
        .on_conflict_do_update(
            index_elements=["model"],
            set_={"holder": holder, "due_at": now() + within},
            where=sa.or_(
                collectors.c.holder.is_(None),
                collectors.c.holder == holder,
                collectors.c.due_at > now() + within,
                # It should have looked a second ago: it died.
                collectors.c.due_at < now() - 1.0,
            ),
        )
    )
    # What an upsert counts as its rows differs between databases; what it returns does not.
    return tx.execute(taken.returning(collectors.c.model)).first() is not None


def promised(tx: sa.Connection, model: str, within: float) -> bool:
    """Tell whether some collector has promised to look at a model within so many seconds."""
    holds = (
        collectors.c.model == model,
        collectors.c.holder.is_not(None),
        collectors.c.due_at <= now() + within,
        collectors.c.due_at >= now() - 1.0,
    )
    return tx.execute(sa.select(sa.exists().where(*holds))).scalar_one()


def fulfil(tx: sa.Connection, model: str, holder: str) -> None:
    """Withdraw a promise, if it is still this holder's."""
    mine = (collectors.c.model == model, collectors.c.holder == holder)
    tx.execute(sa.update(collectors).where(*mine).values(holder=None))


def models_with_work(tx: sa.Connection) -> Sequence[str]:
    """Return the models for which jobs are queued, by hops through the index."""
    hops = sa.text(
        """
        WITH RECURSIVE hop(model) AS (
            SELECT min(model) FROM jobs WHERE state = 'queued' AND cohort_id IS NULL
            UNION ALL
            SELECT (SELECT min(model) FROM jobs WHERE state = 'queued' AND cohort_id IS NULL AND jobs.model > hop.model)
            FROM hop WHERE hop.model IS NOT NULL
        )
        SELECT model FROM hop WHERE model IS NOT NULL
        UNION
        SELECT DISTINCT model FROM jobs WHERE state = 'queued' AND cohort_id IS NOT NULL
        """
    )
    return tx.execute(hops).scalars().all()
