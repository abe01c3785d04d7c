"""The console's list of bulks, the page of one, what failed in it, and the form for a file."""

from __future__ import annotations

import io
import json
import re
from typing import Any

import pytest
from flask.testing import FlaskClient

from models import bulks
from models.db import Database, new_id
from tests.models import given
from tests.webapi.bulk_kit import Service, good, good_but, jsonl, prompts, requests
from tests.webapi.console_kit import Browser, once_of
from tests.webapi.test_auth import expire_memory
from webapi.console import bulks as console_bulks

PART = {"HX-Request": "true"}
STEPS = ("pause", "resume", "cancel", "retry")


def page(service: Service, bulk_id: str, **options: Any) -> str:
    """Return the page of a bulk."""
    answer = service.client.get(f"/dashboard/bulks/{bulk_id}", **options)
    assert answer.status_code == 200, answer.text
    return answer.text


def listed(service: Service, **asked: str) -> list[str]:
    """Return the ids in the list, in its order."""
    answer = service.client.get("/dashboard/bulks", query_string=asked)
    assert answer.status_code == 200, answer.text
    return re.findall(r'<a href="/dashboard/bulks/(\w+)">', answer.text)


def do(service: Service, bulk_id: str, step: str, **form: str) -> Any:
    """Send the form of a step; return the answer."""
    return service.client.post(f"/dashboard/bulks/{bulk_id}/{step}", data=form)


def test_the_list_has_bulks_and_batches(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Newest first, by state and kind, page after page; asked for again by itself while something in it goes on."""
    assert "You have no bulks yet" in service.client.get("/dashboard/bulks").text
    done = service.ended(prompts(2), good_but(2))
    text = service.client.get("/dashboard/bulks").text
    assert re.search(r'<progress value="2" max="2"', text)
    assert f'<a href="/dashboard/bulks/{done}/errors">1</a>' in text
    assert "every 5s" not in text
    batch = service.batch(service.upload(requests(1))).json["id"]
    going = service.submit(prompts(1))
    assert "every 5s" in service.client.get("/dashboard/bulks").text
    assert listed(service) == [going, batch, done]
    assert (listed(service, kind="batch"), listed(service, state="completed")) == ([batch], [done])
    assert "No bulk of yours is like that" in service.client.get("/dashboard/bulks?state=expired").text
    monkeypatch.setattr(console_bulks, "A_PAGE", 2)
    (older,) = re.findall(r'<a href="([^"]+)" rel="next">', service.client.get("/dashboard/bulks?kind=").text)
    part = service.client.get(older, headers=PART)
    assert part.headers["HX-Replace-Url"] == older == f"/dashboard/bulks?after={batch}"
    assert part.text.startswith('<div id="list"')
    assert (done in part.text, batch in part.text.replace(older, "")) == (True, False)
    for query in ("state=odd", "after=job_1", "kind=x"):
        assert service.client.get(f"/dashboard/bulks?{query}").status_code == 422


def test_a_bulk_is_searched_for(service: Service, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its id, which leads to it, by how one begins, of either kind, and by a pair of the metadata; page by page."""
    team, other = (service.begin(prompts(1), **{"metadata.team": name}) for name in ("a b", "c"))
    batch = service.batch(service.upload(requests(1)), metadata={"team": "a b"}).json["id"]
    for sought in (f" {team.upper()} ", batch):
        answer = service.client.get("/dashboard/bulks", query_string={"q": sought})
        assert (answer.status_code, answer.headers["Location"]) == (303, f"/dashboard/bulks/{sought.strip().lower()}")
    for sought, found in (
        (team[:-1], [team]),
        (batch.removeprefix("batch_")[:-1], [batch]),
        ("bulk_0", [other, team]),
        ("batch_0", [batch]),
        ("0", [batch, other, team]),
        ("ff", []),
    ):
        assert listed(service, q=sought) == found
    assert listed(service, tag="team=a b") == [batch, team]
    assert listed(service, tag="team = a b", kind="bulk", q="bulk_0") == [team]
    for asked in ({"q": "job_0"}, {"q": "%"}, {"q": "bulk_g"}, {"tag": "team"}, {"tag": "=x"}, {"tag": 'a"=x'}):
        assert service.client.get("/dashboard/bulks", query_string=asked).status_code == 422
    monkeypatch.setattr(console_bulks, "A_PAGE", 1)
    text = service.client.get("/dashboard/bulks", query_string={"q": "0", "tag": "team=a b"}).text
    assert ('value="0"' in text, 'value="team=a b"' in text) == (True, True)
    (older,) = re.findall(r'<a href="([^"]+)" rel="next">', text)
    part = service.client.get(older.replace("&amp;", "&"), headers=PART).text
    assert (f'<a href="/dashboard/bulks/{team}">' in part, 'rel="next"' in part) == (True, False)
    expire_memory(service.context)
    assert team not in Browser(service.client, database, "bob").get("/dashboard/bulks?q=0")


def test_the_page_of_a_bulk(service: Service) -> None:
    """How far it is, live until it has ended; then its results, and no buttons that come to nothing."""
    bulk_id = service.begin(prompts(9) + b"nonsense\n", **{"metadata.run": "seven"})
    service.run(bulk_id, good_but(2), most=4)
    text = page(service, bulk_id)
    assert 'aria-label="3 succeeded, 2 failed, 5 queued"' in text
    assert '<dd>5</dd><dd class="note">of 10 lines</dd>' in text
    assert "1 could not be read" in text
    assert "<dd>seven</dd>" in text
    assert "every 3s" in text
    assert [step for step in STEPS if f"/{bulk_id}/{step}" in text] == ["pause", "cancel"]
    part = page(service, bulk_id, headers=PART)
    assert part.startswith('<div id="now"')
    service.run(bulk_id)
    text = page(service, bulk_id)
    assert "every 3s" not in text
    assert [step for step in STEPS if f"/{bulk_id}/{step}" in text] == ["retry"]
    for path in (f"/v1/bulks/{bulk_id}/results", f"/v1/bulks/{bulk_id}/errors?format=csv"):
        assert f'href="{path}"' in text
        assert service.client.get(path).status_code == 200
    assert f"/dashboard/jobs?bulk_id={bulk_id}" in text
    whole = page(service, service.ended(prompts(1)))
    assert "/retry" not in whole


def test_a_dry_run_and_a_bad_input_name_their_lines(service: Service) -> None:
    """What is wrong, in words, with the number of the line; nothing to retry."""
    bulk_id = service.begin(prompts(2) + b"<b>nonsense\n", dry_run="true")
    text = page(service, bulk_id)
    assert "What the dry run found" in text
    assert re.search(r"<li>Line 3: [^<]+ <code>invalid_json_line</code>", text)
    assert "/retry" not in text
    bad = service.begin(b"a,b\n1,2\n", "text/csv")
    assert "The first line of CSV must name the columns" in page(service, bad)
    batch = service.batch(service.upload(b"nonsense\n")).json["id"]
    service.tend(batch)
    assert "What is wrong with it" in page(service, batch)


def test_what_failed_is_listed_with_its_line(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code, reason and a link to the job, where there is one; page after page, in the order in which they ended."""
    monkeypatch.setattr(console_bulks, "FAILED_LINES", 2)
    lines = b"nonsense\n" + prompts(3) + jsonl({"prompt": "x", "custom_id": "<i>odd</i>"})
    bulk_id = service.ended(lines, good_but(2, 4, 5))
    path, seen = f"/dashboard/bulks/{bulk_id}/errors", []
    while path:
        text = service.client.get(path).text
        seen.append(re.findall(r'data-label="Line">(\d+)<', text))
        links = re.findall(r'<a href="([^"]+)" rel="next">', text)
        path = links[0] if links else ""
    assert seen == [["1", "2"], ["4", "5"]]
    first = service.client.get(f"/dashboard/bulks/{bulk_id}/errors").text
    job = next(job for job in service.jobs(bulk_id) if job.line_no == 2)
    assert f'<a href="/dashboard/jobs/{job.id}">' in first
    assert first.count("/dashboard/jobs/job_") == 1
    assert "too long" in first
    assert "&lt;i&gt;odd&lt;/i&gt;" in text
    assert "No line failed" in service.client.get(f"/dashboard/bulks/{service.ended(prompts(1))}/errors").text
    for after in ("x", "-1", "9" * 30):
        assert service.client.get(f"/dashboard/bulks/{bulk_id}/errors?after={after}").status_code == 422


def test_steering(service: Service, rung: list[str]) -> None:
    """Pause, go on, cancel: the page follows, the workers are rung for, and what has ended cannot be steered."""
    bulk_id = service.begin(prompts(3))
    assert do(service, bulk_id, "pause").headers["Location"] == f"/dashboard/bulks/{bulk_id}"
    text = page(service, bulk_id)
    assert "It is paused" in text
    assert f"/{bulk_id}/resume" in text
    do(service, bulk_id, "resume")
    assert service.get(bulk_id)["paused"] is False
    part = service.client.post(f"/dashboard/bulks/{bulk_id}/cancel", headers=PART)
    assert part.headers["HX-Redirect"] == f"/dashboard/bulks/{bulk_id}"
    assert "It is being cancelled" in page(service, bulk_id)
    assert rung == [bulk_id] * 4
    service.tend(bulk_id)
    for step in ("pause", "resume"):
        assert do(service, bulk_id, step).status_code == 409
    assert do(service, bulk_id, "delete").status_code == 404


def test_what_failed_is_retried_once(service: Service, rung: list[str]) -> None:
    """By a new bulk, however often the form is sent; not while it runs, and not where nothing failed."""
    bulk_id = service.ended(prompts(3), good_but(2))
    form = {"once": once_of(page(service, bulk_id))}
    (path,) = {do(service, bulk_id, "retry", **form).headers["Location"] for _ in range(2)}
    made = path.rpartition("/")[2]
    assert service.get(made)["retry_of"] == bulk_id
    assert rung[-1] == made
    assert len(service.rows()) == 2
    service.tend(made)
    assert [job.line_no for job in service.jobs(made)] == [2]
    assert f'<a href="/dashboard/bulks/{bulk_id}">' in page(service, made)
    assert do(service, made, "retry", once="another").status_code == 409
    service.run(made, good)
    assert do(service, made, "retry", once="third").status_code == 422
    assert do(service, bulk_id, "retry").status_code == 422


def test_everything_is_its_owners(service: Service, database: Database) -> None:
    """For another owner a bulk is not there; scopes and tokens are asked for."""
    bulk_id = service.begin(prompts(2))
    expire_memory(service.context)
    bob = Browser(service.client, database, "bob")
    assert bulk_id not in bob.get("/dashboard/bulks")
    for ident in (bulk_id, new_id("bulk"), "bulk_1", "%00"):
        bob.get(f"/dashboard/bulks/{ident}", 404)
        bob.get(f"/dashboard/bulks/{ident}/errors", 404)
        for step in STEPS:
            assert bob.send(f"/dashboard/bulks/{ident}/{step}", {"once": "x"}).status_code == 404
    (row,) = service.rows()
    assert (row.state, row.paused_at) == ("running", None)
    given.change(database, bulks.table, owner="bob")
    reader, writer = (Browser(service.client, database, "bob", scopes=[scope]) for scope in ("read", "submit"))
    text = reader.get(f"/dashboard/bulks/{bulk_id}")
    assert not [step for step in STEPS if f"/{bulk_id}/{step}" in text]
    for path in ("/dashboard/bulks", f"/dashboard/bulks/{bulk_id}", f"/dashboard/bulks/{bulk_id}/errors"):
        writer.get(path, 403)
    for step in STEPS:
        assert reader.send(f"/dashboard/bulks/{bulk_id}/{step}", {"once": "x"}).status_code == 403
        assert writer.client.post(f"/dashboard/bulks/{bulk_id}/{step}", data={"once": "x"}).status_code == 403
    assert writer.send(f"/dashboard/bulks/{bulk_id}/pause").status_code == 303
    (row,) = service.rows()
    assert row.paused_at is not None


def test_the_form_for_a_file(client: FlaskClient, database: Database) -> None:
    """It names the models, lanes and endpoints that there are, and the largest file that this key may send."""
    ada = Browser(client, database, limits={"file_bytes": 12_000})
    text = ada.get("/dashboard/upload")
    assert "<option>fake</option>" in text
    assert "<option selected>bulk</option>" in text
    assert "<option>/v1/embeddings</option>" in text
    assert 'data-most="12000"' in text
    assert "At most 12 kB" in text
    assert "scope submit" in Browser(client, database, scopes=["read"]).get("/dashboard/upload", 403)


def test_what_the_form_sends_is_taken(service: Service, database: Database) -> None:
    """Its fields in front of the file, with the token of the page and a key: sent twice it is one bulk."""
    ada = Browser(service.client, database)
    token = re.findall(r'name="csrf" content="([^"]+)"', ada.get("/dashboard/upload"))[0]
    headers = {"X-CSRF-Token": token, "Idempotency-Key": "console-" + "0" * 32}
    made = set()
    for _ in range(2):
        fields = {"lane": "bulk", "max_tokens": "7", "temperature": "0.5", "system": "5"}
        form = {**fields, "file": (io.BytesIO(b"prompt,team\nhi,a\n"), "x.csv")}
        answer = ada.client.post("/v1/bulks", data=form, headers=headers)
        assert answer.status_code == 202, answer.text
        made.add(answer.json["id"])
    (row,) = service.rows()
    assert made == {row.id}
    assert (row.format, row.defaults) == ("csv", {"max_tokens": 7, "temperature": 0.5, "system": "5"})
    assert json.dumps(row.metadata) in {"null", "{}"}
