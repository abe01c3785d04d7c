"""API keys: who a request is from, and what it may do. Only a hash is stored; the key itself is shown once."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from models.db import AnyRow, Id, among, metadata, new_id, now
from models.errors import NotFound, StokerError

table = sa.Table(
    "api_keys",
    metadata,
    sa.Column("id", Id, primary_key=True),
    sa.Column("owner", sa.String(64), nullable=False),
    sa.Column("hash", sa.String(64), nullable=False, unique=True),
    sa.Column("prefix", sa.String(16), nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("revoked_at", sa.Double),
    sa.Column("name", sa.Text, nullable=False, server_default=""),
    sa.Column("scopes", sa.String(64), nullable=False, server_default="submit read"),
    sa.Column("expires_at", sa.Double),
    sa.Column("last_used_at", sa.Double),
    sa.Column("limits", sa.JSON(none_as_null=True)),
    sa.Column("lasts", sa.Double),
)
"""`scopes`: separated by blanks. `limits`: those that differ from the settings, by name. `lasts`: the seconds that the
key was made for, NULL for ever; rotated it ends sooner, and its successors are made for as long as it was."""

sa.Index("api_keys_owner", table.c.owner, table.c.id)

SCOPES = ("submit", "read", "admin")
USUAL = ("submit", "read")
OWNER = re.compile(r"[^\s*\x00-\x1f\x7f]{1,64}")
"""What an owner may be called; `*` means all of them where usage is asked for."""
USED_EVERY = 60.0
"""Seconds within which a use is not noted again."""

_VALID = (table.c.revoked_at.is_(None), sa.or_(table.c.expires_at.is_(None), table.c.expires_at > now()))
_FOUND = (
    table.c.id,
    table.c.owner,
    table.c.scopes,
    table.c.limits,
    (table.c.expires_at - now()).label("expires_in"),
    sa.func.coalesce(table.c.last_used_at < now() - USED_EVERY, sa.true()).label("unnoted"),
)


class KeyEnded(StokerError):
    """The key is revoked or has expired, and nothing can be made of it."""


class LastKey(StokerError):
    """There is no other key that is not revoked: without it the service would be open to its machine."""


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key that was just made; `secret` cannot be read again."""

    id: str
    owner: str
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Found:
    """A valid key. `expires_in`: seconds, None for ever; `unnoted`: its last use is to be noted again."""

    id: str
    owner: str
    scopes: frozenset[str]
    limits: Mapping[str, object] | None
    expires_in: float | None
    unnoted: bool


def _hash(secret: str) -> str:
    # The key is 256 random bits: a plain hash cannot be searched. It is looked up by the index, in a time that may
    # depend on how much of the HASH agrees, which nobody who has not the key can choose.
    return hashlib.sha256(secret.encode()).hexdigest()


def create(
    tx: sa.Connection,
    owner: str,
    *,
    name: str = "",
    scopes: Iterable[str] = USUAL,
    expires_in: float | None = None,
    limits: Mapping[str, float] | None = None,
) -> NewKey:
    """Make a key for an owner; it expires after so many seconds. `limits`: see `models/key_limits.py`."""
    secret = f"sk-stoker-{secrets.token_urlsafe(32)}"
    made = NewKey(new_id("key"), owner, secret)
    tx.execute(
        sa.insert(table).values(
            id=made.id,
            owner=owner,
            hash=_hash(secret),
            prefix=secret[:14],
            created_at=now(),
            revoked_at=None,
            name=name,
            scopes=" ".join(scope for scope in SCOPES if scope in set(scopes)),
            expires_at=None if expires_in is None else now() + expires_in,
            limits=dict(limits) if limits else None,
            lasts=expires_in,
        )
    )
    return made


def find(tx: sa.Connection, secret: str) -> Found | None:
    """Return the key that a client has sent; None when it is unknown, revoked or expired."""
    return _found(tx, table.c.hash == _hash(secret))


def find_by_id(tx: sa.Connection, key_id: str) -> Found | None:
    """Return the key with an id; None when it is unknown, revoked or expired."""
    return _found(tx, table.c.id == key_id)


def _found(tx: sa.Connection, which: sa.ColumnElement[bool]) -> Found | None:
    row = tx.execute(sa.select(*_FOUND).where(which, *_VALID)).one_or_none()
    if row is None:
        return None
    limits = row.limits if isinstance(row.limits, dict) else None
    return Found(row.id, row.owner, frozenset(row.scopes.split()), limits, row.expires_in, bool(row.unnoted))


_STATE = sa.case((table.c.revoked_at.is_not(None), "revoked"), (table.c.expires_at <= now(), "expired"), else_="valid")
_SHOWN = (*(column for column in table.c if column.name not in {"hash", "lasts"}), _STATE.label("state"))


def page(
    tx: sa.Connection, owner: str | None = None, limit: int = 1000, *, after: str | None = None
) -> Sequence[AnyRow]:
    """Return keys, newest first, each with `state`: valid, expired or revoked. Never what could open anything."""
    chosen = sa.select(*_SHOWN).order_by(table.c.id.desc()).limit(limit)
    if after is not None:
        chosen = chosen.where(table.c.id < after)
    return tx.execute(chosen if owner is None else chosen.where(table.c.owner == owner)).all()


def get(tx: sa.Connection, key_id: str) -> AnyRow:
    """Return a key as `page` does. Raises NotFound."""
    row = tx.execute(sa.select(*_SHOWN).where(table.c.id == key_id)).one_or_none()
    if row is None:
        raise NotFound("key", key_id)
    return row


def revoke(tx: sa.Connection, key_id: str) -> bool:
    """Revoke a key for good; return whether it was not revoked before. Raises NotFound."""
    mine = table.c.id == key_id
    if tx.execute(sa.update(table).where(mine, table.c.revoked_at.is_(None)).values(revoked_at=now())).rowcount:
        return True
    if tx.execute(sa.select(sa.exists().where(mine))).scalar_one():
        return False
    raise NotFound("key", key_id)


def revoke_but_last(tx: sa.Connection, key_id: str) -> bool:
    """Revoke a key as `revoke` does, unless no other would be left. Raises LastKey and NotFound."""
    if tx.dialect.name == "postgresql":  # SQLite's transaction that writes is alone
        # Of two that revoke each other's key at once, neither would see what the other does.
        tx.execute(sa.select(sa.func.pg_advisory_xact_lock(sa.func.hashtext("api_keys"), 0)))
    others = sa.exists().where(table.c.revoked_at.is_(None), table.c.id != key_id)
    if not tx.execute(sa.select(others)).scalar_one():
        raise LastKey(f"Key {key_id} is the last one that is not revoked.")
    return revoke(tx, key_id)


def rotate(tx: sa.Connection, key_id: str, overlap: float) -> NewKey:
    """Make a key like this one, which ends after `overlap` seconds; the new one lasts as long as this one was made for.

    Raises NotFound and KeyEnded.
    """
    old = tx.execute(sa.select(table).where(table.c.id == key_id).with_for_update()).one_or_none()
    if old is None:
        raise NotFound("key", key_id)
    ends: Any = now() + overlap
    sooner = sa.case((table.c.expires_at < ends, table.c.expires_at), else_=ends)
    if not tx.execute(sa.update(table).where(table.c.id == key_id, *_VALID).values(expires_at=sooner)).rowcount:
        raise KeyEnded(f"Key {key_id} is revoked or has expired: make a new one with `stoker keys create`.")
    return create(tx, old.owner, name=old.name, scopes=old.scopes.split(), expires_in=old.lasts, limits=old.limits)


def note_used(tx: sa.Connection, key_ids: Iterable[str]) -> None:
    """Note that keys were used a moment ago, unless another process has just done so."""
    stale = sa.or_(table.c.last_used_at.is_(None), table.c.last_used_at < now() - USED_EVERY / 2)
    chosen = sa.select(table.c.id).where(among(table.c.id, sorted(key_ids)), stale).order_by(table.c.id)
    # Another process does the same: whoever comes second leaves the rows to it.
    locked = tx.execute(chosen.with_for_update(skip_locked=True)).scalars().all()
    if locked:
        tx.execute(sa.update(table).where(among(table.c.id, locked)).values(last_used_at=now()))


def any_exist(tx: sa.Connection) -> bool:
    """Tell whether there is a key that is not revoked, be it expired: then every request needs one.

    A key that runs out must not open the service to everybody on the machine; who revokes the last one has chosen so.
    """
    return tx.execute(sa.select(sa.exists().where(table.c.revoked_at.is_(None)))).scalar_one()
