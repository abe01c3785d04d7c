"""API keys: who a request is from. Only a hash is stored; the key itself is shown once."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass, field

import sqlalchemy as sa

from models.db import Id, metadata, new_id, now

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
)
"""`scopes`: separated by blanks. `limits`: those that differ from the settings, by name."""

sa.Index("api_keys_owner", table.c.owner, table.c.id)


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key that was just made; `secret` cannot be read again."""

    id: str
    owner: str
    secret: str = field(repr=False)


def _hash(secret: str) -> str:
    # The key is 256 random bits: a plain hash cannot be searched, and is compared by the index.
    return hashlib.sha256(secret.encode()).hexdigest()


def create(tx: sa.Connection, owner: str) -> NewKey:
    """Make a key for an owner."""
    secret = f"sk-stoker-{secrets.token_urlsafe(32)}"
    made = NewKey(new_id("key"), owner, secret)
    tx.execute(
        sa.insert(table).values(
            id=made.id, owner=owner, hash=_hash(secret), prefix=secret[:14], created_at=now(), revoked_at=None
        )
    )
    return made


def owner_of(tx: sa.Connection, secret: str) -> str | None:
    """Return the owner behind a key, None when it is unknown or revoked."""
    valid = sa.select(table.c.owner).where(table.c.hash == _hash(secret), table.c.revoked_at.is_(None))
    return tx.execute(valid).scalar_one_or_none()


def any_exist(tx: sa.Connection) -> bool:
    """Tell whether a valid key exists: then every request needs one."""
    return tx.execute(sa.select(sa.exists().where(table.c.revoked_at.is_(None)))).scalar_one()
