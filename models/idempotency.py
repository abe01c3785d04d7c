"""Idempotency keys: the same request sent twice makes one job, and gets the same answer twice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa

from models.db import metadata, now, upsert
from models.errors import KeyBusy, KeyReused

table = sa.Table(
    "idempotency_keys",
    metadata,
    sa.Column("owner", sa.String(64), primary_key=True),
    sa.Column("key", sa.String(255), primary_key=True),
    sa.Column("fingerprint", sa.String(64), nullable=False),
    sa.Column("answer", sa.Text),
    sa.Column("created_at", sa.Double, nullable=False),
)
sa.Index("idempotency_keys_age", table.c.created_at)


def begin(tx: sa.Connection, owner: str, key: str, fingerprint: str) -> str | None:
    """Take a key in this transaction, or return the answer that was given when it was first used.

    On PostgreSQL a second request waits here until the first one's transaction ends; KeyBusy when that takes longer
    than the lock timeout. Raises KeyReused when the body (its fingerprint) is another one.
    """
    taken = upsert(tx, table).values(owner=owner, key=key, fingerprint=fingerprint, created_at=now())
    with _waiting():
        if tx.execute(taken.on_conflict_do_nothing().returning(table.c.key)).first() is not None:
            return None
    first = tx.execute(
        sa.select(table.c.fingerprint, table.c.answer).where(table.c.owner == owner, table.c.key == key)
    ).one_or_none()
    if first is None or first.answer is None:
        raise KeyBusy
    if first.fingerprint != fingerprint:
        raise KeyReused
    return str(first.answer)


@contextmanager
def _waiting() -> Iterator[None]:
    try:
        yield
    except sa.exc.OperationalError as error:
        if getattr(error.orig, "sqlstate", None) == "55P03":  # lock_timeout
            raise KeyBusy from error
        raise


def renew(tx: sa.Connection, owner: str, key: str, answer: str) -> None:
    """Take a key again whose answer names what is no longer there. Raises KeyBusy when another request was faster."""
    mine = (table.c.owner == owner, table.c.key == key, table.c.answer == answer)
    with _waiting():
        if not tx.execute(sa.update(table).where(*mine).values(answer=None, created_at=now())).rowcount:
            raise KeyBusy


def release(tx: sa.Connection, owner: str, key: str, answer: str) -> None:
    """Forget a key in the transaction that takes its work back: the same request then begins anew."""
    tx.execute(sa.delete(table).where(table.c.owner == owner, table.c.key == key, table.c.answer == answer))


def answered(tx: sa.Connection, owner: str, key: str, fingerprint: str) -> str | None:
    """Return the answer that this key and body got before, if any; takes nothing."""
    mine = (table.c.owner == owner, table.c.key == key, table.c.fingerprint == fingerprint)
    return tx.execute(sa.select(table.c.answer).where(*mine)).scalar_one_or_none()


def finish(tx: sa.Connection, owner: str, key: str, answer: str) -> None:
    """Store the answer, in the transaction of the work itself."""
    mine = (table.c.owner == owner, table.c.key == key)
    tx.execute(sa.update(table).where(*mine).values(answer=answer))


def any_older(tx: sa.Connection, age: float) -> bool:
    """Tell whether a key is older than so many seconds."""
    return tx.execute(sa.select(sa.exists().where(table.c.created_at < now() - age))).scalar_one()


def forget(tx: sa.Connection, older_than: float, limit: int = 500) -> int:
    """Delete up to `limit` keys older than so many seconds; return how many."""
    old = sa.select(table.c.owner, table.c.key).where(table.c.created_at < now() - older_than).limit(limit)
    doomed = tx.execute(old).all()
    for owner, key in doomed:
        tx.execute(sa.delete(table).where(table.c.owner == owner, table.c.key == key))
    return len(doomed)
