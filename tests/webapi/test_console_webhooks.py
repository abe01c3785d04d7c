"""The console's pages of webhook endpoints and of their deliveries."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from flask.testing import FlaskClient

from models import deliveries, endpoints
from models.db import AnyRow, Database, new_id
from models.deliveries import NewDelivery
from models.secrets import valid_secret
from stoker.settings import Settings
from tests.models import given
from tests.receivers import Receiver, Reply, receiver
from tests.webapi.console_kit import Browser, once_of
from tests.webapi.hook_kit import opened, sending
from webapi.context import Context

PATH = "/dashboard/webhooks"
HOSTILE = "<script>alert(1)</script>"
FORM = {"name": "mine", "url": "http://127.0.0.1:1025/x", "event_types": ["job.failed", "bulk.completed"]}


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Return settings under which webhooks may go to loopback."""
    return opened(settings)


@pytest.fixture
def ada(client: FlaskClient, database: Database) -> Browser:
    """Return a browser of ada's."""
    return Browser(client, database)


@pytest.fixture
def hooks() -> Iterator[Receiver]:
    """Run a receiver."""
    with receiver() as running:
        yield running


def the_one(database: Database) -> AnyRow:
    """Return the only endpoint."""
    (row,) = given.rows(database, endpoints.table)
    return row


def secret_of(page: str) -> str:
    """Return the secret that a page shows."""
    return str(re.findall(r'<pre id="secret">([^<]+)</pre>', page)[0])


def made(browser: Browser, **fields: Any) -> str:
    """Make an endpoint by the form of its page; return the page that comes of it."""
    return browser.shown(PATH, FORM | {"once": once_of(browser.get(PATH))} | fields)


def stock(database: Database, count: int, endpoint: str = "", owner: str = "ada", state: str = "failed") -> list[str]:
    """Store deliveries that have ended."""
    new = [
        NewDelivery(
            owner, f"job_{owner}_{state}_{endpoint}_{nth}", "job.failed", "http://127.0.0.1:1025/", endpoint_id=endpoint
        )
        for nth in range(count)
    ]
    with database.transaction() as tx:
        ids = deliveries.enqueue(tx, new)
        tx.execute(sa.update(deliveries.table).where(deliveries.table.c.id.in_(ids)).values(state=state))
    return ids


def test_an_endpoint_is_made_once_and_its_secret_shown_then(ada: Browser, database: Database, context: Context) -> None:
    """A form that is sent twice makes one; no other page has the secret, and the database has it sealed."""
    once = once_of(ada.get(PATH))
    first, again = (made(ada, once=once, coalesce="0.5", include_result="yes") for _ in range(2))
    secret = secret_of(first)
    row = the_one(database)
    assert (valid_secret(secret), secret_of(again)) == (True, secret)
    assert (row.owner, row.name, row.url, row.event_types) == ("ada", *FORM.values())
    assert (row.coalesce, row.include_result, row.disabled_at) == (0.5, True, None)
    assert secret not in row.secret
    assert context.seal.open(row.secret) == secret
    for page in (PATH, f"{PATH}/{row.id}"):
        assert secret not in ada.get(page)
        assert "mine" in ada.get(page)


def test_what_is_wrong_stands_at_its_field(ada: Browser, database: Database) -> None:
    """With what was filled in, escaped; nothing is stored."""
    for field, value, why in (
        ("url", "http://10.0.0.1/x", "internal address"),
        ("url", "ftp://example.com", "must begin with http:// or https://"),
        ("url", " ", "must not be empty"),
        ("name", "a\x00b", "NUL"),
        ("name", "x" * 256, "at most 255"),
        ("coalesce", "soon", "must be a number"),
        ("coalesce", "900", "less than or equal to 60"),
        ("event_types", [], "must be one at least"),
        ("event_types", ["job.lost"], "must be one of"),
    ):
        page = ada.shown(PATH, {**FORM, "name": HOSTILE, field: value}, 422)
        (said,) = re.findall(rf'<p class="wrong" id="wrong-{field}">([^<]*)</p>', page)
        assert why in said, field
        assert HOSTILE not in page
        assert field == "name" or "&lt;script&gt;" in page
    assert not given.rows(database, endpoints.table)


def test_there_are_only_so_many_endpoints(ada: Browser, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """The form says so, and keeps what was filled in."""
    monkeypatch.setattr(endpoints, "MOST", 1)
    made(ada)
    page = ada.shown(PATH, FORM | {"name": "another"}, 422)
    assert "another" in page
    assert 'role="alert"' in page
    assert the_one(database).name == "mine"


def test_an_endpoint_is_changed_disabled_enabled_and_deleted(ada: Browser, database: Database) -> None:
    """Each change leads back to a page that says it."""
    made(ada)
    path = f"{PATH}/{the_one(database).id}"
    changed = ada.shown(path, {"name": HOSTILE, "url": "http://127.0.0.1:1026/", "event_types": "job.expired"})
    assert "The endpoint is changed." in changed
    assert HOSTILE not in changed
    row = the_one(database)
    assert (row.name, row.url, row.event_types) == (HOSTILE, "http://127.0.0.1:1026/", ["job.expired"])
    refused = ada.shown(path, {"name": "x", "url": "http://10.0.0.1/", "event_types": "job.expired"}, 422)
    assert 'id="wrong-url"' in refused
    assert "is disabled: " in ada.shown(f"{path}/disable")
    assert the_one(database).disabled_at is not None
    assert "is enabled: " in ada.shown(f"{path}/enable")
    assert the_one(database).disabled_at is None
    assert "The endpoint is deleted." in ada.shown(f"{path}/delete")
    assert not given.rows(database, endpoints.table)


def test_a_new_secret_is_shown_and_the_old_one_signs_for_a_day(
    ada: Browser, database: Database, context: Context
) -> None:
    """A double click changes it once: the secret that receivers know is the one that goes on signing."""
    known = secret_of(made(ada))
    path = f"{PATH}/{the_one(database).id}"
    form = {"old": "keep", "once": once_of(ada.get(path))}
    first, again = (secret_of(ada.shown(f"{path}/secret", form)) for _ in range(2))
    row = the_one(database)
    assert first == again == context.seal.open(row.secret) != known
    assert context.seal.open(row.old_secret) == known
    page = ada.get(path)
    assert "the one before signs too" in page
    assert first not in page
    dropped = secret_of(ada.shown(f"{path}/secret", {"old": "drop", "once": once_of(page)}))
    assert context.seal.open(the_one(database).secret) == dropped != first
    assert the_one(database).old_secret is None


def test_a_test_says_what_the_receiver_answered(
    ada: Browser, database: Database, settings: Settings, hooks: Receiver
) -> None:
    """Its status, be it no success; where nothing answers, why."""
    made(ada, url=f"{hooks.url}/hook")
    path = f"{PATH}/{the_one(database).id}"
    with sending(database, settings):
        assert "answered bulk.failed with status 200." in ada.shown(f"{path}/test", {"event_type": "bulk.failed"})
        hooks.answer = lambda _: Reply(410)
        assert "status 410, which is no success" in ada.shown(f"{path}/test", {"event_type": "job.failed"})
        hooks.answer = lambda _: Reply(cut=True)
        assert "The receiver did not answer" in ada.shown(f"{path}/test", {"event_type": "job.failed"})
    page = ada.shown(f"{path}/test", {"event_type": HOSTILE})
    assert "Choose an event" in page
    assert HOSTILE not in page
    part = ada.client.post(f"{path}/test", data={}, headers={"HX-Request": "true", "X-CSRF-Token": ada.token()})
    assert (part.status_code, part.text.startswith('<div id="tested"')) == (200, True)
    assert len(hooks.received) == 3


def test_deliveries_are_filtered_and_paged(ada: Browser, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """By state, event, endpoint, job and time; older ones by a link that keeps the filters."""
    monkeypatch.setattr("webapi.console.deliveries.A_PAGE", 2)
    ids = stock(database, 3)
    (pending,) = stock(database, 1, state="pending")
    given.change(database, deliveries.table, deliveries.table.c.id == ids[0], created_at=1000.0, event="bulk.failed")

    def listed(query: str) -> list[str]:
        return re.findall(r'href="/dashboard/webhooks/deliveries/(msg_\w+)"', ada.get(f"{PATH}/deliveries{query}"))

    assert listed("?state=failed") == ids[:0:-1]
    older = re.findall(r'href="(\?[^"]+)" rel="next"', ada.get(f"{PATH}/deliveries?state=failed"))[0]
    assert listed(older.replace("&amp;", "&")) == ids[:1]
    assert listed("?state=pending&event=&endpoint_id=&since=&until=") == [pending]
    assert listed("?event=bulk.failed") == ids[:1]
    assert listed("?job_id=job_ada_failed__2") == ids[2:]
    assert listed("?until=1970-01-02T00:00") == []  # by its id it is of today, whatever its row says
    assert listed("?since=2020-01-01T00:00&state=failed") == ids[:0:-1]
    assert "No delivery fits" in ada.get(f"{PATH}/deliveries?endpoint_id=whe_0")
    for bad in ("after=x", "since=yesterday", f"event={'x' * 65}", "state=a%00"):
        ada.get(f"{PATH}/deliveries?{bad}", 422)


def test_a_delivery_shows_its_tries_and_is_sent_again(
    ada: Browser, database: Database, settings: Settings, hooks: Receiver
) -> None:
    """What a receiver answered is shown as text, whatever it is."""
    (ident,) = stock(database, 1)
    values = {"url": f"{hooks.url}/<b>", "try": 3, "status": 500, "latency_ms": 1500, "answer": HOSTILE}
    given.change(database, deliveries.table, deliveries.table.c.id == ident, **values)
    page = ada.get(f"{PATH}/deliveries/{ident}")
    for part in (ident, "500", "1.5 s", "&lt;script&gt;", "/&lt;b&gt;", "Send again"):
        assert part in page
    assert HOSTILE not in page
    assert "It is sent again" in ada.shown(f"{PATH}/deliveries/{ident}/redeliver")
    assert given.rows(database, deliveries.table)[0].state == "pending"
    assert ada.send(f"{PATH}/deliveries/{ident}/redeliver").status_code == 409


def test_a_range_is_sent_again_in_parts(ada: Browser, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """It says how many, and goes on where it ended; what is still on its way cannot be meant."""
    monkeypatch.setattr("webapi.deliveries.MOST_AGAIN", 2)
    monkeypatch.setattr("webapi.deliveries.SLICE", 2)
    stock(database, 3, "whe_1")
    stock(database, 1, "whe_2")
    stock(database, 1, "whe_1", owner="bob")
    form = {"state": "failed", "endpoint_id": "whe_1", "since": "2020-01-01T00:00"}
    first = ada.shown(f"{PATH}/deliveries/redeliver", form)
    assert "2 deliveries are sent again. There are more." in " ".join(first.split())
    after = re.findall(r'name="after" value="([^"]+)"', first)[0]
    assert "1 delivery is sent again." in ada.shown(f"{PATH}/deliveries/redeliver", form | {"after": after})
    states = sorted((row.owner, row.endpoint_id, row.state) for row in given.rows(database, deliveries.table))
    assert states == [*[("ada", "whe_1", "pending")] * 3, ("ada", "whe_2", "failed"), ("bob", "whe_1", "failed")]
    for bad in ({"state": "pending"}, {"state": ""}, {"state": "failed", "job_id": "job_1"}):
        assert ada.send(f"{PATH}/deliveries/redeliver", bad).status_code == 422


def test_others_see_and_change_nothing(ada: Browser, client: FlaskClient, database: Database) -> None:
    """To another owner it is not there; a key that may only read, or only hand in, changes nothing."""
    made(ada)
    (ident,) = stock(database, 1)
    path = f"{PATH}/{the_one(database).id}"
    changes = [f"{path}{what}" for what in ("", "/disable", "/enable", "/secret", "/test", "/delete")]
    changes.append(f"{PATH}/deliveries/{ident}/redeliver")
    bob = Browser(client, database, "bob")
    for page in (path, f"{PATH}/whe_0", f"{PATH}/{new_id('whe')}", f"{PATH}/deliveries/{ident}"):
        bob.get(page, 404)
    assert [bob.send(change, FORM).status_code for change in changes] == [404] * len(changes)
    assert "mine" not in bob.get(PATH)
    assert ident not in bob.get(f"{PATH}/deliveries")
    reader, writer = (Browser(client, database, "ada", [scope]) for scope in ("read", "submit"))
    assert "mine" in reader.get(path)
    for page in (PATH, path, f"{PATH}/deliveries", f"{PATH}/deliveries/{ident}"):
        writer.get(page, 403)
    for browser in (reader, writer):
        for change in (*changes, PATH, f"{PATH}/deliveries/redeliver"):
            assert browser.send(change, FORM).status_code == 403
    assert ada.client.post(f"{path}/delete").status_code == 403  # without the token of the page
    assert the_one(database).disabled_at is None
    assert given.rows(database, deliveries.table)[0].state == "failed"
