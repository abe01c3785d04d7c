"""Any request: how it is refused, sent again, and kept from others."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from .kit import CHAT, Api, Ended, answered, fresh, jsonl, refused

row = pytest.mark.row

REFUSED = {
    "400 files": ("POST", "/files", {"files": {"purpose": (None, "batch")}}, {400}),
    "400 batches": ("POST", "/batches", {"json": {}}, {400}),
    "400 not JSON": ("POST", "/batches", {"content": b"{", "headers": {"Content-Type": "application/json"}}, {400}),
    "400 a list": ("POST", "/batches", {"json": []}, {400}),
    "400 no body": ("POST", "/batches", {"headers": {"Content-Type": "application/json"}}, {400}),
    "404 file": ("GET", "/files/file-0123456789abcdef0123456789abcdef", {}, {404}),
    "404 batch": ("GET", "/batches/batch_0123456789abcdef0123456789abcdef", {}, {404}),
    "405 files": ("PUT", "/files", {"json": {}}, {404, 405}),
    "405 batches": ("DELETE", "/batches", {}, {404, 405}),
    "413 batches": ("POST", "/batches", {"json": {"metadata": {"a": "x" * 40_000_000}}}, {400, 413}),
    "415 files": ("POST", "/files", {"json": {"purpose": "batch"}}, {400, 415}),
    "415 batches": ("POST", "/batches", {"content": b"{}", "headers": {"Content-Type": "text/csv"}}, {400, 415}),
    "415 cut off": (
        "POST",
        "/files",
        {"content": b"--x\r\nnonsense", "headers": {"Content-Type": "multipart/form-data; boundary=x"}},
        {400},
    ),
}


@row("errors.envelope")
@pytest.mark.parametrize("which", REFUSED)
def test_every_refusal_is_the_same_envelope(api: Api, which: str) -> None:
    """Whatever is wrong with a request, the answer is `{"error": {message, type, param, code}}`."""
    method, path, options, statuses = REFUSED[which]
    refused(api.ask(method, path, **options), *statuses)


@row("errors.envelope")
def test_every_answer_has_an_id(api: Api) -> None:
    """Each answer, good or bad, has an `x-request-id` of its own."""
    answers = [api.ask("GET", "/files"), api.ask("GET", "/batches"), api.ask("GET", f"/batches/{fresh('batch_')}")]
    ids = [answer.headers["x-request-id"] for answer in answers]
    assert all(ids)
    assert len(set(ids)) == 3


@row("errors.envelope")
@pytest.mark.parametrize("path", ["/files", "/batches", "/files/file-1", "/files/file-1/content", "/batches/batch_1"])
def test_without_a_good_key(anonymous: Api, path: str) -> None:
    """A key that is not one is 401, whatever is asked for."""
    refused(anonymous.ask("GET", path), 401)


@row("owners")
def test_a_file_of_another(api: Api, other: Api) -> None:
    """A file of another owner is 404, in no list, and cannot be deleted."""
    file_id = api.upload(b"{}\n")["id"]
    for method, path in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
        refused(other.ask(method, f"/files/{file_id}{path}"), 404)
    assert file_id not in {file["id"] for file in other.get("/files")["data"]}
    assert api.content(file_id) == b"{}\n"


@row("owners")
def test_a_batch_of_another(api: Api, other: Api, good: Ended) -> None:
    """A batch of another owner is 404, in no list, and cannot be cancelled."""
    refused(other.ask("GET", f"/batches/{good.batch['id']}"), 404)
    refused(other.ask("POST", f"/batches/{good.batch['id']}/cancel"), 404)
    assert good.batch["id"] not in {batch["id"] for batch in other.get("/batches", limit=100)["data"]}
    for name in ("input_file_id", "output_file_id"):
        refused(other.ask("GET", f"/files/{good.batch[name]}/content"), 404)


@row("owners")
def test_a_batch_of_anothers_file(api: Api, other: Api) -> None:
    """A batch of another owner's file is one of a file that there is not."""
    file_id = api.upload(jsonl(api.line("a")))["id"]
    ended = other.end(other.create(file_id))
    assert ended.batch["status"] == "failed"
    assert ended.faults[0]["code"] == "invalid_request"


# The same again


@row("retries")
def test_the_same_key_is_the_same_batch(api: Api) -> None:
    """The same `Idempotency-Key` with the same body is the same batch."""
    file_id, headers = api.unknown_file(), {"Idempotency-Key": fresh()}
    first = api.create(file_id, headers=headers)
    again = api.create(file_id, headers=headers)
    assert again["id"] == first["id"]
    assert api.create(file_id)["id"] != first["id"]


@row("retries")
def test_the_same_key_for_another_batch(api: Api) -> None:
    """The same `Idempotency-Key` with another body is 409."""
    file_id, headers = api.unknown_file(), {"Idempotency-Key": fresh()}
    api.create(file_id, headers=headers)
    refused(api.try_create(file_id, headers=headers, metadata={"a": "b"}), 409)


@row("retries")
def test_the_key_in_the_body(api: Api) -> None:
    """`idempotency_key` in the body (`extra_body` of the openai package) does the same."""
    file_id, key = api.unknown_file(), fresh()
    first = api.create(file_id, idempotency_key=key)
    assert api.create(file_id, idempotency_key=key)["id"] == first["id"]
    refused(api.try_create(file_id, idempotency_key=key, metadata={"a": "b"}), 409)


@row("retries")
def test_many_at_once_with_one_key(api: Api) -> None:
    """Of many requests at once with one key comes one batch; some may be told 409 while the first is at work."""
    file_id, headers = api.unknown_file(), {"Idempotency-Key": fresh()}
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: api.try_create(file_id, headers=headers), range(16)))
    assert {answer.status_code for answer in answers} <= {200, 409}
    ids = {answer.json()["id"] for answer in answers if answer.status_code == 200}
    assert len(ids) == 1
    assert {answered(api.try_create(file_id, headers=headers))["id"]} == ids


@row("retries")
def test_the_same_key_is_the_same_file(api: Api) -> None:
    """The same `Idempotency-Key` with the same upload is the same file; with other bytes it is 409."""
    headers = {"Idempotency-Key": fresh()}

    def upload(content: bytes) -> httpx.Response:
        form = {"data": {"purpose": "batch"}, "files": {"file": ("input.jsonl", content)}}
        return api.ask("POST", "/files", headers=headers, **form)

    first = answered(upload(b"{}\n"))
    api.made.append(first["id"])
    assert answered(upload(b"{}\n"))["id"] == first["id"]
    refused(upload(b"{}\n\n"), 409)


@row("owners")
def test_anothers_key_is_another_key(api: Api, other: Api) -> None:
    """The same `Idempotency-Key` of two owners are two keys."""
    headers = {"Idempotency-Key": fresh()}
    first, second = (one.create("file-0123456789abcdef", headers=headers, endpoint=CHAT) for one in (api, other))
    assert first["id"] != second["id"]
