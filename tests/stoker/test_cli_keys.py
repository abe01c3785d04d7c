"""`stoker keys` and `stoker usage`: what is shown, what is never shown, and what is said when it is asked twice."""

from __future__ import annotations

import json
from typing import Any

import pytest

from models import keys, usage
from models.db import Database
from stoker.client import Client
from tests.models import given
from tests.stoker.test_cli import stoker
from tests.stoker.test_client import app, client  # noqa: F401  # fixtures

LIMITS = ("--limit", "requests_per_second=0.5", "--limit", "jobs_queued=5")


@pytest.fixture
def ran(sqlite_url: str) -> Any:
    """Return a function that runs `stoker keys` on the test's database, and returns what it printed."""

    def run(*arguments: str, status: int = 0) -> str:
        result = stoker("keys", *arguments, "--database-url", sqlite_url)
        assert result.exit_code == status, result.output
        return (result.stdout if status == 0 else result.stderr).strip()

    return run


def test_a_key_is_made_as_it_is_asked_for(ran: Any, sqlite_database: Database) -> None:
    """With name, scopes, end and limits."""
    made = json.loads(
        ran("create", "--owner", "ci", "--name", "nightly", "--scopes", "submit", "--expires", "90d", *LIMITS, "--json")
    )
    with sqlite_database.reading() as tx:
        found = keys.find(tx, made["key"])
    assert found is not None
    assert (found.id, found.owner, found.scopes) == (made["id"], "ci", {"submit"})
    assert found.limits == {"requests_per_second": 0.5, "jobs_queued": 5}
    assert found.expires_in == pytest.approx(90 * 86_400, abs=60)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--owner", ""), "--owner"),
        (("--owner", "*"), "--owner"),
        (("--owner", "a b"), "--owner"),
        (("--owner", "x" * 65), "--owner"),
        (("--owner", "a", "--scopes", "write"), "submit, read, admin"),
        (("--owner", "a", "--scopes", ","), "submit, read, admin"),
        (("--owner", "a", "--expires", "soon"), "90d"),
        (("--owner", "a", "--expires", "999999999d"), "90d"),
        (("--owner", "a", "--limit", "speed=1"), "choose from"),
        (("--owner", "a", "--limit", "streams=-1"), "whole number"),
    ],
)
def test_what_is_wrong_is_one_line(ran: Any, sqlite_database: Database, arguments: tuple[str, ...], says: str) -> None:
    """With status 2, what there is, and no key made."""
    said = ran("create", *arguments, status=2)
    assert says in said
    assert "\n" not in said
    assert given.rows(sqlite_database, keys.table) == []


def test_keys_are_listed_without_secrets(ran: Any, sqlite_database: Database) -> None:
    """As a table or as JSON, newest first."""
    assert ran("list") == "there are no keys"
    secret = ran("create", "--owner", "alice", *LIMITS)
    ran("create", "--owner", "bob", "--expires", "1h")
    with sqlite_database.transaction() as tx:
        keys.note_used(tx, [row.id for row in keys.page(tx, "alice")])
    table = ran("list").splitlines()
    assert [line.split()[2] for line in table] == ["OWNER", "bob", "alice"]
    assert "requests_per_second=0.5,jobs_queued=5" in table[2]
    assert "submit,read" in table[1]
    listed = json.loads(ran("list", "--owner", "alice", "--json"))
    assert [(row["owner"], row["state"]) for row in listed] == [("alice", "valid")]
    assert listed[0]["last_used_at"] > 0
    (hashed,) = {row.hash for row in given.rows(sqlite_database, keys.table) if row.owner == "alice"}
    for text in (*table, json.dumps(listed)):
        assert secret not in text
        assert hashed not in text
    assert ran("list", "--owner", "carol") == "there are no keys of carol"


def test_revoking_twice_is_fine(ran: Any, sqlite_url: str, sqlite_database: Database) -> None:
    """It says so; and of the last key, that the service is open to the machine now."""
    first, second = (json.loads(ran("create", "--owner", "alice", "--json"))["id"] for _ in range(2))
    assert ran("revoke", first) == f"{first} is revoked"
    assert ran("revoke", first) == f"{first} was revoked already"
    last = stoker("keys", "revoke", second, "--database-url", sqlite_url)
    assert "the last key" in last.stderr
    assert "key_none" in ran("revoke", "key_none", status=1)
    assert {row["state"] for row in json.loads(ran("list", "--json"))} == {"revoked"}


def test_a_key_is_rotated(ran: Any, sqlite_database: Database) -> None:
    """Both work at first; one that is revoked has no successor."""
    made = json.loads(ran("create", "--owner", "alice", "--json"))
    new = ran("rotate", made["id"], "--overlap", "7d")
    with sqlite_database.reading() as tx:
        found = [keys.find(tx, secret) for secret in (made["key"], new)]
    assert [one and one.owner for one in found] == ["alice", "alice"]
    ran("revoke", made["id"])
    assert "make a new one" in ran("rotate", made["id"], status=1)
    assert "90d" in ran("rotate", made["id"], "--overlap", "x", status=2)


def test_usage_is_shown(client: Client, sqlite_database: Database) -> None:  # noqa: F811  # a fixture
    """Of the last days, one's own or everybody's, as a table or as JSON; and by the client."""
    with sqlite_database.transaction() as tx:
        today = usage.day(tx)
        counts = dict.fromkeys(usage.STATES + usage.TOKENS, 3)
        rows = [
            {"owner": owner, "day": today - age, "model": "fake", "engine": "e"} | counts
            for owner in ("local", "bob")
            for age in (0, 30)
        ]
        tx.execute(usage.table.insert(), rows)
    url = str(client._http.base_url)
    table = stoker("usage", "--url", url).stdout.splitlines()
    assert len(table) == 2
    assert table[1].split()[1:] == ["local", "fake", *"3333333"]
    everybody = json.loads(stoker("usage", "--all-owners", "--days", "60", "--json", "--url", url).stdout)
    assert [row["owner"] for row in everybody] == ["bob", "local"] * 2
    assert stoker("usage", "--model", "none", "--url", url).stderr.strip() == "nothing was used in these days"
    (mine,) = client.usage()
    assert (mine.jobs["succeeded"], mine.tokens["total"]) == (3, 6)
    assert client.usage("2020-01-01", "2020-01-02") == []
