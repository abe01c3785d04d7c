"""API keys: shown once, stored as a hash."""

from __future__ import annotations

import time

from models import keys
from models.db import Database
from tests.models import given


def test_a_key_names_its_owner(database: Database) -> None:
    """An unknown one names nobody."""
    with database.transaction() as tx:
        alice, bob = keys.create(tx, "alice"), keys.create(tx, "bob")
        assert keys.owner_of(tx, alice.secret) == "alice"
        assert keys.owner_of(tx, bob.secret) == "bob"
        assert keys.owner_of(tx, alice.secret + "x") is None
        assert keys.owner_of(tx, "") is None


def test_a_revoked_key_is_worth_nothing(database: Database) -> None:
    """It names nobody, and a service with revoked keys alone counts as one without keys."""
    with database.transaction() as tx:
        assert not keys.any_exist(tx)
        secret = keys.create(tx, "alice").secret
        assert keys.any_exist(tx)
    given.change(database, keys.table, revoked_at=time.time())
    with database.reading() as tx:
        assert keys.owner_of(tx, secret) is None
        assert not keys.any_exist(tx)


def test_the_secret_is_stored_nowhere(database: Database) -> None:
    """Neither in the table nor in the text of the object that is logged by mistake."""
    with database.transaction() as tx:
        made = keys.create(tx, "alice")
    (row,) = given.rows(database, keys.table)
    assert made.secret not in repr(made)
    assert made.secret not in [str(value) for value in row]
    assert made.secret.startswith(row.prefix)
    assert len(row.prefix) < len(made.secret) / 3
