"""The console's overview: its shell, what failed lately, and the stream that fills it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from flask.testing import FlaskClient

from models import keys
from models.db import Database
from models.overview import MOST_FAILURES
from models.results import NewResult
from tests.models import given
from tests.tasks.inprocess import until
from tests.webapi.conftest import End
from tests.webapi.test_auth import expire_memory
from tests.webapi.test_dashboard import log_in
from tests.webapi.test_gunicorn import Web
from webapi import headers
from webapi.console import overview
from webapi.context import Context
from webapi.static_files import FOLDER

HOSTILE = "<script>alert('x')</script>"

Enter = Callable[..., FlaskClient]


@pytest.fixture
def enter(client: FlaskClient, context: Context, database: Database) -> Enter:
    """Return a function that logs an owner in, with a key of some scopes."""

    def _enter(owner: str, *scopes: str) -> FlaskClient:
        with database.transaction() as tx:
            secret = keys.create(tx, owner, scopes=scopes).secret
        expire_memory(context)
        assert log_in(client, secret).status_code == 303
        return client

    return _enter


def test_the_shell_comes_without_a_count(client: FlaskClient, context: Context) -> None:
    """The page is there before anything is counted, with a place for each number that will come."""
    page = client.get("/dashboard").text
    assert context.counts.census.until == context.counts.past[60].until == 0.0
    for name in ("waiting", "queue", "engines", "batches", "errors", "owners", "failures", "rate", "wait", "sizes"):
        assert f'id="{name}"' in page
    assert page.count("<figcaption>") == page.count('class="plot"') == 6
    assert re.search(r'value="60" checked', page)


def test_each_id_of_the_page_is_one(client: FlaskClient) -> None:
    """And whatever the script looks for by its id is on the page."""
    page = client.get("/dashboard").text
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    script = (FOLDER / "console/overview.js").read_text()
    looked_for = set(re.findall(r'\b(?:part|figure|table)\("([\w-]+)"', script))
    assert looked_for - set(ids) == {"oldest"}


def test_others_are_shown_what_is_theirs(enter: Enter) -> None:
    """Without the scope admin there is the own queue alone, and a word on what is missing."""
    page = enter("ada", "read").get("/dashboard").text
    assert 'id="queue"' in page
    assert 'id="oldest"' in page
    assert "<code>admin</code>" in page
    for name in ("engines", "owners", "rate", "minutes"):
        assert f'"{name}"' not in page


def test_who_may_not_read_is_told_so(enter: Enter) -> None:
    """A key that may only submit sees neither stream nor failures, and no script tries."""
    browser = enter("ada", "submit")
    page = browser.get("/dashboard").text
    assert "lacks the scope <code>read</code>" in page
    assert "overview.js" not in page
    assert browser.get("/dashboard/live").status_code == 403
    assert browser.get("/dashboard/failures").status_code == 403


def test_the_latest_failures_are_the_callers_own(enter: Enter, database: Database, end: End) -> None:
    """Newest first, so many and no more, each with a link and its error, of which nothing is run."""
    mine = given.submitted(database, MOST_FAILURES + 1, owner="ada", model=HOSTILE)
    (succeeded,) = given.submitted(database, 1, owner="ada")
    (other,) = given.submitted(database, 1, owner="bob")
    for job_id in [*mine, other]:
        end(job_id, NewResult(400, None, code="invalid_request", message=HOSTILE), "failed")
    end(succeeded)
    part = enter("ada", "read").get("/dashboard/failures", headers={"HX-Request": "true"}).text
    assert re.findall(r'href="/dashboard/jobs/([^"]+)"', part) == mine[:0:-1]
    assert "&lt;script&gt;" in part
    assert "<script" not in part
    assert "<html" not in part


def test_without_failures_there_is_a_word_for_it(client: FlaskClient) -> None:
    """Not an empty table."""
    part = client.get("/dashboard/failures").text
    assert "None of your jobs failed." in part
    assert "<table" not in part


def events(lines: Iterator[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Return the events of a stream: their kind, and what they tell."""
    kind = ""
    for line in lines:
        if line.startswith("event: "):
            kind = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield kind, json.loads(line.removeprefix("data: "))


def test_the_stream_tells_what_changes_and_ends_with_the_service(
    sqlite_url: str, redis_url: str, tmp_path: Path
) -> None:
    """The first event is the whole overview; then come the fields that changed; at a shutdown it ends as it should."""
    web = Web(sqlite_url, redis_url, tmp_path).ready()
    try:
        whole = httpx.get(f"{web.url}/v1/overview?minutes=15", timeout=60).json()
        with httpx.stream("GET", f"{web.url}/dashboard/live?minutes=15", timeout=60) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            assert answer.headers["content-security-policy"] == headers.PAGE
            told = events(answer.iter_lines())
            kind, first = next(told)
            assert (kind, first.keys()) == ("overview", whole.keys())
            assert (first["queue"], first["minutes"]) == ([], 15)
            kind, second = next(told)
            assert kind == "overview"
            assert second["at"] > first["at"]
            assert second.keys() < first.keys()
            web.process.terminate()
            for _ in told:
                pass
        assert web.process.wait(60) == 0
    finally:
        web.end()


def test_a_database_that_is_away_is_told_once(
    client: FlaskClient, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With words for the reader; once it is back, the overview is told whole again."""
    monkeypatch.setattr(overview, "EVERY", 0.0)
    stream = client.get("/dashboard/live", buffered=False)
    told = events(line for piece in stream.response for line in str(piece, "utf-8").splitlines())
    whole = next(told)[1]
    counts = context.counts
    for kept in (counts.census, counts.now, counts.lately, *counts.past.values()):
        kept._found, kept.until = None, float("inf")
    kind, words = next(event for event in told if event[0] != "overview")
    assert (kind, words) == ("away", {"detail": "The database does not answer."})
    for kept in (counts.census, counts.now, counts.lately, *counts.past.values()):
        kept.until = 0.0
    kind, back = next(told)
    assert (kind, back.keys()) == ("overview", whole.keys())
    stream.close()


def test_a_stream_ends_with_its_key(
    enter: Enter, context: Context, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who holds a key that was revoked is told no more; so is who needed none, once there is one."""
    monkeypatch.setattr(overview, "EVERY", 0.0)
    browser = enter("ada", "admin")
    stream = iter(browser.get("/dashboard/live", buffered=False).response)
    next(stream)
    with database.transaction() as tx:
        keys.create(tx, "ops")
        keys.revoke(tx, keys.page(tx, "ada", 1)[0].id)
    expire_memory(context)
    assert len(list(stream)) <= 1
    assert 'name="key"' in browser.get("/dashboard/live").text


def test_a_stream_of_who_needed_no_key_ends_with_the_first_one(
    client: FlaskClient, context: Context, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From then on one has to log in."""
    monkeypatch.setattr(overview, "EVERY", 0.0)
    stream = iter(client.get("/dashboard/live", buffered=False).response)
    next(stream)
    with database.transaction() as tx:
        keys.create(tx, "ops")
    expire_memory(context)
    assert len(list(stream)) <= 1


def test_a_stream_has_a_place_or_is_refused(
    client: FlaskClient, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It counts like all who wait, is refused with 503 where all places are taken, and gives its place back."""
    monkeypatch.setattr(context.waiters, "_most", 1)
    stream = client.get("/dashboard/live", buffered=False)
    next(iter(stream.response))
    refused = client.get("/dashboard/live")
    assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
    stream.close()
    until(lambda: context.waiters._count == 0)


def test_a_window_that_is_not_offered_is_refused(client: FlaskClient) -> None:
    """On the page of an error, with those that are."""
    answer = client.get("/dashboard/live?minutes=7")
    assert answer.status_code == 422
    assert "10080" in answer.text


def test_a_page_that_is_not_there_is_a_page(client: FlaskClient) -> None:
    """It looks like the others: its style and script may be loaded."""
    answer = client.get("/dashboard/nothing")
    assert answer.status_code == 404
    assert answer.headers["Content-Security-Policy"] == headers.PAGE
    assert "Back to the overview" in answer.text
