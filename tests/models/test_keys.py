"""API keys: shown once, stored as a hash, with an end and with limits of their own."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from models import key_limits, keys
from models.db import Database
from models.errors import NotFound
from models.key_limits import BadLimit, Limits
from models.keys import LastKey
from stoker.settings import Settings
from tests.models import given


def row_of(database: Database, key_id: str) -> Any:
    """Return a key's row."""
    (found,) = [row for row in given.rows(database, keys.table) if row.id == key_id]
    return found


def owner_of(database: Database, secret: str) -> str | None:
    """Return whose a key is, as the door would find."""
    with database.reading() as tx:
        found = keys.find(tx, secret)
    return found and found.owner


def test_a_key_names_its_owner(database: Database) -> None:
    """By its secret or its id; an unknown one names nobody."""
    with database.transaction() as tx:
        alice, bob = keys.create(tx, "alice"), keys.create(tx, "bob", scopes=["read", "admin"], limits={"streams": 2})
        found = keys.find(tx, bob.secret)
        assert found == keys.find_by_id(tx, bob.id)
        assert keys.find(tx, alice.secret + "x") is keys.find(tx, "") is keys.find_by_id(tx, "key_x") is None
    assert owner_of(database, alice.secret) == "alice"
    assert found is not None
    assert (found.owner, found.scopes, found.limits) == ("bob", {"read", "admin"}, {"streams": 2})
    assert found.expires_in is None


def test_a_revoked_key_is_worth_nothing(database: Database) -> None:
    """It names nobody, and a service with revoked keys alone counts as one without keys; twice is once."""
    with database.transaction() as tx:
        assert not keys.any_exist(tx)
        made = keys.create(tx, "alice")
        assert keys.any_exist(tx)
        assert keys.revoke(tx, made.id)
        assert not keys.revoke(tx, made.id)
        assert keys.find(tx, made.secret) is keys.find_by_id(tx, made.id) is None
        assert not keys.any_exist(tx)
        with pytest.raises(NotFound):
            keys.revoke(tx, "key_none")


def test_an_expired_key_opens_nothing_and_keeps_the_door_shut(database: Database) -> None:
    """It names nobody, and the service does not become open to everybody by it."""
    with database.transaction() as tx:
        made = keys.create(tx, "alice", expires_in=1000.0)
    with database.reading() as tx:
        found = keys.find(tx, made.secret)
    assert found is not None
    assert found.expires_in == pytest.approx(1000.0, abs=30)
    given.change(database, keys.table, expires_at=time.time() - 1)
    with database.reading() as tx:
        assert keys.find(tx, made.secret) is keys.find_by_id(tx, made.id) is None
        assert keys.any_exist(tx)
        assert [row.state for row in keys.page(tx)] == ["expired"]


def test_a_rotated_key_works_until_the_overlap_is_over(database: Database) -> None:
    """The new one is like the old one, and lasts as long as that was to; the old one ends, never later than before."""
    limits = {"tokens_per_day": 5}
    with database.transaction() as tx:
        old = keys.create(tx, "alice", name="ci", scopes=["submit"], expires_in=10_000.0, limits=limits)
        new = keys.rotate(tx, old.id, 60.0)
    before, after = row_of(database, old.id), row_of(database, new.id)
    assert new.secret != old.secret
    assert owner_of(database, old.secret) == owner_of(database, new.secret) == "alice"
    assert (after.name, after.scopes, after.limits) == ("ci", "submit", limits)
    assert after.expires_at - after.created_at == pytest.approx(10_000.0, abs=1)
    assert before.expires_at - after.created_at == pytest.approx(60.0, abs=1)
    with database.transaction() as tx:
        keys.rotate(tx, old.id, 6000.0)
    assert row_of(database, old.id).expires_at == before.expires_at


@pytest.mark.parametrize("lasts", [10_000.0, None])
def test_a_key_that_is_rotated_again_is_not_made_shorter(database: Database, lasts: float | None) -> None:
    """During the overlap the old key ends soon; what is made of it lasts as long as it was made for."""
    with database.transaction() as tx:
        old = keys.create(tx, "alice", expires_in=lasts)
        first, second = keys.rotate(tx, old.id, 60.0), keys.rotate(tx, old.id, 60.0)
        third = keys.rotate(tx, second.id, 60.0)
    for made in (first, third):
        row = row_of(database, made.id)
        assert (row.expires_at and round(row.expires_at - row.created_at)) == lasts


def test_what_has_ended_is_not_rotated(database: Database) -> None:
    """Else a key that somebody took away would live on under another name."""
    with database.transaction() as tx:
        made = keys.create(tx, "alice")
        keys.revoke(tx, made.id)
        with pytest.raises(keys.KeyEnded):
            keys.rotate(tx, made.id, 60.0)
        with pytest.raises(NotFound):
            keys.rotate(tx, "key_none", 60.0)
    assert len(given.rows(database, keys.table)) == 1


def test_a_use_is_noted_once_a_minute(database: Database) -> None:
    """By whoever comes first; what is noted is told at the next look."""
    with database.transaction() as tx:
        made, other = keys.create(tx, "alice"), keys.create(tx, "alice")
        found = keys.find(tx, made.secret)
        assert found is not None
        assert found.unnoted
        keys.note_used(tx, [made.id, "key_gone"])
    at = row_of(database, made.id).last_used_at
    assert at == pytest.approx(time.time(), abs=30)
    assert row_of(database, other.id).last_used_at is None
    with database.transaction() as tx:
        keys.note_used(tx, [made.id])
        again = keys.find(tx, made.secret)
    assert again is not None
    assert not again.unnoted
    assert row_of(database, made.id).last_used_at == at
    given.change(database, keys.table, keys.table.c.id == made.id, last_used_at=at - 100)
    with database.reading() as tx:
        later = keys.find(tx, made.secret)
    assert later is not None
    assert later.unnoted


def test_two_processes_note_the_same_keys(database: Database) -> None:
    """At the same moment, in any order: neither fails."""
    with database.transaction() as tx:
        ids = [keys.create(tx, "alice").id for _ in range(20)]
    failed: list[BaseException] = []

    def note(order: list[str]) -> None:
        try:
            with database.transaction() as tx:
                keys.note_used(tx, order)
        except BaseException as error:  # noqa: BLE001  # for the test to see
            failed.append(error)

    threads = [threading.Thread(target=note, args=(ids[:: 1 - 2 * (nth % 2)],)) for nth in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed
    assert all(row.last_used_at for row in given.rows(database, keys.table))


def test_the_secret_is_stored_nowhere(database: Database) -> None:
    """Neither in the table, nor in a list, nor in the text of the object that is logged by mistake."""
    with database.transaction() as tx:
        made = keys.create(tx, "alice")
        listed = keys.page(tx, "alice")
        assert keys.page(tx, "bob") == []
    (row,) = given.rows(database, keys.table)
    assert made.secret not in repr(made)
    assert made.secret not in [str(value) for value in row]
    assert row.hash not in [str(value) for value in listed[0]]
    assert made.secret.startswith(row.prefix)
    assert len(row.prefix) < len(made.secret) / 3


def test_limits_are_the_settings_unless_the_key_has_its_own(settings: Settings) -> None:
    """Its own also where it says that there is none; what nobody understands is passed over."""
    usual = settings.model_copy(update={"key_streams": 3, "key_tokens_per_day": 100, "max_queued_per_owner": 7})
    assert key_limits.of(usual) == Limits(streams=3, tokens_per_day=100, jobs_queued=7)
    own = {"streams": 0, "requests_per_second": 2.5, "body_bytes": -1, "tokens_queued": "many", "colour": 3}
    assert key_limits.of(usual, own) == Limits(streams=0, tokens_per_day=100, jobs_queued=7, requests_per_second=2.5)


@pytest.mark.parametrize(
    ("given_", "says"),
    [
        ("speed=3", "choose from requests_per_second"),
        ("streams", "whole number"),
        ("streams=2.5", "whole number"),
        ("streams=-1", "whole number"),
        ("requests_per_second=nan", "takes a number"),
        ("requests_per_second=1e-7", "0.000001 at least"),
        ("requests_per_second=1e-300", "0.000001 at least"),
        ("tokens_per_day=inf", "whole number"),
        ("tokens_per_day=1e99", "whole number"),
    ],
)
def test_a_limit_that_is_none_is_refused(given_: str, says: str) -> None:
    """With a text that says what there is."""
    with pytest.raises(BadLimit, match=says):
        key_limits.parse([given_])


def test_limits_are_read_as_they_are_written() -> None:
    """Numbers, the last of a name being right."""
    assert key_limits.parse(["requests_per_second=0.5", "streams=1", "streams=4"]) == {
        "requests_per_second": 0.5,
        "streams": 4,
    }


def test_of_two_who_revoke_each_others_key_one_is_too_late(database: Database) -> None:
    """The last key stays, whoever comes second; one that was revoked before is no other key."""
    with database.transaction() as tx:
        first, second = keys.create(tx, "alice"), keys.create(tx, "bob")

    def revoke(key_id: str) -> bool:
        try:
            with database.transaction() as tx:
                return keys.revoke_but_last(tx, key_id)
        except LastKey:
            return False

    done = given.together([lambda: revoke(first.id), lambda: revoke(second.id)])
    assert sorted(done) == [False, True]
    with database.reading() as tx:
        assert keys.any_exist(tx)
        assert sorted(row.state for row in keys.page(tx)) == ["revoked", "valid"]
        with pytest.raises(NotFound):
            keys.get(tx, "key_none")


def test_keys_are_paged(database: Database) -> None:
    """Newest first, from behind an id."""
    with database.transaction() as tx:
        ids = [keys.create(tx, "alice").id for _ in range(3)]
        assert [row.id for row in keys.page(tx, "alice", 2)] == ids[:0:-1]
        assert [row.id for row in keys.page(tx, limit=2, after=ids[1])] == ids[:1]
