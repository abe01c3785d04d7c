"""The console's form to try a model: what its page has; the calls that its script makes are the API's own."""

from __future__ import annotations

import html
import re

from flask.testing import FlaskClient

from models import engines
from models.db import Database
from tests.models import given
from tests.webapi.console_kit import Browser

PATH = "/dashboard/try"
HOSTILE = '"><script>alert(1)</script>'


def test_the_models_that_answer_come_first(client: FlaskClient, database: Database) -> None:
    """Those that no engine serves say so; a name is never markup."""
    given.engine(database, models=["zeta"])
    with database.transaction() as tx:
        engines.remember(tx, "zeta", None, None)
        engines.remember(tx, HOSTILE, None, None)
    page = Browser(client, database).get(PATH)
    (options,) = re.findall(r'<select id="model".*?</select>', page, re.DOTALL)
    listed = [html.unescape(text) for text in re.findall(r"<option[^>]*>([^<]*)", options)]
    assert listed[0] == "zeta"
    assert f"{HOSTILE} (no engine serves it now)" in listed[1:]
    assert HOSTILE not in page


def test_who_may_hand_in_may_try(client: FlaskClient, database: Database) -> None:
    """A key that may only read is refused; the page itself has nothing of a key."""
    Browser(client, database, scopes=["read"]).get(PATH, 403)
    ada = Browser(client, database, scopes=["submit"])
    page = ada.get(PATH)
    assert ada.key.secret[10:] not in page
    for ident in ("stream", "stop", "queue", "answer", "told", "code"):
        assert f'id="{ident}"' in page


def test_a_script_may_do_what_its_page_shows(client: FlaskClient, database: Database) -> None:
    """With the cookie and the token of the page a job is queued, and has a page of its own to be linked to."""
    given.engine(database, models=["fake"])
    ada = Browser(client, database)
    body = {"model": "fake", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 5, "lane": "bulk"}
    with database.transaction() as tx:
        engines.remember(tx, "fake", None, None)
    made = ada.client.post("/v1/jobs", json=body, headers={"X-CSRF-Token": ada.token()})
    assert (made.status_code, made.json["lane"]) == (202, "bulk")
    assert made.json["id"] in ada.get(f"/dashboard/jobs/{made.json['id']}")
