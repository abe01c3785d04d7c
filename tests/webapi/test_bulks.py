"""`/v1/bulks` as clients use it."""

from __future__ import annotations

from typing import Any

import pytest

from models import keys
from models.db import Database
from stoker.settings import Settings
from tests.webapi.bulk_kit import Service, bad, good_but, prompts, taken
from webapi.app import create_app
from webapi.context import EXTENSION, Context

# Looking at bulks


def test_counts_while_it_runs(service: Service) -> None:
    """The lines are queued, running or done; rate, tokens and the time left follow from those that an engine had."""
    bulk_id = service.begin(prompts(9) + b"nonsense\n")
    assert service.get(bulk_id)["rate"] is None
    bulk = service.run(bulk_id, good_but(2), most=4)
    assert (bulk["state"], bulk["counted"], bulk["finished_at"]) == ("running", True, None)
    counts = {"total": 10, "queued": 5, "running": 0, "succeeded": 3, "failed": 2, "invalid": 1}
    assert bulk["counts"] == counts | {"cancelled": 0, "expired": 0}
    assert bulk["usage"] == {"prompt_tokens": 6, "completion_tokens": 9, "total_tokens": 15}
    assert bulk["eta"] == pytest.approx(5 / bulk["rate"], rel=0.1, abs=0.2)
    assert bulk["tokens_per_second"] == pytest.approx(bulk["rate"] * 15 / 4, rel=0.01)
    ended = service.run(bulk_id)
    assert (ended["state"], ended["eta"]) == ("completed", None)
    assert ended["finished_at"] >= ended["started_at"] >= ended["created_at"]
    assert service.get(bulk_id) == ended


def test_list_pages_newest_first(service: Service) -> None:
    """Pages follow each other by `next_after`; batches are among the bulks unless `kind` says otherwise."""
    ids = [service.submit(prompts(1)) for _ in range(3)]
    ids.append(service.batch("file-x").json["id"])
    ids.append(service.submit(prompts(1)))
    seen, after = [], None
    while True:
        page = service.client.get("/v1/bulks", query_string={"limit": 2} | ({"after": after} if after else {})).json
        seen += [bulk["id"] for bulk in page["data"]]
        after = page["next_after"]
        if not page["has_more"]:
            assert after is None
            break
    assert seen == ids[::-1]

    def found(**query: str) -> int:
        return len(service.client.get("/v1/bulks", query_string=query).json["data"])

    assert (found(kind="batch"), found(kind="bulk"), found(state="validating"), found(state="failed")) == (1, 4, 5, 0)


def test_list_by_metadata(service: Service) -> None:
    """`metadata.key=value` finds bulks; other parameters are refused."""
    service.submit(prompts(1), **{"metadata.run": "7"})
    service.submit(prompts(1), **{"metadata.run": "8"})
    listed = service.client.get("/v1/bulks", query_string={"metadata.run": "7"})
    assert [bulk["metadata"] for bulk in listed.json["data"]] == [{"run": "7"}]
    for query in ({"nonsense": "1"}, {"after": "bulk_1"}, {"after": "job_" + "0" * 32}, {"state": "x"}, {"limit": "0"}):
        assert service.client.get("/v1/bulks", query_string=query).status_code == 422


def test_the_jobs_of_a_bulk(service: Service) -> None:
    """The list of jobs shows those of one bulk, with their lines and names."""
    bulk_id = service.begin(prompts(2))
    service.begin(prompts(2))
    listed = service.client.get("/v1/jobs", query_string={"bulk_id": bulk_id}).json["data"]
    assert [(job["line"], job["custom_id"], job["bulk_id"]) for job in listed] == [
        (2, "line-2", bulk_id),
        (1, "line-1", bulk_id),
    ]


VERBS = [
    ("GET", ""),
    ("DELETE", ""),
    ("PATCH", ""),
    ("GET", "/results"),
    ("GET", "/errors"),
    *(("POST", f"/{verb}") for verb in ("cancel", "pause", "resume", "retry")),
]


@pytest.mark.parametrize(("method", "path"), VERBS)
def test_what_is_not_there(service: Service, context: Context, method: str, path: str) -> None:
    """An unknown id, an odd one, and a bulk of another owner are all 404."""
    bulk_id = service.submit(prompts(1))
    with context.database.transaction() as tx:
        secret = keys.create(tx, "another").secret
    options: dict[str, Any] = {"json": {"lane": "bulk"}} if method == "PATCH" else {}
    headers = {"Authorization": f"Bearer {secret}"}
    for name in (bulk_id, "bulk_" + "0" * 32, "bulk_1", "x" * 300, "%00"):
        answer = service.client.open(f"/v1/bulks/{name}{path}", method=method, headers=headers, **options)
        assert (answer.status_code, answer.json["code"]) == (404, "not_found"), name


def test_without_a_key(settings: Settings, database: Database) -> None:
    """Where there are keys, each call needs one."""
    with database.transaction() as tx:
        keys.create(tx, "alice")
    app = create_app(settings)
    for method, path in (("GET", "/v1/bulks"), ("POST", "/v1/bulks"), ("GET", "/v1/bulks/bulk_1/results")):
        assert app.test_client().open(path, method=method).status_code == 401
    app.extensions[EXTENSION].close()


# Steering


def test_cancel(service: Service, rung: list[str]) -> None:
    """What has ended stays, the rest is cancelled; twice is fine, but not once it has completed."""
    bulk_id = service.begin(prompts(5))
    service.run(bulk_id, most=2)
    assert service.do(bulk_id, "cancel").json["state"] == "cancelling"
    assert service.do(bulk_id, "cancel").json["state"] == "cancelling"
    assert rung == [bulk_id] * 3
    bulk = service.tend(bulk_id)
    assert bulk["state"] == "cancelled"
    assert (bulk["counts"]["succeeded"], bulk["counts"]["cancelled"], bulk["counts"]["queued"]) == (2, 3, 0)
    assert service.do(bulk_id, "cancel").json == bulk
    done = service.ended(prompts(1))
    refused = service.do(done, "cancel")
    assert (refused.status_code, refused.json["code"]) == (409, "already_finished")


def test_pause_and_resume(service: Service, rung: list[str]) -> None:
    """The waiting lines of a paused bulk are set aside until it is resumed, each as often as one likes."""
    bulk_id = service.begin(prompts(3))
    for verb, paused, lane in (("pause", True, "paused"), ("resume", False, "bulk")):
        for _ in range(2):
            bulk = service.do(bulk_id, verb).json
            assert (bulk["paused"], bulk["lane"], bulk["eta"]) == (paused, "bulk", None)
        service.tend(bulk_id)
        assert {job.lane for job in service.jobs(bulk_id)} == {lane}
    assert len(rung) == 5
    service.run(bulk_id)
    for verb in ("pause", "resume"):
        assert service.do(bulk_id, verb).status_code == 409


def test_another_lane(service: Service, rung: list[str]) -> None:
    """PATCH brings the lines that wait into another lane; nothing else can be changed."""
    bulk_id = service.begin(prompts(3))
    answer = service.client.patch(f"/v1/bulks/{bulk_id}", json={"lane": "realtime"})
    assert (answer.status_code, answer.json["lane"]) == (200, "realtime")
    assert rung == [bulk_id] * 2
    service.tend(bulk_id)
    assert {job.lane for job in service.jobs(bulk_id)} == {"realtime"}
    for body in ({}, {"lane": "paused"}, {"lane": "bulk", "model": "x"}, {"lane": 5}):
        assert service.client.patch(f"/v1/bulks/{bulk_id}", json=body).status_code == 422
    service.run(bulk_id)
    assert service.client.patch(f"/v1/bulks/{bulk_id}", json={"lane": "bulk"}).status_code == 409


def test_delete(service: Service, rung: list[str]) -> None:
    """A bulk that has ended goes with its jobs, results and upload; one that runs stays."""
    bulk_id = service.begin(prompts(3))
    refused = service.client.delete(f"/v1/bulks/{bulk_id}")
    assert (refused.status_code, refused.json["code"]) == (409, "still_running")
    service.run(bulk_id)
    job_id = service.jobs(bulk_id)[0].id
    assert service.client.delete(f"/v1/bulks/{bulk_id}").json == {"id": bulk_id, "object": "bulk", "deleted": True}
    assert rung == [bulk_id] * 2
    for path in ("", "/results"):
        assert service.client.get(f"/v1/bulks/{bulk_id}{path}").status_code == 404
    assert service.client.delete(f"/v1/bulks/{bulk_id}").status_code == 404
    assert service.client.get("/v1/bulks").json["data"] == []
    with pytest.raises(AssertionError):
        service.tend(bulk_id)
    assert (service.rows(), service.stored()) == ([], [])
    assert service.client.get(f"/v1/jobs/{job_id}").status_code == 404


def test_stop_after_failed(service: Service) -> None:
    """A bulk of which more lines fail than it allows is stopped, and says so."""
    bulk_id = service.begin(prompts(40), stop_after_failed="0.5")
    bulk = service.run(bulk_id, bad, most=25)
    assert (bulk["state"], bulk["stop_after_failed"]) == ("failed", 0.5)
    assert bulk["errors"][0]["code"] == "too_many_failures"
    assert (bulk["counts"]["failed"], bulk["counts"]["cancelled"]) == (25, 15)


def test_dry_run(service: Service) -> None:
    """Every line is read and nothing runs: the report says how many are good and what is wrong with the others."""
    bulk_id = service.submit(prompts(3) + b"nonsense\n", dry_run="true")
    bulk = service.tend(bulk_id)
    assert (bulk["state"], bulk["dry_run"], bulk["counts"]["total"]) == ("completed", True, 0)
    report = bulk["report"]
    assert (report["lines"], report["valid"], report["invalid"]) == (4, 3, 1)
    assert (report["errors"][0]["line"], report["errors"][0]["code"]) == (4, "invalid_json_line")
    assert report["tokens"] > 0
    assert service.jobs(bulk_id) == []


# Once more


def test_retry(service: Service, rung: list[str]) -> None:
    """The lines that did not succeed run again as a new bulk, with their numbers and names, and changed parameters."""
    old = service.ended(
        prompts(5, max_tokens=5) + b"nonsense\n", good_but(2, 4), lane="standard", **{"metadata.a": "b"}
    )
    answer = service.do(old, "retry", json={"max_tokens": 500, "temperature": 0, "stop_after_failed": 0.9})
    bulk = taken(answer)
    assert answer.headers["Location"] == f"/v1/bulks/{bulk['id']}"
    assert (bulk["retry_of"], bulk["kind"], bulk["lane"], bulk["metadata"]) == (old, "bulk", "standard", {"a": "b"})
    assert bulk["stop_after_failed"] == 0.9
    assert rung[-1] == bulk["id"]
    service.tend(bulk["id"])
    assert [(job.line_no, job.custom_id) for job in service.jobs(bulk["id"])] == [(2, "line-2"), (4, "line-4")]
    assert [(body["max_tokens"], body["temperature"]) for body in service.asked(bulk["id"])] == [(500, 0)] * 2
    assert service.run(bulk["id"])["counts"]["succeeded"] == 2
    assert service.get(old)["counts"]["failed"] == 3


def test_a_retry_needs_no_body(service: Service) -> None:
    """Without a body the lines run again as they were."""
    old = service.ended(prompts(2), bad)
    bulk_id = taken(service.do(old, "retry"))["id"]
    service.tend(bulk_id)
    assert service.asked(bulk_id) == service.asked(old)


def test_what_cannot_be_retried(service: Service) -> None:
    """409 while it runs; 422 when nothing failed but lines that could not be read, or for what is not the engine's."""
    running = service.begin(prompts(1))
    assert service.do(running, "retry").json["code"] == "still_running"
    done = service.ended(prompts(1) + b"nonsense\n")
    nothing = service.do(done, "retry")
    assert (nothing.status_code, nothing.json["code"]) == (422, "nothing_to_retry")
    failed = service.ended(prompts(1), bad)
    for body in ({"system": "x"}, {"file_id": "x"}, {"model": "nobody"}, {"prompt": "x"}, {"max_tokens": 0}):
        assert service.do(failed, "retry", json=body).status_code == 422
    assert len(service.rows()) == 3


def test_the_same_retry_twice(service: Service) -> None:
    """The same key is the same new bulk; for another body, or another bulk, it is refused."""
    first, second = service.ended(prompts(1), bad), service.ended(prompts(1), bad)
    headers = {"Idempotency-Key": "abc"}
    made = service.do(first, "retry", json={"seed": 1}, headers=headers)
    assert service.do(first, "retry", json={"seed": 1}, headers=headers).data == made.data
    for other, body in ((first, {"seed": 2}), (second, {"seed": 1})):
        assert service.do(other, "retry", json=body, headers=headers).json["code"] == "idempotency_key_reused"
    assert len(service.rows()) == 3


def test_a_bulk_that_is_being_retried_stays(service: Service) -> None:
    """It cannot be deleted before the retry has read its lines, and then it can."""
    old = service.ended(prompts(1), bad)
    again = taken(service.do(old, "retry"))["id"]
    refused = service.client.delete(f"/v1/bulks/{old}")
    assert (refused.status_code, refused.json["code"]) == (409, "still_running")
    service.tend(again)
    assert service.client.delete(f"/v1/bulks/{old}").status_code == 200
    assert service.run(again)["counts"]["succeeded"] == 1


# Batches are bulks


def test_a_batch_is_a_bulk(service: Service) -> None:
    """What was made under /v1/batches is seen, paused, moved and cancelled under /v1/bulks as well."""
    batch_id = service.batch("file-x", metadata={"a": "b"}).json["id"]
    bulk = service.get(batch_id)
    assert (bulk["kind"], bulk["object"], bulk["metadata"], bulk["report"]) == ("batch", "bulk", {"a": "b"}, None)
    assert service.do(batch_id, "pause").json["paused"] is True
    assert service.client.patch(f"/v1/bulks/{batch_id}", json={"lane": "standard"}).json["lane"] == "standard"
    assert service.do(batch_id, "cancel").json["state"] == "cancelling"
    assert service.client.get(f"/v1/batches/{service.submit(prompts(1))}").status_code == 404
