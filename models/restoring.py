"""What a restored database is told before the service starts on it: whoever was at work in it is no more.

Without this the leases of the backup would run out, and their jobs be treated as if they had killed an engine.
"""

from __future__ import annotations

import sqlalchemy as sa

from models import batches, bulks, engines
from models.db import one_of
from models.states import BATCH


def begin_again(tx: sa.Connection) -> int:
    """Give back every batch that was under way, uncharged, and let go of every bulk; return the number of batches."""
    returned = batches.give_back(tx, one_of(batches.table.c.state, BATCH.open))
    tx.execute(sa.update(engines.table).values(state="gone"))
    held = bulks.table.c.holder.is_not(None)
    tx.execute(sa.update(bulks.table).where(held).values(holder=None, lease_until=None))
    return len(returned)
