"""`/v1/batches`, as OpenAI's API has it; tests/conformance holds the whole service to it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from flask import Flask
from openai.types import Batch
from werkzeug.test import TestResponse

from models import bulk_leases, keys
from stoker.settings import Settings
from tests.webapi.bulk_kit import CHAT, Service, good_but, requests
from webapi.context import Context

GONE = "file-" + "0" * 32
MOMENTS = ("in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled")


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Return settings with more windows than OpenAI has."""
    return settings.model_copy(update={"batch_windows": "24h,30m,none"})


def made(answer: TestResponse) -> dict[str, Any]:
    """Return the document of a batch, which the openai package must be able to read."""
    assert answer.status_code == 200, answer.text
    Batch.model_validate(answer.json, strict=True)
    return dict(answer.json)


def look(service: Service, batch_id: str) -> dict[str, Any]:
    """Return a batch's document."""
    return made(service.client.get(f"/v1/batches/{batch_id}"))


def refused(answer: TestResponse, status: int, **error: Any) -> str:
    """Check an error of OpenAI's shape; return its message."""
    assert answer.status_code == status, answer.text
    found = answer.json["error"]
    assert set(found) == {"message", "type", "param", "code"}
    assert {name: found[name] for name in error} == error
    return str(found["message"])


def test_a_new_batch(service: Service, rung: list[str]) -> None:
    """It is validating, with nothing counted; its tender is told."""
    file_id = service.upload(requests(2))
    batch = made(service.batch(file_id, metadata={"a": "ü"}))
    assert (batch["object"], batch["status"], batch["endpoint"]) == ("batch", "validating", CHAT)
    assert (batch["input_file_id"], batch["completion_window"], batch["metadata"]) == (file_id, "24h", {"a": "ü"})
    assert batch["request_counts"] == {"total": 0, "completed": 0, "failed": 0}
    assert batch["expires_at"] - batch["created_at"] in {86_400, 86_401}
    nothing = ["errors", "usage", "model", "output_file_id", "error_file_id", *(f"{name}_at" for name in MOMENTS)]
    assert {batch[name] for name in nothing} == {None}
    assert rung == [batch["id"]]
    assert look(service, batch["id"]) == batch


def test_from_file_to_files(service: Service) -> None:
    """The total is known before the first line has run; output and errors are files in the end."""
    batch_id = made(service.batch(service.upload(requests(3))))["id"]
    service.tend(batch_id)
    batch = look(service, batch_id)
    assert (batch["status"], batch["model"]) == ("in_progress", "fake")
    assert batch["request_counts"] == {"total": 3, "completed": 0, "failed": 0}
    assert batch["usage"]["total_tokens"] == 0
    service.run(batch_id, good_but(2))
    batch = look(service, batch_id)
    assert batch["status"] == "completed"
    assert batch["request_counts"] == {"total": 3, "completed": 2, "failed": 1}
    assert batch["usage"] == {
        "input_tokens": 4,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": 6,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 10,
    }
    for name, lines in (("output_file_id", 2), ("error_file_id", 1)):
        content = service.client.get(f"/v1/files/{batch[name]}/content")
        assert len(content.data.splitlines()) == lines
    moments = [batch[f"{name}_at"] for name in ("created", "in_progress", "finalizing", "completed")]
    assert moments == sorted(moments)


def test_the_total_is_known_while_lines_become_jobs(service: Service, context: Context) -> None:
    """Lines become jobs bit by bit; the batch counts those that were validated from the first moment on."""
    batch_id = made(service.batch(service.upload(requests(5))))["id"]
    with context.database.transaction() as tx:
        held = bulk_leases.hold(tx, batch_id, "me", 5)
        assert held is not None
        bulk_leases.move(tx, held, "me", "running", report={"lines": 5})
    assert look(service, batch_id)["request_counts"]["total"] == 5
    assert service.get(batch_id)["counts"]["total"] == 0


@pytest.mark.parametrize("which", ["unknown", "odd", "of another purpose", "of a bulk", "of another owner"])
def test_a_file_that_is_not_there(service: Service, context: Context, which: str) -> None:
    """The batch is made, and fails: `invalid_request`, `file_id`, no line."""
    file_id = {"unknown": GONE, "odd": "x\x7fü"}.get(which) or service.upload(requests(1), "user_data")
    if which == "of a bulk":
        service.submit(requests(1))
        file_id = service.stored()[-1].id
    headers = {}
    if which == "of another owner":
        file_id = service.upload(requests(1))
        with context.database.transaction() as tx:
            headers = {"Authorization": f"Bearer {keys.create(tx, 'another').secret}"}
    batch = made(service.batch(file_id, headers=headers))
    assert (batch["status"], batch["errors"]) == ("validating", None)
    row = next(row for row in service.rows() if row.id == batch["id"])
    assert row.owner == ("another" if headers else "local")
    if not headers:
        service.tend(batch["id"])
        failed = look(service, batch["id"])
        assert (failed["status"], failed["input_file_id"]) == ("failed", file_id)
        (fault,) = failed["errors"]["data"]
        assert (fault["code"], fault["param"], fault["line"]) == ("invalid_request", "file_id", None)


def test_faults_in_the_file(service: Service) -> None:
    """A batch with a bad line fails as a whole, and lists what is wrong."""
    batch_id = made(service.batch(service.upload(requests(1) + b"nonsense\n")))["id"]
    service.tend(batch_id)
    batch = look(service, batch_id)
    assert (batch["status"], batch["errors"]["object"]) == ("failed", "list")
    assert (batch["errors"]["data"][0]["code"], batch["errors"]["data"][0]["line"]) == ("invalid_json_line", 2)
    assert batch["request_counts"] == {"total": 0, "completed": 0, "failed": 0}


@pytest.mark.parametrize(
    ("change", "code", "param"),
    [
        ({"input_file_id": None}, "missing_required_parameter", "input_file_id"),
        ({"input_file_id": 5}, "invalid_type", "input_file_id"),
        ({"input_file_id": "f" * 65}, "invalid_value", "input_file_id"),
        ({"input_file_id": "a\x00"}, "nul_character", None),
        ({"endpoint": None}, "missing_required_parameter", "endpoint"),
        ({"endpoint": "/v1/nonsense"}, "invalid_value", "endpoint"),
        ({"completion_window": "7d"}, "invalid_value", "completion_window"),
        ({"completion_window": 24}, "invalid_type", "completion_window"),
        ({"metadata": ["a"]}, "invalid_type", "metadata"),
        ({"metadata": {"a": 5}}, "invalid_type", "metadata.a"),
        ({"metadata": {"a": None}}, "invalid_type", "metadata.a"),
        ({"metadata": {"a": "v" * 513}}, "invalid_value", "metadata.a"),
        ({"metadata": {"k" * 65: "v"}}, "invalid_value", "metadata." + "k" * 64),
        ({"metadata": {str(n): "" for n in range(17)}}, "invalid_value", "metadata"),
        ({"output_expires_after": "never"}, "invalid_type", "output_expires_after"),
        ({"output_expires_after": {"seconds": 3600}}, "missing_required_parameter", "output_expires_after.anchor"),
        ({"output_expires_after": {"anchor": "created_at"}}, "missing_required_parameter", None),
        ({"output_expires_after": {"anchor": "x", "seconds": 3600}}, "invalid_value", "output_expires_after.anchor"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 3599}}, "invalid_value", None),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 2_592_001}}, "invalid_value", None),
        ({"output_expires_after": {"anchor": "created_at", "seconds": True}}, "invalid_type", None),
        ({"idempotency_key": "with blank"}, "invalid_value", "idempotency_key"),
        ({"idempotency_key": 5}, "invalid_type", "idempotency_key"),
    ],
    ids=str,
)
def test_bad_parameters(service: Service, change: dict[str, Any], code: str, param: str | None) -> None:
    """Each is 400 with a code, the parameter's name, and what is allowed."""
    error = {"code": code} | ({} if param is None else {"param": param})
    message = refused(service.batch(GONE, **change), 400, type="invalid_request_error", **error)
    if param == "endpoint" and code == "invalid_value":
        assert all(endpoint in message for endpoint in (CHAT, "/v1/embeddings", "/v1/responses", "/v1/completions"))
    if param == "completion_window" and code == "invalid_value":
        assert all(f"'{window}'" in message for window in ("24h", "30m", "none"))
    assert service.rows() == []


@pytest.mark.parametrize("body", [b"{", b"[]", b'"x"', b"\xff"])
def test_bad_json(service: Service, body: bytes) -> None:
    """What is no JSON object is 400."""
    refused(service.client.post("/v1/batches", data=body, content_type="application/json"), 400)


def test_unknown_members_are_ignored(service: Service) -> None:
    """OpenAI may have parameters that are not known here."""
    made(service.batch(GONE, prompt_cache=True, extra={"a": [1]}))


@pytest.mark.parametrize(("window", "seconds"), [("24h", 86_400), ("30m", 1800), ("none", None)])
def test_windows_of_the_operator(service: Service, window: str, seconds: int | None) -> None:
    """Each window that the setting allows has its end; `none` has no end."""
    batch = made(service.batch(GONE, completion_window=window))
    assert batch["completion_window"] == window
    if seconds is None:
        assert batch["expires_at"] is None
    else:
        assert batch["expires_at"] - batch["created_at"] in {seconds, seconds + 1}


def test_output_expires_after(service: Service) -> None:
    """The output file expires so many seconds after its own creation."""
    policy = {"anchor": "created_at", "seconds": 7200}
    batch_id = made(service.batch(service.upload(requests(1)), output_expires_after=policy))["id"]
    service.tend(batch_id)
    service.run(batch_id)
    file = service.client.get(f"/v1/files/{look(service, batch_id)['output_file_id']}").json
    assert file["expires_at"] - file["created_at"] == 7200


# The same again


@pytest.mark.parametrize("where", ["header", "body"])
def test_the_same_key_is_the_same_batch(service: Service, where: str) -> None:
    """The same key and body is the same batch; another body is 409, which the client is told not to try again."""
    in_header = where == "header"
    headers = {"Idempotency-Key": "abc"} if in_header else {}
    fields = {} if in_header else {"idempotency_key": "abc"}
    first = made(service.batch(GONE, headers=headers, **fields))
    assert made(service.batch(GONE, headers=headers, **fields)) == first
    other = service.batch(GONE, headers=headers, metadata={"a": "b"}, **fields)
    refused(other, 409, type="invalid_request_error")
    assert other.headers["x-should-retry"] == "false"
    assert len(service.rows()) == 1


@pytest.mark.usefixtures("unhurried")
def test_many_at_once_with_one_key(app: Flask, service: Service) -> None:
    """Of 20 requests at once comes one batch."""

    def post(_: int) -> tuple[int, str]:
        body = {"input_file_id": GONE, "endpoint": CHAT, "completion_window": "24h"}
        answer = app.test_client().post("/v1/batches", json=body, headers={"Idempotency-Key": "k"})
        return answer.status_code, answer.json.get("id", "")

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(post, range(20)))
    assert {status for status, _ in answers} <= {200, 409}
    assert len({batch_id for status, batch_id in answers if status == 200}) == 1
    assert len(service.rows()) == 1


def test_a_taken_request_is_answered_again_though_it_would_be_refused_now(
    service: Service, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same key gets its batch when the operator has taken back the window since."""
    headers = {"Idempotency-Key": "abc"}
    first = made(service.batch(GONE, headers=headers, completion_window="30m"))
    monkeypatch.setitem(context.settings.__dict__, "windows", {"24h": 86_400.0})
    assert made(service.batch(GONE, headers=headers, completion_window="30m")) == first
    refused(service.batch(GONE, completion_window="30m"), 400, param="completion_window")


# The list, and one


def test_list_pages_newest_first(service: Service) -> None:
    """Pages follow each other by `after=last_id` until `has_more` is false; bulks are not among them."""
    ids = []
    for _ in range(5):
        ids.append(made(service.batch(GONE))["id"])
        service.submit(b'{"prompt": "a"}\n')
    seen: list[str] = []
    after: dict[str, Any] = {}
    while True:
        page = service.client.get("/v1/batches", query_string={"limit": 2, **after}).json
        data = [batch["id"] for batch in page["data"]]
        assert (page["object"], page["first_id"], page["last_id"]) == ("list", data[0], data[-1])
        seen += data
        if not page["has_more"]:
            break
        after = {"after": data[-1]}
    assert seen == ids[::-1]
    assert service.client.get("/v1/batches").json["data"][-1] == look(service, ids[0])


@pytest.mark.parametrize("query", ["limit=0", "limit=101", "limit=x", "after=batch_1", "after=bulk_" + "0" * 32])
def test_bad_queries(service: Service, query: str) -> None:
    """A limit outside 1 to 100, or an `after` that is no batch's id, is 400."""
    refused(service.client.get(f"/v1/batches?{query}"), 400, param=query.partition("=")[0])


def test_an_empty_list(service: Service) -> None:
    """Without batches the list is empty."""
    empty = {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}
    assert service.client.get("/v1/batches").json == empty


def test_what_is_not_there(service: Service, context: Context) -> None:
    """An unknown id, an odd one, a bulk's and a batch of another owner are 404."""
    batch_id, bulk_id = made(service.batch(GONE))["id"], service.submit(b'{"prompt": "a"}\n')
    with context.database.transaction() as tx:
        headers = {"Authorization": f"Bearer {keys.create(tx, 'another').secret}"}
    for name in (batch_id, bulk_id, "batch_" + "0" * 32, "batch_1", "x" * 300):
        for method, path in (("GET", ""), ("POST", "/cancel")):
            answer = service.client.open(f"/v1/batches/{name}{path}", method=method, headers=headers)
            assert refused(answer, 404) == f"No batch found with id '{name[:80]}'."
    assert service.client.get("/v1/batches", headers=headers).json["data"] == []


# Cancelling


def test_cancel(service: Service, rung: list[str]) -> None:
    """What was done is kept; cancelling twice is fine."""
    batch_id = made(service.batch(service.upload(requests(4))))["id"]
    service.tend(batch_id)
    service.run(batch_id, most=1)
    for _ in range(2):
        batch = made(service.client.post(f"/v1/batches/{batch_id}/cancel"))
        assert batch["status"] == "cancelling"
        assert batch["cancelling_at"] is not None
    assert rung == [batch_id] * 3
    service.tend(batch_id)
    batch = made(service.client.post(f"/v1/batches/{batch_id}/cancel"))
    assert batch["status"] == "cancelled"
    assert batch["request_counts"] == {"total": 4, "completed": 1, "failed": 0}
    assert None not in {batch["output_file_id"], batch["error_file_id"]}


def test_too_late_to_cancel(service: Service) -> None:
    """A batch that has completed or failed cannot be cancelled: 409, which is not to be tried again."""
    done, failed = made(service.batch(service.upload(requests(1))))["id"], made(service.batch(GONE))["id"]
    for batch_id in (done, failed):
        service.tend(batch_id)
    service.run(done)
    for batch_id, status in ((done, "completed"), (failed, "failed")):
        answer = service.client.post(f"/v1/batches/{batch_id}/cancel")
        assert refused(answer, 409) == f"Cannot cancel a batch with status '{status}'."
        assert answer.headers["x-should-retry"] == "false"
