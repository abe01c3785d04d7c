"""Keys for tests of the door, and what they open."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from models import keys
from models.db import Database


def bearer(secret: str) -> dict[str, str]:
    """Return the header that carries a key."""
    return {"Authorization": f"Bearer {secret}"}


def key_of(
    database: Database,
    owner: str = "ada",
    scopes: Iterable[str] = keys.USUAL,
    limits: Mapping[str, float] | None = None,
) -> dict[str, str]:
    """Make a key and return the header that carries it."""
    with database.transaction() as tx:
        return bearer(keys.create(tx, owner, scopes=scopes, limits=limits).secret)
