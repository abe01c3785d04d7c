"""The console's page of API keys: who sees which, who makes and revokes them, and where a secret never is."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

import pytest
import structlog
from flask.testing import FlaskClient

from models import idempotency, keys
from models.db import Database, new_id
from tests.models import given
from tests.webapi.console_kit import Browser, once_of
from tests.webapi.key_kit import bearer
from webapi.context import Context

PATH = "/dashboard/keys"
HOSTILE = "<img src=x>"


@pytest.fixture
def admin(client: FlaskClient, database: Database) -> Browser:
    """Return a browser of an admin."""
    return Browser(client, database, "ops", keys.SCOPES)


def row_of(database: Database, key_id: str) -> Any:
    """Return a key's row."""
    (found,) = given.rows(database, keys.table, keys.table.c.id == key_id)
    return found


def test_a_service_without_keys_says_how_the_first_is_made(client: FlaskClient, database: Database) -> None:
    """By the command; not from here, where nobody has shown who they are."""
    page = client.get(PATH)
    assert page.status_code == 200
    assert "stoker keys create" in page.text
    assert "<form" not in page.text
    form = {"csrf": "", "owner": "me", "scopes": "admin"}
    assert client.post(PATH, data=form).status_code == 409
    assert not given.rows(database, keys.table)


def test_an_admin_makes_a_key_that_is_shown_once(
    admin: Browser, client: FlaskClient, database: Database, context: Context
) -> None:
    """With what the form says; the secret is in this one answer, in no log and nowhere in the database."""
    form = {
        "owner": "ci",
        "name": HOSTILE,
        "scopes": ["submit", "read"],
        "days": "2",
        "limit_jobs_queued": "7",
        "limit_streams": "",
        "once": once_of(admin.get(PATH)),
    }
    with structlog.testing.capture_logs() as logs:
        page = admin.shown(PATH, form)
        again = admin.shown(PATH, form)
    (secret,) = re.findall(r"sk-stoker-[\w-]{43}", page)
    assert client.get("/v1/jobs", headers=bearer(secret)).status_code == 200
    with database.reading() as tx:
        found = keys.find(tx, secret)
    assert found is not None
    row = row_of(database, found.id)
    assert (row.owner, row.name, row.scopes, row.limits) == ("ci", HOSTILE, "submit read", {"jobs_queued": 7})
    assert row.lasts == timedelta(days=2).total_seconds()
    assert "is not made twice" in again
    assert len([one for one in given.rows(database, keys.table) if one.owner == "ci"]) == 1
    made = [line for line in logs if line["event"] == "API key made"]
    assert [(line["key"], line["owner"], line["by"]) for line in made] == [(found.id, "ci", admin.key.id)]
    for place in (again, admin.get(PATH), str(logs), str(given.rows(database, idempotency.table))):
        assert secret[14:] not in place
    assert row.hash not in page + again + admin.get(PATH)
    assert HOSTILE not in page + again


def test_what_is_wrong_stands_at_its_field(admin: Browser, database: Database) -> None:
    """All at once, with what was filled in; no key is made."""
    form = {
        "owner": "a b",
        "name": HOSTILE,
        "scopes": "root",
        "days": "-1",
        "limit_streams": "many",
        "limit_requests_per_second": "nan",
    }
    page = admin.shown(PATH, form, 422)
    for field in ("owner", "scopes", "days", "limit_streams", "limit_requests_per_second"):
        assert f'id="wrong-{field}"' in page
    assert "&lt;img src=x&gt;" in page
    assert HOSTILE not in page
    assert 'id="wrong-scopes"' in admin.shown(PATH, {"owner": "a"}, 422)
    assert 'id="wrong-days"' in admin.shown(PATH, {"owner": "a", "scopes": "read", "days": "soon"}, 422)
    assert len(given.rows(database, keys.table)) == 1


def test_others_see_their_own_keys_and_make_none(admin: Browser, client: FlaskClient, database: Database) -> None:
    """They are told the command; whatever owner their address names, it is their own."""
    ada, reader = Browser(client, database, "ada"), Browser(client, database, "ada", ["read"])
    for browser in (ada, reader):
        page = browser.get(f"{PATH}?owner=ops")
        assert ada.key.id in page
        assert admin.key.id not in page
        assert "stoker keys create --owner ada" in page
        assert browser.send(PATH, {"owner": "ada", "scopes": "read"}).status_code == 403
    assert {ada.key.id, admin.key.id} <= set(re.findall(r"key_\w{32}", admin.get(PATH)))
    assert ada.key.id not in admin.get(f"{PATH}?owner=ops")
    assert "There are no keys of nobody" in " ".join(admin.get(f"{PATH}?owner=nobody").split())
    Browser(client, database, "ada", ["submit"]).get(PATH, 403)


def test_older_keys_are_on_the_next_page(admin: Browser, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """The link keeps the owner that was asked for."""
    monkeypatch.setattr("webapi.console.keys.A_PAGE", 2)
    with database.transaction() as tx:
        made = [keys.create(tx, "a&b").id for _ in range(3)]
    page = admin.get(f"{PATH}?owner=a%26b")
    assert set(re.findall(r"key_\w{32}", page)) == set(made[1:])
    (older,) = re.findall(r'href="([^"]+)" rel="next"', page)
    assert set(re.findall(r"key_\w{32}", admin.get(PATH + older.replace("&amp;", "&")))) == {made[0]}
    admin.get(f"{PATH}?after=x", 422)


def test_a_key_is_revoked_by_who_may_do_as_much(admin: Browser, client: FlaskClient, database: Database) -> None:
    """Another owner's is not there; one that may do more is refused; a key that may only read revokes nothing."""
    ada, reader, boss = (Browser(client, database, "ada", scopes) for scopes in (keys.USUAL, ["read"], keys.SCOPES))
    bob = Browser(client, database, "bob")

    def revoked(browser: Browser, key_id: str) -> tuple[int, bool]:
        status = browser.send(f"{PATH}/{key_id}/revoke").status_code
        rows = given.rows(database, keys.table, keys.table.c.id == key_id)
        return status, any(row.revoked_at is not None for row in rows)

    assert f'data-opens="revoke-{boss.key.id}"' not in ada.get(PATH)
    assert revoked(ada, boss.key.id) == (403, False)
    assert revoked(bob, ada.key.id) == (404, False)
    assert revoked(reader, reader.key.id) == (403, False)
    assert revoked(ada, new_id("key")) == (404, False)
    assert revoked(ada, "key_x") == (404, False)
    assert ada.client.post(f"{PATH}/{reader.key.id}/revoke").status_code == 403  # without the token of the page
    assert f'data-opens="revoke-{reader.key.id}"' in ada.get(PATH)
    assert revoked(ada, reader.key.id) == (303, True)
    assert revoked(admin, bob.key.id) == (303, True)
    assert "is revoked: " in admin.get(f"{PATH}?told=revoked")


def test_who_revokes_the_key_of_the_login_is_logged_out(
    admin: Browser, client: FlaskClient, database: Database
) -> None:
    """At once, and led to the form to log in."""
    ada = Browser(client, database, "ada")
    answer = ada.send(f"{PATH}/{ada.key.id}/revoke")
    assert (answer.status_code, answer.headers["Location"]) == (303, "/dashboard")
    assert 'name="key"' in ada.get("/dashboard")
    assert row_of(database, ada.key.id).revoked_at is not None


def test_the_last_key_is_not_revoked_here(admin: Browser, database: Database) -> None:
    """Without any the service would be open to its machine; the command says so, and does it."""
    answer = admin.send(f"{PATH}/{admin.key.id}/revoke")
    assert answer.status_code == 409
    assert "stoker keys revoke" in answer.text
    assert row_of(database, admin.key.id).revoked_at is None
