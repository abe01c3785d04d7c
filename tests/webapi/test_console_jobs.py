"""The console's list of jobs, and the page of one."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from itertools import chain, pairwise
from typing import Any

import pytest
from flask.testing import FlaskClient

from models import deliveries, jobs, views
from models.db import Database, new_id
from models.results import NewResult
from tests.models import given
from tests.webapi.bulk_kit import Service, prompts
from tests.webapi.conftest import End
from tests.webapi.console_kit import Browser, once_of
from webapi.console import bars, excerpts
from webapi.console import jobs as console_jobs

OWNER = "local"
PART = {"HX-Request": "true"}
HOSTILE = '<script>alert("x")</script>\'"><img src=x onerror=alert(1)>'


class Tags(HTMLParser):
    """Reads a page as a browser does: its elements, each with the names of its attributes."""

    @classmethod
    def of(cls, text: str) -> list[tuple[str, tuple[str, ...]]]:
        """Return the elements of a page."""
        made = cls()
        made.found = []
        made.feed(text)
        return made.found

    found: list[tuple[str, tuple[str, ...]]]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep one."""
        self.found.append((tag, tuple(name for name, _ in attrs)))


def listed(client: FlaskClient, **asked: Any) -> list[str]:
    """Return the ids of the jobs in the list, in its order."""
    answer = client.get("/dashboard/jobs", query_string=asked)
    assert answer.status_code == 200, answer.text
    return re.findall(r'<a href="/dashboard/jobs/(job_[0-9a-f]{32})">', answer.text)


def submitted(client: FlaskClient, **more: Any) -> str:
    """Submit a job; return its id."""
    answer = client.post("/v1/jobs", json={"prompt": "hi", **more})
    assert answer.status_code == 202, answer.text
    return str(answer.json["id"])


def page(client: FlaskClient, job_id: str) -> str:
    """Return the page of a job."""
    answer = client.get(f"/dashboard/jobs/{job_id}")
    assert answer.status_code == 200, answer.text
    return answer.text


def test_the_list_is_newest_first_and_filtered(service: Service, end: End) -> None:
    """By state, lane, one pair of the metadata, bulk and model; the fields say what was asked for."""
    client = service.client
    first = submitted(client, metadata={"team": "a b"})
    second = submitted(client, lane="realtime", metadata={"team": "c"})
    end(first)
    bulk_id = service.begin(prompts(2))
    lines = [job.id for job in service.jobs(bulk_id)]
    assert listed(client) == [*lines[::-1], second, first]
    assert listed(client, state="succeeded") == [first]
    assert listed(client, lane="realtime", q="") == [second]
    assert listed(client, tag="team=a b") == [first]
    assert listed(client, bulk_id=bulk_id) == lines[::-1]
    assert listed(client, model="fake", state="queued") == [*lines[::-1], second]
    assert listed(client, model="another") == []
    text = client.get("/dashboard/jobs", query_string={"tag": "team=a b", "state": "failed"}).text
    assert 'value="team=a b"' in text
    assert "<option selected>failed</option>" in text
    assert "No job of yours is like that" in text


def test_pages_follow_each_other_with_their_filters(
    client: FlaskClient, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each job once, newest first, by plain links; the last page has no older one."""
    monkeypatch.setattr(console_jobs, "A_PAGE", 3)
    ids = given.submitted(database, 7, owner=OWNER, lane="bulk")
    given.submitted(database, 1, owner=OWNER)
    path, seen = "/dashboard/jobs?lane=bulk", []
    while path:
        text = client.get(path).text
        seen.append(re.findall(r'<a href="/dashboard/jobs/(job_\w+)">', text))
        links = re.findall(r'<a href="([^"]+)" rel="next">Older', text)
        path = links[0].replace("&amp;", "&") if links else ""
    assert [len(part) for part in seen] == [3, 3, 1]
    assert list(chain(*seen)) == sorted(ids, reverse=True)
    assert "You have no jobs yet" not in text


def test_a_part_of_the_page_names_its_address(client: FlaskClient) -> None:
    """The list alone, and the address that has the filters, without those that say nothing."""
    assert "You have no jobs yet" in client.get("/dashboard/jobs").text
    submitted(client, metadata={"a": "1"})
    asked = {"q": " ", "state": "queued", "lane": "", "tag": "a=1", "model": "", "bulk_id": ""}
    answer = client.get("/dashboard/jobs", query_string=asked, headers=PART)
    assert answer.headers["HX-Replace-Url"] == "/dashboard/jobs?state=queued&tag=a%3D1"
    assert answer.text.startswith('<div id="list">')
    assert "<html" not in answer.text


def test_an_id_leads_to_what_has_it(client: FlaskClient, database: Database) -> None:
    """Of a job, a bulk or a batch; how one begins is a filter, and what can be none is refused in words."""
    one, two = given.submitted(database, 2, owner=OWNER)
    bulk_id, batch_id = new_id("bulk"), new_id("batch")
    for sought, path in ((f" {one} ", f"jobs/{one}"), (bulk_id, f"bulks/{bulk_id}"), (batch_id, f"bulks/{batch_id}")):
        answer = client.get("/dashboard/jobs", query_string={"q": sought})
        assert (answer.status_code, answer.headers["Location"]) == (303, f"/dashboard/{path}")
        part = client.get("/dashboard/jobs", query_string={"q": sought}, headers=PART)
        assert (part.status_code, part.headers["HX-Redirect"]) == (200, f"/dashboard/{path}")
    assert listed(client, q=one[:-1]) == [one]
    assert listed(client, q=one[4:-1]) == [one]
    assert listed(client, q="job_0") == [two, one]
    assert listed(client, q="job_ff") == []
    for query in ({"q": "job_xyz"}, {"q": "%"}, {"tag": "team"}, {"tag": "=a"}, {"state": "odd"}, {"after": "job_1"}):
        refused = client.get("/dashboard/jobs", query_string=query, headers=PART)
        assert (refused.status_code, refused.headers["HX-Retarget"]) == (422, "#notices")
        assert next(iter(query)) in refused.text


def test_the_page_of_a_job_tells_its_way(service: Service, database: Database) -> None:
    """What it waits for; then its answer, its batch, who was in it, and each step with its seconds."""
    client = service.client
    job_id = submitted(client, metadata={"team": "a"})
    text = page(client, job_id)
    assert "No engine that serves fake is up" in text
    assert "data-open data-live" in text
    assert '<a href="/dashboard/jobs?tag=team%3Da">a</a>' in text
    assert "&#34;content&#34;: &#34;hi&#34;" in text
    mate = submitted(client)
    batch_id = given.cut(database, [job_id, mate])
    given.claimed(database, given.engine(database))
    body = json.dumps({"choices": [{"message": {"content": "good morning"}}]})
    given.settled(database, batch_id, [given.answered(job_id, body)])
    text = page(client, job_id)
    assert '<pre id="words" class="output" tabindex="0">good morning</pre>' in text
    assert f'<a href="/dashboard/jobs/{mate}">' in text
    assert f"<code>{batch_id}</code>" in text
    assert re.search(r'aria-label="in the queue \S+ \w+, waiting for the engine \S+ \w+, running \S+ \w+"', text)
    assert len(re.findall(r'<rect class="step-\d" x="[\d.]+%" width="[\d.]+%"', text)) == 3
    assert "data-open" not in text
    part = client.get(f"/dashboard/jobs/{job_id}", headers=PART).text
    assert part.startswith('<div id="now"')
    assert "What it asks for" not in part


def test_what_failed_says_why_and_its_webhook_is_told_of(client: FlaskClient, database: Database, end: End) -> None:
    """The error in full; the delivery with its tries, looked at again for as long as it is on its way."""
    job_id = submitted(client, webhook={"url": "https://example.com/hook"})
    end(job_id, NewResult(400, '{"error": {"message": "no"}}', "bad_request", "too long by far"), "failed")
    text = page(client, job_id)
    assert "<code>bad_request</code> (HTTP 400)" in text
    assert "too long by far" in text
    assert "https://example.com/hook" in text
    assert "none yet" in text
    (path,) = re.findall(r'href="(/dashboard/webhooks/deliveries/msg_\w+)"', text)
    assert client.get(path).status_code == 200
    assert "data-live" in text
    table = deliveries.table
    given.change(
        database, table, table.c.job_id == job_id, **{"state": "failed", "try": 3, "status": 503, "latency_ms": 40}
    )
    text = page(client, job_id)
    assert "3. 503, 40 ms" in text
    assert "data-live" not in text


def test_hostile_texts_are_only_texts(service: Service, end: End) -> None:
    """In prompts, answers, metadata, names of lines and errors: nothing of them becomes a part of the page."""
    client = service.client
    job_id = submitted(client, prompt=HOSTILE, metadata={HOSTILE[:60]: HOSTILE})
    end(job_id, NewResult(200, json.dumps({"choices": [{"message": {"content": HOSTILE}}]})))
    bulk_id = service.begin(json.dumps({"prompt": HOSTILE, "custom_id": HOSTILE}).encode())
    (line,) = [job.id for job in service.jobs(bulk_id)]
    end(line, NewResult(400, HOSTILE, HOSTILE[:60], HOSTILE), "failed")
    found = [page(client, job_id), page(client, line)]
    found += [client.get(path).text for path in ("/dashboard/jobs", f"/dashboard/bulks/{bulk_id}/errors")]
    found.append(client.get("/dashboard/jobs", query_string={"tag": f"a={HOSTILE}", "model": HOSTILE}).text)
    for text in found:
        assert "alert" in text
        assert not {tag for tag in Tags.of(text) if (tag[0] == "script" and "src" not in tag[1]) or "onerror" in tag[1]}
        assert HOSTILE not in text


def test_a_long_request_is_cut_and_can_be_had_whole(client: FlaskClient, end: End) -> None:
    """The page shows the beginning; the file has every byte."""
    prompt = "é" * 150_000
    job_id = submitted(client, prompt=prompt)
    end(job_id, NewResult(200, json.dumps({"choices": [{"message": {"content": "w" * 200_000}}]})))
    text = page(client, job_id)
    assert len(text) < 350_000
    assert text.count("é") < 100_000
    assert "The first 100,000 of" in text
    answer = client.get(f"/dashboard/jobs/{job_id}/request")
    assert answer.headers["Content-Disposition"] == f'attachment; filename="{job_id}-request.json"'
    assert answer.mimetype == "application/json"
    assert answer.json["messages"] == [{"role": "user", "content": prompt}]


def test_cancel_and_again(client: FlaskClient, database: Database) -> None:
    """A job is cancelled once; run again it is a new one with the same request, lane and metadata, and one only."""
    job_id = submitted(client, lane="realtime", metadata={"a": "1"}, max_tokens=7, seed=12345678901234567)
    answer = client.post(f"/dashboard/jobs/{job_id}/cancel")
    assert (answer.status_code, answer.headers["Location"]) == (303, f"/dashboard/jobs/{job_id}")
    assert given.job(database, job_id).state == "cancelled"
    refused = client.post(f"/dashboard/jobs/{job_id}/cancel", headers=PART)
    assert (refused.status_code, "already cancelled" in refused.text) == (409, True)
    text = page(client, job_id)
    assert f"{job_id}/cancel" not in text
    form = {"once": once_of(text)}
    sent = [client.post(f"/dashboard/jobs/{job_id}/again", data=form, headers=PART) for _ in range(2)]
    (path,) = {answer.headers["HX-Redirect"] for answer in sent}
    made = path.rpartition("/")[2]
    assert given.states(database, [made]) == ["queued"]
    assert len(given.rows(database, jobs.table)) == 2
    asked = [client.get(f"/dashboard/jobs/{one}/request").data for one in (job_id, made)]
    assert asked[0] == asked[1]
    copy = client.get(f"/v1/jobs/{made}").json
    assert (copy["lane"], copy["metadata"]) == ("realtime", {"a": "1"})
    other = client.post(f"/dashboard/jobs/{made}/again", data=form)
    assert (other.status_code, other.headers["Location"] == path) == (303, False)  # the form of another job is another
    assert client.post(f"/dashboard/jobs/{made}/again").status_code == 422
    again = client.post(f"/dashboard/jobs/{made}/again", data={"once": once_of(page(client, made))})
    assert again.status_code == 303
    assert len(given.rows(database, jobs.table)) == 4


def test_run_again_tells_and_expires_as_the_first_did(service: Service, database: Database) -> None:
    """Its webhook is told with the same secret, and it has the same time; not where its webhook is refused by now."""
    client, url = service.client, "https://example.com/hook"
    hook = {"url": url, "secret": f"whsec_{'A' * 32}", "include_result": True}
    first = submitted(client, webhook=hook, expires_in=3600)
    bare = submitted(client)
    made = {}
    for job_id in (first, bare):
        answer = client.post(f"/dashboard/jobs/{job_id}/again", data={"once": once_of(page(client, job_id))})
        made[job_id] = answer.headers["Location"].rpartition("/")[2]
    with database.reading() as tx:
        rows = {job_id: views.sent(tx, OWNER, job_id) for job_id in (first, *made.values())}
    old, new, plain = rows[first], rows[made[first]], rows[made[bare]]
    assert (new.webhook_url, new.webhook_include_result, new.notify) == (url, True, True)
    seal = service.context.seal
    assert seal.open(new.webhook_secret) == seal.open(old.webhook_secret) == hook["secret"]
    assert new.expires_at - new.created_at == pytest.approx(3600, abs=0.01)
    assert (plain.webhook_url, plain.webhook_secret, plain.notify, plain.expires_at) == (None, None, False, None)
    given.change(database, jobs.bodies, jobs.bodies.c.job_id == first, webhook_url="https://127.0.0.1/")
    refused = client.post(f"/dashboard/jobs/{first}/again", data={"once": "x"}, headers=PART)
    assert (refused.status_code, "webhook.url" in refused.text) == (422, True)


def test_a_paused_line_is_run_again_in_the_lane_of_bulks(service: Service) -> None:
    """The lane that it stands in is one that nobody can ask for."""
    bulk_id = service.begin(prompts(1))
    service.do(bulk_id, "pause")
    service.tend(bulk_id)
    (line,) = service.jobs(bulk_id)
    assert line.lane == "paused"
    form = {"once": once_of(page(service.client, line.id))}
    path = service.client.post(f"/dashboard/jobs/{line.id}/again", data=form).headers["Location"]
    assert service.client.get(f"/v1/jobs/{path.rpartition('/')[2]}").json["lane"] == "bulk"


def test_limits_hold_for_what_is_run_again(client: FlaskClient, database: Database) -> None:
    """Where no more jobs may wait, the page says so, and nothing is stored."""
    ada = Browser(client, database, limits={"jobs_queued": 1})
    (job_id,) = given.submitted(database, owner="ada", body='{"model": "fake", "messages": [{"role": "user"}]}')
    answer = ada.send(f"/dashboard/jobs/{job_id}/again", {"once": once_of(ada.get(f"/dashboard/jobs/{job_id}"))})
    assert answer.status_code == 429
    assert "are waiting already" in answer.text
    assert len(given.rows(database, jobs.table)) == 1


def test_everything_is_its_owners(client: FlaskClient, database: Database) -> None:
    """For another owner a job is not there, neither to read nor to change; so is what is no id."""
    bob = Browser(client, database, "bob")
    (job_id,) = given.submitted(database, owner="ada")
    (own,) = given.submitted(database, owner="bob")
    assert job_id not in bob.get("/dashboard/jobs")
    for ident in (job_id, new_id("job"), "job_x", "%00"):
        for path in ("", "/request"):
            bob.get(f"/dashboard/jobs/{ident}{path}", 404)
        for step in ("cancel", "again"):
            answer = bob.send(f"/dashboard/jobs/{ident}/{step}", {"once": "x"})
            assert (answer.status_code, ident, step) == (404, ident, step)
    assert given.states(database, [job_id, own]) == ["queued", "queued"]
    assert len(given.rows(database, jobs.table)) == 2


def test_scopes_and_tokens(client: FlaskClient, database: Database) -> None:
    """Reading needs read, a change submit and the page's token; a page offers only what its reader may do."""
    (job_id,) = given.submitted(database, owner="ada")
    reader = Browser(client, database, scopes=["read"])
    assert "/cancel" not in reader.get(f"/dashboard/jobs/{job_id}")
    writer = Browser(client, database, scopes=["submit"])
    for path in ("/dashboard/jobs", f"/dashboard/jobs/{job_id}", f"/dashboard/jobs/{job_id}/request"):
        assert "scope read" in writer.get(path, 403)
    for step in ("cancel", "again"):
        assert reader.send(f"/dashboard/jobs/{job_id}/{step}", {"once": "x"}).status_code == 403
        forged = writer.client.post(f"/dashboard/jobs/{job_id}/{step}", data={"once": "x", "csrf": "y"})
        assert (forged.status_code, "too old" in forged.text) == (403, True)
    assert given.states(database, [job_id]) == ["queued"]
    assert writer.send(f"/dashboard/jobs/{job_id}/cancel").status_code == 303
    stranger = client.application.test_client()
    assert 'name="key"' in stranger.get(f"/dashboard/jobs/{job_id}").text


# What is drawn and shown, without a page


def test_a_bar_is_whole_whatever_is_in_it() -> None:
    """Its parts touch and fill it; the smallest is seen; a clock that went back, or no time at all, is no error."""
    steps = [
        {"name": name, "at": at} for name, at in (("submitted", 0), ("batched", 0.001), ("started", 5), ("failed", 99))
    ]
    parts = bars.of_steps([*steps, {"name": "told", "at": 98.0}], None)
    assert [part.name for part in parts][:3] == ["in the queue", "waiting for the engine", "running"]
    assert parts[0].width > 0.5
    assert parts[-1].value == 0
    for one, other in pairwise(parts):
        assert other.begins == pytest.approx(one.begins + one.width, abs=0.01)
    assert parts[-1].begins + parts[-1].width == pytest.approx(100, abs=0.01)
    assert bars.of_steps(steps[:1], None) == []
    tried = bars.of_steps([*steps[:3], {"name": "crashed", "at": 6}, {"name": "batched", "at": 8}], 9.0)
    assert [(part.name, round(part.value, 3)) for part in bars.sums(tried)] == [
        ("in the queue", 2.001),
        ("waiting for the engine", 5.999),
        ("running", 1),
    ]
    (part,) = bars.of_steps(steps[:1], 0.0)
    assert (part.value, part.width) == (0, 0)
    counts = dict.fromkeys(("succeeded", "failed", "cancelled", "expired", "running", "queued"), 0)
    assert bars.of_counts(counts) == []
    assert [
        (part.name, part.value) for part in bars.of_counts(counts | {"cancelled": 1, "expired": 2, "queued": 3})
    ] == [
        ("ended otherwise", 3),
        ("queued", 3),
    ]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ('{"choices": [{"message": {"content": "a"}}, {"message": {"content": "b"}}]}', "a\n\nb"),
        ('{"choices": [{"text": "a"}]}', "a"),
        ('{"choices": [{"message": {"content": [{"type": "text", "text": "a"}, {"type": "x"}]}}]}', "a"),
        ('{"output": [{"type": "reasoning"}, {"content": [{"type": "output_text", "text": "a"}]}]}', "a"),
        ('{"choices": [{"message": {"content": null}}]}', None),
        ('{"data": [{"embedding": [1]}]}', None),
        ('{"choices": [1, null, {"message": 5}], "output": {}}', None),
        ("[]", None),
        ("nonsense", None),
        ("[" * 10_000, None),
    ],
)
def test_the_words_of_an_answer(answer: str, words: str | None) -> None:
    """Whatever form the answer has; an odd one has none, and is no error."""
    found = excerpts.said(answer)
    assert (found.text if found else None) == words


def test_json_is_laid_out_and_bounded() -> None:
    """A number keeps its digits; what is no JSON, or grows too long by its blanks, is shown as it is."""
    assert excerpts.of_json('{"a":12345678901234567890.10}').text == '{\n  "a": 12345678901234567890.10\n}'
    assert excerpts.of_json("nonsense").text == "nonsense"
    many = "[" + ",".join("1" * 1 for _ in range(40_000)) + "]"
    shown = excerpts.of_json(many)
    assert (len(shown.text) <= excerpts.MOST, shown.cut) == (True, False)
    long = excerpts.of_json('"' + "x" * 200_000 + '"')
    assert (len(long.text), long.size, long.cut) == (excerpts.MOST, 200_002, True)
