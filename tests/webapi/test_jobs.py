"""`/v1/jobs` as clients use it."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient

from models import jobs, keys, views
from models.db import Database
from models.results import NewResult
from tests.webapi.conftest import ANSWER, End
from webapi.context import Context


def submit(client: FlaskClient, **more: Any) -> dict[str, Any]:
    """Submit a job and return its document."""
    answer = client.post("/v1/jobs", json={"prompt": "hi", **more})
    assert answer.status_code == 202, answer.text
    return dict(answer.json)


def count(database: Database) -> int:
    """Return how many jobs are stored."""
    with database.reading() as tx:
        return int(tx.execute(sa.select(sa.func.count()).select_from(jobs.table)).scalar_one())


def test_a_job_is_stored_before_202(client: FlaskClient, database: Database) -> None:
    """The answer names the job, says where to look for it, and the row is there."""
    answer = client.post("/v1/jobs", json={"prompt": "hi", "lane": "realtime", "metadata": {"a": "b"}})
    assert answer.status_code == 202
    job = answer.json
    assert answer.headers["Location"] == f"/v1/jobs/{job['id']}"
    assert (job["object"], job["state"], job["lane"], job["model"]) == ("job", "queued", "realtime", "fake")
    assert job["metadata"] == {"a": "b"}
    assert abs(job["created_at"] - time.time()) < 60
    assert count(database) == 1


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"lane": "bulk", "expires_in": 12.3456, "metadata": {"a": "ü"}, "webhook_url": "https://example.com/hook"},
        {"metadata": {}, "webhook": {"url": "https://example.com/hook", "include_result": True}},
    ],
)
def test_the_202_shows_what_a_look_shows(client: FlaskClient, more: dict[str, Any]) -> None:
    """The answer to a POST is made without reading the job again, and is the same but for the place in the queue."""
    made = submit(client, **more)
    seen = client.get(f"/v1/jobs/{made['id']}").json
    assert made.pop("queue_position") is None
    assert seen.pop("queue_position") == 0
    assert list(made) == list(seen)
    assert made == seen


def test_a_queued_job_tells_its_place(client: FlaskClient) -> None:
    """The second job of an owner in a lane has one before it; the first job of another lane none."""
    submit(client)
    second, other = submit(client), submit(client, lane="bulk")
    assert client.get(f"/v1/jobs/{second['id']}").json["queue_position"] == 1
    assert client.get(f"/v1/jobs/{other['id']}").json["queue_position"] == 0


def test_a_succeeded_job_has_its_result(client: FlaskClient, end: End) -> None:
    """The engine's answer is in the job as JSON, and alone under /result, byte for byte."""
    job_id = submit(client)["id"]
    assert client.get(f"/v1/jobs/{job_id}/result").status_code == 404
    end(job_id)
    job = client.get(f"/v1/jobs/{job_id}").json
    assert job["state"] == "succeeded"
    assert job["result"]["choices"][0]["message"]["content"] == "hello"
    assert job["usage"] == {"prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7}
    assert job["error"] is None
    assert job["attempts"] == 1
    assert job["finished_at"] >= job["created_at"]
    assert client.get(f"/v1/jobs/{job_id}/result").text == ANSWER


def test_a_failed_job_has_an_error(client: FlaskClient, end: End) -> None:
    """Code, message and status are told; there is no result, and /result says why."""
    job_id = submit(client)["id"]
    end(job_id, NewResult(400, '{"error":{}}', "context_length_exceeded", "too long"), "failed")
    job = client.get(f"/v1/jobs/{job_id}").json
    assert job["error"] == {"code": "context_length_exceeded", "message": "too long", "status": 400}
    assert job["result"] is None
    assert job["usage"] is None
    missing = client.get(f"/v1/jobs/{job_id}/result")
    assert missing.status_code == 404
    assert "failed (context_length_exceeded)" in missing.json["detail"]


def test_cancel(client: FlaskClient, end: End) -> None:
    """An open job is cancelled; one that has ended stays as it is: 409."""
    job_id = submit(client)["id"]
    assert client.post(f"/v1/jobs/{job_id}/cancel").json["state"] == "cancelled"
    assert client.post(f"/v1/jobs/{job_id}/cancel").status_code == 409
    done = submit(client)["id"]
    end(done)
    refused = client.post(f"/v1/jobs/{done}/cancel")
    assert refused.status_code == 409
    assert "already succeeded" in refused.json["detail"]


def test_list_pages_newest_first(client: FlaskClient, end: End) -> None:
    """Pages of `limit` follow each other by `next_after` until `has_more` is false; results are left out."""
    ids = [submit(client)["id"] for _ in range(5)]
    end(ids[0])
    seen, after = [], None
    while True:
        page = client.get("/v1/jobs", query_string={"limit": 2, **({"after": after} if after else {})}).json
        assert page["object"] == "list"
        seen += [job["id"] for job in page["data"]]
        assert all(job["result"] is None for job in page["data"])
        after = page["next_after"]
        if not page["has_more"]:
            assert after is None
            break
    assert seen == ids[::-1]


def test_a_list_does_not_read_results(client: FlaskClient, database: Database, end: End) -> None:
    """The answers of engines, which may be large, stay in the database."""
    end(submit(client)["id"])
    with database.reading() as tx:
        rows, _ = views.page(tx, "local", views.Filters(), after=None, limit=10)
    assert [row.state for row in rows] == ["succeeded"]
    assert "body" not in rows[0]._fields
    assert "created_at" in rows[0]._fields


def test_list_filters(client: FlaskClient) -> None:
    """State, lane, model and metadata narrow a list; metadata by any key without quotes."""
    submit(client, lane="bulk", metadata={"run": "7", "a.b c$": "x'y"})
    plain = submit(client)
    client.post(f"/v1/jobs/{plain['id']}/cancel")

    def found(**query: str) -> int:
        return len(client.get("/v1/jobs", query_string=query).json["data"])

    assert (found(lane="bulk"), found(lane="realtime")) == (1, 0)
    assert (found(state="cancelled"), found(state="running")) == (1, 0)
    assert (found(model="fake"), found(model="other")) == (2, 0)
    assert (found(**{"metadata.run": "7"}), found(**{"metadata.run": "8"})) == (1, 0)
    assert found(**{"metadata.a.b c$": "x'y", "metadata.run": "7"}) == 1


def test_owners_do_not_see_each_other(client: FlaskClient, database: Database) -> None:
    """Another owner's job is as unknown as one that never was, in every call."""
    with database.transaction() as tx:
        mine, other = keys.create(tx, "mine"), keys.create(tx, "other")
    of = {key.owner: {"Authorization": f"Bearer {key.secret}"} for key in (mine, other)}
    job_id = client.post("/v1/jobs", json={"prompt": "hi"}, headers=of["mine"]).json["id"]
    assert client.get(f"/v1/jobs/{job_id}", headers=of["mine"]).status_code == 200
    for method, path in [("get", ""), ("get", "/result"), ("post", "/cancel")]:
        assert getattr(client, method)(f"/v1/jobs/{job_id}{path}", headers=of["other"]).status_code == 404
    assert client.get("/v1/jobs", headers=of["other"]).json["data"] == []


def test_the_same_key_and_body_make_one_job(client: FlaskClient, database: Database) -> None:
    """The second answer is the first one again, says so, and another body is refused."""
    headers = {"Idempotency-Key": "abc"}
    first = client.post("/v1/jobs", json={"prompt": "hi"}, headers=headers)
    again = client.post("/v1/jobs", json={"prompt": "hi"}, headers=headers)
    assert again.status_code == 202
    assert again.data == first.data
    assert again.headers["Location"] == first.headers["Location"]
    assert again.headers["Idempotency-Replayed"] == "true"
    assert "Idempotency-Replayed" not in first.headers
    other = client.post("/v1/jobs", json={"prompt": "ho"}, headers=headers)
    assert other.status_code == 422
    assert other.json["code"] == "idempotency_key_reused"
    assert count(database) == 1


@pytest.mark.usefixtures("unhurried")
def test_fifty_at_once_with_one_key_make_one_job(app: Flask, database: Database) -> None:
    """Whoever is first makes the job, and all get the same answer (or 409 while it is being made)."""

    def post(_: int) -> tuple[int, str]:
        answer = app.test_client().post("/v1/jobs", json={"prompt": "hi"}, headers={"Idempotency-Key": "k"})
        return answer.status_code, answer.json.get("id", "")

    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(post, range(50)))
    assert count(database) == 1
    assert {status for status, _ in answers} <= {202, 409}
    assert len({job_id for status, job_id in answers if status == 202}) == 1
    assert sum(status == 202 for status, _ in answers) >= 40


def test_a_refused_request_leaves_its_key_free(client: FlaskClient, database: Database) -> None:
    """After a 422 the same key may be used for the corrected request."""
    headers = {"Idempotency-Key": "abc"}
    assert client.post("/v1/jobs", json={"prompt": 5}, headers=headers).status_code == 422
    assert client.post("/v1/jobs", json={"prompt": "5"}, headers=headers).status_code == 202
    assert count(database) == 1


def test_a_taken_request_is_answered_again_though_it_would_be_refused_now(
    client: FlaskClient, context: Context, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same key and bytes get the first answer when the model is gone by then; other bytes or keys the refusal."""
    headers = {"Idempotency-Key": "abc"}
    first = client.post("/v1/jobs", json={"prompt": "hi"}, headers=headers)
    monkeypatch.setattr(context.known, "get", lambda _: None)
    again = client.post("/v1/jobs", json={"prompt": "hi"}, headers=headers)
    assert (again.status_code, again.data) == (202, first.data)
    assert again.headers["Location"] == first.headers["Location"]
    assert again.headers["Idempotency-Replayed"] == "true"
    for prompt, key in (("ho", "abc"), ("hi", "abd"), ("hi", None)):
        answer = client.post("/v1/jobs", json={"prompt": prompt}, headers={"Idempotency-Key": key} if key else {})
        assert (answer.status_code, answer.json["code"]) == (422, "model_not_found")
    assert count(database) == 1


@pytest.mark.parametrize("key", ["", "with blank", "ü", "k" * 256])
def test_a_bad_idempotency_key_is_refused(client: FlaskClient, key: str) -> None:
    """It must be 1 to 255 visible ASCII characters."""
    answer = client.post("/v1/jobs", json={"prompt": "hi"}, headers={"Idempotency-Key": key.encode().decode("latin-1")})
    assert answer.status_code == 422
    assert answer.json["errors"][0]["field"] == "Idempotency-Key"


def test_expiry_is_counted_from_now(client: FlaskClient) -> None:
    """`expires_in` seconds after it was created the job expires."""
    job = submit(client, expires_in=90)
    assert job["expires_at"] - job["created_at"] == pytest.approx(90, abs=1)


def test_webhook_secret_is_never_shown(client: FlaskClient) -> None:
    """The address is shown, the secret is not, and neither is the body."""
    secret = "whsec_" + "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="
    job = submit(client, webhook={"url": "https://example.com/hook", "secret": secret})
    shown = client.get(f"/v1/jobs/{job['id']}")
    assert shown.json["webhook_url"] == "https://example.com/hook"
    assert "MDEyMz" not in shown.text
    assert "body" not in shown.json
