"""The console's page of usage: what was used, as a page and as CSV, and how much of the limits."""

from __future__ import annotations

import csv
import html
import json
import re
from typing import Any

import pytest
from flask.testing import FlaskClient

from models import keys, usage
from models.db import Database
from tests.models import given
from tests.webapi.console_kit import Browser

PATH = "/dashboard/usage"
HOSTILE = "=<b>1"


@pytest.fixture
def today(database: Database) -> int:
    """Return the day that it is, with what ada and bob used of two models on it and on the day before."""
    with database.transaction() as tx:
        day = usage.day(tx)
        none = dict.fromkeys(usage.STATES + usage.TOKENS, 0)
        rows: list[dict[str, Any]] = [
            {
                "owner": "ada",
                "day": day,
                "model": "small",
                "succeeded": 2,
                "prompt_tokens": 30,
                "completion_tokens": 12,
            },
            {"owner": "ada", "day": day - 1, "model": HOSTILE, "failed": 3, "prompt_tokens": 5},
            {"owner": "bob", "day": day, "model": "small", "succeeded": 9, "prompt_tokens": 1234},
        ]
        tx.execute(usage.table.insert(), [none | {"engine": "e"} | row for row in rows])
    return day


def charted(page: str) -> list[dict[str, Any]]:
    """Return what a page's chart shows."""
    found: list[dict[str, Any]] = json.loads(html.unescape(re.findall(r'data-days="([^"]+)"', page)[0]))
    return found


def test_own_usage_by_day_and_model(client: FlaskClient, database: Database, today: int) -> None:
    """The chart has each day's sums, the tables each model's; nobody else's, and nothing of it is markup."""
    ada = Browser(client, database)
    page = ada.get(PATH)
    days = [(day["at"], day["prompt"], day.get("completion"), day["jobs"]) for day in charted(page)]
    assert days == [((today - 1) * usage.DAY, 5, 0, 3), (today * usage.DAY, 30, 12, 2)]
    assert "&lt;b&gt;" in page
    assert "<b>1" not in page
    assert "1,234" not in page
    assert "No job ended" in ada.get(f"{PATH}?from=2020-01-01&to=2020-01-31&model=&owner=")
    assert [day["jobs"] for day in charted(ada.get(f"{PATH}?model=small"))] == [2]


def test_an_admin_sees_everybody(client: FlaskClient, database: Database, today: int) -> None:
    """By owner too; who is none is refused, with the form still there."""
    admin = Browser(client, database, "ops", keys.SCOPES)
    page = admin.get(f"{PATH}?owner=*")
    assert [day["prompt"] for day in charted(page)] == [5, 1264]
    assert "By owner" in page
    assert "1,234" in page
    assert [day["prompt"] for day in charted(admin.get(f"{PATH}?owner=bob"))] == [1234]
    ada = Browser(client, database)
    for bad in ("owner=*", "owner=bob"):
        assert 'role="search"' in ada.get(f"{PATH}?{bad}", 403)
        ada.get(f"{PATH}.csv?{bad}", 403)
    for bad in ("from=soon", "from=2026-02-30", "from=2026-02-02&to=2026-02-01", "model=a%00"):
        ada.get(f"{PATH}?{bad}", 422)
    Browser(client, database, "ada", ["submit"]).get(PATH, 403)


def test_usage_as_csv(client: FlaskClient, database: Database, today: int) -> None:
    """All rows, oldest first; a name that a spreadsheet would take for a formula is one no more."""
    answer = Browser(client, database).client.get(f"{PATH}.csv")
    assert answer.mimetype == "text/csv"
    assert re.fullmatch(r'attachment; filename="usage-[-\d]+\.csv"', answer.headers["Content-Disposition"])
    rows = list(csv.DictReader(answer.text.splitlines()))
    assert [(row["owner"], row["model"], row["failed"]) for row in rows] == [
        ("ada", f"'{HOSTILE}", "3"),
        ("ada", "small", "0"),
    ]
    assert (rows[1]["succeeded"], rows[1]["prompt_tokens"], rows[1]["total_tokens"]) == ("2", "30", "42")


def test_only_so_many_rows_are_shown(
    client: FlaskClient, database: Database, today: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The latest, and the page says that there are more."""
    monkeypatch.setattr("webapi.console.usage.MOST_SHOWN", 1)
    page = Browser(client, database).get(PATH)
    assert "The latest 1 of 2 rows" in page
    assert page.count('data-label="Cached"') == 1


def test_how_much_of_each_limit_is_used(client: FlaskClient, database: Database, today: int) -> None:
    """Of requests, of jobs and tokens that wait, of the day's tokens; what has no limit says none."""
    limits = {"requests_per_second": 50, "jobs_queued": 8, "tokens_queued": 1000, "tokens_per_day": 84}
    ada = Browser(client, database, limits=limits)
    given.submitted(database, 3, owner="ada", tokens=100)
    shown = re.findall(r'<progress(?: class="bad")? max="1" value="([\d.]+)" aria-label="([^"]+)"', ada.get(PATH))
    shares = {name: float(share) for share, name in shown}
    assert shares["Jobs that wait"] == 3 / 8
    assert shares["Tokens that wait"] == 300 / 1000
    assert shares["Tokens today (UTC)"] == 42 / 84
    assert 0 < shares["Requests a second"] <= 1
    assert "Streams open at once, in each web process" not in shares
