"""How many jobs wait, of one owner and of all, and their tokens: counted up to a bound, by partial indexes.

Waiting is what no engine has begun and no batch holds: queued, or delayed. A million are counted in about a tenth of a
second; `models/room.py` sees to it that this is done seldom.
"""

from __future__ import annotations

import sqlalchemy as sa

from models.bulks import PAUSED
from stoker.settings import LANES

_LANES = " UNION ALL ".join(f"SELECT '{lane}' AS lane" for lane in (*LANES, PAUSED))

# By hops through jobs_queue to each model and lane, and there to the owner's own stretch: what others have queued is
# not read. `owner || ''`, for an index by owner holds all that the owner ever had.
_OF_OWNER = """
    WITH RECURSIVE hop(model) AS (
        SELECT min(model) FROM jobs WHERE state = 'queued' AND cohort_id IS NULL
        UNION ALL
        SELECT (SELECT min(model) FROM jobs WHERE state = 'queued' AND cohort_id IS NULL AND jobs.model > hop.model)
        FROM hop WHERE hop.model IS NOT NULL
    )
    SELECT coalesce(sum((
        SELECT {counted} FROM (
            SELECT tokens FROM jobs
            WHERE jobs.model = hop.model AND jobs.lane = lanes.lane AND owner = :owner
              AND state = 'queued' AND cohort_id IS NULL
            ORDER BY pos LIMIT :most) line)), 0)
        + (SELECT {counted} FROM jobs WHERE state = 'queued' AND cohort_id IS NOT NULL AND owner || '' = :owner)
        + (SELECT {counted} FROM jobs WHERE state = 'delayed' AND owner || '' = :owner)
    FROM hop CROSS JOIN ({lanes}) lanes WHERE hop.model IS NOT NULL
    """
_JOBS_OF_OWNER = sa.text(_OF_OWNER.format(counted="count(*)", lanes=_LANES))
_TOKENS_OF_OWNER = sa.text(_OF_OWNER.format(counted="coalesce(sum(tokens), 0)", lanes=_LANES))
_OF_ALL = sa.text(
    """
    SELECT (SELECT count(*) FROM (
                SELECT 1 FROM jobs WHERE state = 'queued' AND cohort_id IS NULL LIMIT :most) line)
        + (SELECT count(*) FROM jobs WHERE state = 'queued' AND cohort_id IS NOT NULL)
        + (SELECT count(*) FROM (SELECT 1 FROM jobs WHERE state = 'delayed' LIMIT :most) later)
    """
)


def of_owner(tx: sa.Connection, owner: str, most: int) -> int:
    """Return how many jobs of an owner wait; from `most` on it may be more."""
    return int(tx.execute(_JOBS_OF_OWNER, {"owner": owner, "most": most}).scalar_one())


def tokens_of_owner(tx: sa.Connection, owner: str, most: int) -> int:
    """Return how many tokens an owner's waiting jobs are estimated to take; of each lane `most` jobs are read."""
    return int(tx.execute(_TOKENS_OF_OWNER, {"owner": owner, "most": most}).scalar_one())


def of_all(tx: sa.Connection, most: int) -> int:
    """Return how many jobs wait; from `most` on it may be more."""
    return int(tx.execute(_OF_ALL, {"most": most}).scalar_one())
