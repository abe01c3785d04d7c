"""All sealed secrets of the database, so that the key they are sealed with can be replaced.

Secrets of ended jobs are among them: a bulk's goes on to its retry, a delivery's to its redelivery.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import sqlalchemy as sa

from models import bulks, deliveries, endpoints, idempotency, jobs
from models.db import AnyRow, Database
from models.owed import OPEN
from models.sealing import MARK, NoSecretKey, Seal

SLICE = 500
"""Rows that are looked at in one transaction."""
_SAMPLE = 50
PAUSE = 2.0
"""Seconds between two rounds, for transactions that read a secret before it was sealed anew and store it yet."""
MOST_ROUNDS = 20

# From where a secret is copied before where it goes: a job that ends, or a bulk that is retried, takes its own along.
_COLUMNS = (
    endpoints.table.c.secret,
    endpoints.table.c.old_secret,
    jobs.bodies.c.webhook_secret,
    bulks.table.c.webhook_secret,
    deliveries.table.c.secret,
)
_COPIES = (endpoints.table.c.old_secret, bulks.table.c.webhook_secret, deliveries.table.c.secret)
_ANSWERS = idempotency.table.c.answer
"""Answers are sealed only where a secret stands in them."""


@dataclass(frozen=True, slots=True)
class Resealed:
    """What became of the secrets: sealed anew with the newest key, sealed with it before, and opened by no key."""

    changed: int = 0
    kept: int = 0
    lost: int = 0

    def __add__(self, other: Resealed) -> Resealed:
        """Return the sums."""
        return Resealed(self.changed + other.changed, self.kept + other.kept, self.lost + other.lost)


def reseal(database: Database, seal: Seal) -> Resealed:
    """Seal every stored secret with the newest key, also what an older version left plain; the service may run.

    Each slice is a transaction of its own: broken off, it is simply run again. Where something was changed, what is
    copied from it is looked at again, until nothing changes. Raises NoSecretKey without any key.
    """
    seal.close("")
    done = _round(database, seal, _COLUMNS)
    done += sum(_slices(database, seal, _ANSWERS, only_sealed=True), Resealed())
    changed = done.changed
    for _ in range(MOST_ROUNDS):
        if not changed:
            break
        time.sleep(PAUSE)
        changed = _round(database, seal, _COPIES).changed
        done += Resealed(changed)
    return done


def _round(database: Database, seal: Seal, columns: Iterable[sa.Column[str]]) -> Resealed:
    return sum(
        (found for column in columns for found in _slices(database, seal, column, only_sealed=False)), Resealed()
    )


def _slices(database: Database, seal: Seal, column: sa.Column[str], *, only_sealed: bool) -> Iterator[Resealed]:
    after: tuple[object, ...] | None = None
    while True:
        with database.transaction() as tx:
            rows = _next(tx, column, after)
            yield sum((_renew(tx, seal, column, row, only_sealed=only_sealed) for row in rows), Resealed())
        if len(rows) < SLICE:
            return
        after = tuple(rows[-1][:-1])


def _next(tx: sa.Connection, column: sa.Column[str], after: tuple[object, ...] | None) -> list[AnyRow]:
    # Along the primary key, whether a row has a secret or not: so each slice ends soon.
    key = list(column.table.primary_key.columns)
    chosen = sa.select(*key, column).order_by(*key).limit(SLICE)
    if after is not None:
        chosen = chosen.where(sa.tuple_(*key) > sa.tuple_(*map(sa.literal, after)))
    return list(tx.execute(chosen))


def _renew(tx: sa.Connection, seal: Seal, column: sa.Column[str], row: AnyRow, *, only_sealed: bool) -> Resealed:
    old = row[-1]
    if not isinstance(old, str) or not old or (only_sealed and not old.startswith(MARK)):
        return Resealed()
    try:
        new = seal.renew(old)
    except NoSecretKey:
        return Resealed(lost=1)
    if new == old:
        return Resealed(kept=1)
    key = zip(column.table.primary_key.columns, row, strict=False)
    # Only if nobody replaced it meanwhile: what is new is sealed with the newest key.
    this = sa.and_(*(part == value for part, value in key), column == old)
    tx.execute(sa.update(column.table).where(this).values({column: new}))
    return Resealed(changed=1)


def locked_out(tx: sa.Connection, seal: Seal) -> tuple[int, int]:
    """Return how many secrets, of those that are needed next, no key opens, and how many were tried."""
    chosen = [
        sa.select(endpoints.table.c.secret).limit(_SAMPLE),
        sa.select(deliveries.table.c.secret)
        .where(OPEN, deliveries.table.c.secret.is_not(None))
        .order_by(deliveries.table.c.next_at)
        .limit(_SAMPLE),
        sa.select(bulks.table.c.webhook_secret)
        .where(bulks.table.c.webhook_secret.is_not(None))
        .order_by(bulks.table.c.id.desc())
        .limit(_SAMPLE),
    ]
    tried = [secret for statement in chosen for secret in tx.execute(statement).scalars()]
    return sum(not _opens(seal, secret) for secret in tried), len(tried)


def _opens(seal: Seal, secret: str) -> bool:
    try:
        seal.open(secret)
    except NoSecretKey:
        return False
    return True
