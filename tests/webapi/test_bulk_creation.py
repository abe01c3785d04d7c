"""POST /v1/bulks: every way in, what is refused, and the same request twice."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from werkzeug.test import TestResponse

from models.db import Database
from models.errors import DatabaseUnavailable
from stoker.settings import Settings
from tests.webapi.bulk_kit import LINES, Service, jsonl, prompts, taken
from webapi.context import Context

FIELDS = {
    *("id", "object", "kind", "state", "lane", "paused", "model", "endpoint", "metadata", "webhook_url", "retry_of"),
    *("created_at", "started_at", "finished_at", "expires_at", "dry_run", "stop_after_failed", "report", "errors"),
    *("counts", "counted", "rate", "tokens_per_second", "eta", "usage"),
}
CSV = b'prompt,topic\r\nsay 1,=a\r\n"say\r\n2",b\r\n'


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    """Return settings by which bulks may read a folder."""
    (tmp_path / "in").mkdir()
    changed = {"input_urls": f"file://{tmp_path}/in/", "max_bulk_bytes": 100_000}
    return settings.model_copy(update=changed)


# What comes in


def test_a_bulk_is_stored_before_202(service: Service, rung: list[str]) -> None:
    """The answer names the bulk and says where to look for it; its lines are stored, and read later."""
    answer = service.post(prompts(3), **{"metadata.run": "7", "expires_in": "60"})
    bulk = taken(answer)
    assert answer.headers["Location"] == f"/v1/bulks/{bulk['id']}"
    assert set(bulk) == FIELDS
    assert (bulk["object"], bulk["kind"], bulk["state"], bulk["lane"]) == ("bulk", "bulk", "validating", "bulk")
    assert (bulk["model"], bulk["metadata"], bulk["counted"], bulk["errors"]) == ("fake", {"run": "7"}, False, [])
    assert set(bulk["counts"].values()) == {0}
    assert bulk["expires_at"] - bulk["created_at"] == pytest.approx(60, abs=1)
    assert rung == [bulk["id"]]
    (file,) = service.stored()
    assert b"".join(service.context.storage.read(file.key)) == prompts(3)
    assert (file.purpose, file.expires_at) == ("bulk", None)


def test_what_was_uploaded_is_no_file_of_the_owner(service: Service) -> None:
    """The input of a bulk is not under /v1/files, and no other bulk can be made of it."""
    service.submit(prompts(1))
    (file,) = service.stored()
    assert service.client.get("/v1/files").json["data"] == []
    assert service.client.get(f"/v1/files/{file.id}").status_code == 404
    assert service.client.post("/v1/bulks", json={"file_id": file.id}).json["code"] == "file_not_found"


def _inline(service: Service, data: bytes) -> TestResponse:
    return service.client.post("/v1/bulks", json={"requests": [json.loads(line) for line in data.splitlines()]})


def _of_file(service: Service, data: bytes) -> TestResponse:
    return service.client.post("/v1/bulks", json={"file_id": service.upload(data)})


def _of_packed_file(service: Service, data: bytes) -> TestResponse:
    file_id = service.upload(gzip.compress(data), "user_data", "in.jsonl.gz")
    return service.client.post("/v1/bulks", json={"file_id": file_id})


def _of_url(service: Service, data: bytes) -> TestResponse:
    prefix = service.context.settings.input_prefixes[0]
    Path(prefix.removeprefix("file://"), "a.jsonl").write_bytes(data)
    return service.client.post("/v1/bulks", json={"input_url": f"{prefix}a.jsonl"})


WAYS: dict[str, Callable[[Service, bytes], TestResponse]] = {
    "ndjson": lambda service, data: service.post(data),
    "jsonl": lambda service, data: service.post(data, "application/jsonl"),
    "text": lambda service, data: service.post(data, "text/plain; charset=utf-8"),
    "bytes": lambda service, data: service.post(data, "application/octet-stream"),
    "no type": lambda service, data: service.client.post("/v1/bulks", data=data),
    "encoded": lambda service, data: service.post(gzip.compress(data), headers={"Content-Encoding": "gzip"}),
    "gzip": lambda service, data: service.post(gzip.compress(data), "application/gzip"),
    "form": lambda service, data: service.form("a.jsonl", data),
    "form, any name": lambda service, data: service.form("lines", data),
    "form, gzip": lambda service, data: service.form("A.JSONL.GZ", gzip.compress(data)),
    "requests": _inline,
    "file": _of_file,
    "packed file": _of_packed_file,
    "url": _of_url,
}


@pytest.mark.parametrize("way", WAYS)
def test_each_way_in_makes_the_same_jobs(service: Service, way: str) -> None:
    """Raw or as a form, compressed or not, inline, by a file's id or a URL: the same lines are the same jobs."""
    bulk_id = taken(WAYS[way](service, prompts(3)))["id"]
    assert service.tend(bulk_id)["counts"]["total"] == 3
    assert [job.custom_id for job in service.jobs(bulk_id)] == ["line-1", "line-2", "line-3"]
    assert [body["messages"][0]["content"] for body in service.asked(bulk_id)] == ["say 1", "say 2", "say 3"]


CSV_WAYS: dict[str, Callable[[Service], TestResponse]] = {
    "csv": lambda service: service.post(CSV, "text/csv"),
    "encoded": lambda service: service.post(gzip.compress(CSV), "text/csv", headers={"Content-Encoding": "gzip"}),
    "named": lambda service: service.post(CSV, "application/octet-stream", format="csv"),
    "gzip": lambda service: service.post(gzip.compress(CSV), "application/gzip", format="csv"),
    "form": lambda service: service.form("a.csv", CSV),
    "form, gzip": lambda service: service.form("a.csv.gz", gzip.compress(CSV)),
    "form, named": lambda service: service.form("a", CSV, format="csv"),
    "file": lambda service: service.client.post(
        "/v1/bulks", json={"file_id": service.upload(CSV, "user_data", "a.csv")}
    ),
}


@pytest.mark.parametrize("way", CSV_WAYS)
def test_csv(service: Service, way: str) -> None:
    """CSV is known by its type or name, or because `format` says so; its other columns are kept."""
    bulk_id = taken(CSV_WAYS[way](service))["id"]
    service.tend(bulk_id)
    assert [body["messages"][0]["content"] for body in service.asked(bulk_id)] == ["say 1", "say\r\n2"]
    assert [json.loads(job.columns) for job in service.jobs(bulk_id)] == [{"topic": "=a"}, {"topic": "b"}]


PARAMETERS = {"max_tokens": 7, "temperature": 0.5, "stop": ["\n"], "top_k": 20, "chat_template_kwargs": {"a": True}}


def test_parameters_come_in_three_ways(service: Service) -> None:
    """In a query, as fields of a form, or as JSON: the same defaults of every line, which a line's own go before."""
    data = jsonl({"prompt": "a"}, {"prompt": "b", "max_tokens": 1})
    texts = {name: json.dumps(value) for name, value in PARAMETERS.items()} | {"user": "me", "system": "Be brief."}
    ways = [
        service.post(data, **texts),
        service.form("a.jsonl", data, **texts),
        service.client.post(
            "/v1/bulks",
            json={
                "requests": [{"prompt": "a"}, {"prompt": "b", "max_tokens": 1}],
                **PARAMETERS,
                "user": "me",
                "system": "Be brief.",
            },
        ),
    ]
    for answer in ways:
        bulk_id = taken(answer)["id"]
        service.tend(bulk_id)
        first, second = service.asked(bulk_id)
        assert {name: first[name] for name in PARAMETERS} == PARAMETERS
        assert first["user"] == "me"
        assert first["messages"][0] == {"role": "system", "content": "Be brief."}
        assert second["max_tokens"] == 1


@pytest.mark.parametrize(
    ("text", "value"), [("5", 5), ("0.5", 0.5), ('"5"', "5"), ("a b", "a b"), ("[1]", [1]), ("{a", "{a"), ('""', "")]
)
def test_a_text_that_is_json_is_taken_for_that(service: Service, text: str, value: Any) -> None:
    """In a query `5` is a number, `"5"` and whatever is no JSON a text; null is as good as nothing."""
    bulk_id = service.begin(prompts(1), extra=text, nothing="null")
    (body,) = service.asked(bulk_id)
    assert body["extra"] == value
    assert "nothing" not in body


def test_the_names_that_texts_have(service: Service) -> None:
    """What can only be a text is one in a query, whatever it looks like."""
    bulk_id = service.begin(prompts(1), system="42", **{"metadata.n": "5", "metadata.t": '"x"'})
    assert service.asked(bulk_id)[0]["messages"][0]["content"] == "42"
    assert service.get(bulk_id)["metadata"] == {"n": "5", "t": '"x"'}


def test_the_bytes_of_a_line_are_kept(service: Service) -> None:
    """A number of an inline line reaches the engine as it was written, not as a float would have it."""
    raw = b'{"requests": [ {"prompt": "a",\n "seed": 12345678901234567890, "x": 1.00e3, "y": "\\u00e9"} ]}'
    bulk_id = taken(service.post(raw, "application/json"))["id"]
    service.tend(bulk_id)
    (job,) = service.jobs(bulk_id)
    assert all(part in job.body for part in ('"seed":12345678901234567890', '"x":1.00e3', '"y":"\\u00e9"'))


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"max_tokens": "0"}, "max_tokens"),
        ({"temperature": "hot"}, "temperature"),
        ({"lane": "fast"}, "lane"),
        ({"format": "xml"}, "format"),
        ({"endpoint": "/v1/nonsense"}, "endpoint"),
        ({"model": "nobody"}, "model"),
        ({"expires_in": "-1"}, "expires_in"),
        ({"dry_run": "maybe"}, "dry_run"),
        ({"stop_after_failed": "1.5"}, "stop_after_failed"),
        ({"stop_after_failed": "0"}, "stop_after_failed"),
        ({"webhook_url": "http://127.0.0.1/"}, "webhook_url"),
        ({"webhook": '{"url": "https://example.com", "include_result": true}'}, "webhook.include_result"),
        ({"metadata.a": "x" * 513}, "metadata.a"),
        ({"system": "x", "endpoint": "/v1/embeddings"}, "system"),
        ({"input_url": "s3://a/b"}, "input_url"),
        ({"stream": "true"}, "stream"),
        *(({name: "x"}, name) for name in ("messages", "prompt", "input", "custom_id", "completion_window")),
    ],
)
def test_bad_parameters(service: Service, query: dict[str, str], field: str) -> None:
    """Each is refused before anything is stored, in a query and in a form, and the answer names the field."""
    for answer in (service.post(prompts(1), **query), service.form("a.jsonl", prompts(1), **query)):
        assert answer.status_code == 422, answer.text
        assert answer.json["errors"][0]["field"] == field
    assert service.rows() == []
    assert service.stored() == []
    assert not [path for path in Path(service.context.settings.storage).rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({}, "one_of"),
        ({"requests": [{"prompt": "a"}], "file_id": "file-x"}, "one_of"),
        ({"requests": []}, "invalid_request"),
        ({"requests": {"prompt": "a"}}, "list_type"),
        ({"requests": [{"prompt": "a"}], "format": "csv"}, "invalid_value"),
        ({"requests": [{"prompt": "a"}], "stream": False}, "not_here"),
        ({"file_id": "file-x"}, "file_not_found"),
        ({"file_id": "file-" + "0" * 32}, "file_not_found"),
        ({"input_url": "s3://elsewhere/a.jsonl"}, "input_url_not_allowed"),
        ({"input_url": "file:///etc/passwd"}, "input_url_not_allowed"),
        ({"requests": [{"prompt": "a"}], **{f"p{n}": 1 for n in range(200)}}, "invalid_request"),
        ({"requests": [{"prompt": "a"}], "metadata": {str(n): "" for n in range(200)}}, "invalid_request"),
        ({"requests": [{"prompt": "a"}], "logit_bias": {str(n): 1 for n in range(20_000)}}, "too_large"),
    ],
    ids=str,
)
def test_bad_json(service: Service, body: dict[str, Any], code: str) -> None:
    """A body of JSON needs exactly one source of lines, which must be there and allowed."""
    answer = service.client.post("/v1/bulks", json=body)
    assert (answer.status_code, answer.json["code"]) == (422, code), answer.text
    assert service.rows() == []


def test_a_setting_says_where_urls_may_lead(service: Service) -> None:
    """A URL outside of it is refused with the name of the setting."""
    answer = service.client.post("/v1/bulks", json={"input_url": "s3://elsewhere/a.jsonl"})
    assert "STOKER_INPUT_URLS" in answer.json["detail"]


@pytest.mark.parametrize(
    ("content_type", "headers", "status"),
    [
        ("application/x-www-form-urlencoded", {}, 415),
        ("image/png", {}, 415),
        ("text/csv; charset=latin-1", {}, 415),
        (LINES, {"Content-Encoding": "br"}, 415),
        ("multipart/form-data", {}, 400),
        (LINES, {"Idempotency-Key": "with blank"}, 422),
    ],
)
def test_bad_bodies(service: Service, content_type: str, headers: dict[str, str], status: int) -> None:
    """What cannot be the lines of a bulk is refused; what `curl --data-binary` sends by itself too, with a hint."""
    answer = service.post(prompts(1), content_type, headers=headers)
    assert answer.status_code == status
    if status == 415 and not headers and "charset" not in content_type:
        assert LINES in answer.json["detail"]
    assert service.rows() == []


@pytest.mark.parametrize(("data", "status"), [(b"", 422), (b"x" * 100_001, 413)])
def test_nothing_and_too_much(service: Service, data: bytes, status: int) -> None:
    """An empty body is no bulk, and neither is one above the limit."""
    assert service.post(data).status_code == status
    assert service.rows() == []


@pytest.mark.parametrize("query", ["max_tokens=1&max_tokens=2", "metadata=%7B%7D&metadata.a=b", "seed=%22%5Cu0000%22"])
def test_odd_queries(service: Service, query: str) -> None:
    """A parameter that comes twice, or cannot be stored, is refused."""
    assert service.client.post(f"/v1/bulks?{query}", data=prompts(1), content_type=LINES).status_code == 422


# The same again


def test_the_same_key_is_the_same_bulk(service: Service) -> None:
    """The same key, parameters and content get the same answer, and the second upload is dropped."""
    headers = {"Idempotency-Key": "abc"}
    first = service.post(prompts(2), headers=headers, max_tokens=5)
    again = service.post(prompts(2), headers=headers, max_tokens=5)
    assert (first.status_code, again.status_code, again.data) == (202, 202, first.data)
    assert again.headers["Location"] == first.headers["Location"]
    assert (first.headers.get("Idempotency-Replayed"), again.headers["Idempotency-Replayed"]) == (None, "true")
    for other in (
        service.post(prompts(3), headers=headers, max_tokens=5),
        service.post(prompts(2), headers=headers, max_tokens=6),
        service.post(prompts(2), "text/csv", headers=headers, max_tokens=5),
    ):
        assert (other.status_code, other.json["code"]) == (422, "idempotency_key_reused")
    assert len(service.rows()) == 1
    assert len(service.stored()) == 1
    assert len([path for path in Path(service.context.settings.storage).rglob("*") if path.is_file()]) == 1


@pytest.mark.usefixtures("unhurried")
def test_many_at_once_with_one_key(app: Flask, service: Service) -> None:
    """Of 20 uploads at once with one key comes one bulk; some may be told 409 while another is stored."""

    def post(_: int) -> tuple[int, str]:
        answer = app.test_client().post(
            "/v1/bulks", data=prompts(2), content_type=LINES, headers={"Idempotency-Key": "k"}
        )
        return answer.status_code, answer.json.get("id", "")

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(post, range(20)))
    assert {status for status, _ in answers} <= {202, 409}
    assert len({bulk_id for status, bulk_id in answers if status == 202}) == 1
    assert len(service.rows()) == len(service.stored()) == 1


def test_a_taken_upload_is_answered_again_though_it_would_be_refused_now(
    service: Service, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same key and content get the first answer when the model is gone by then; another key the refusal."""
    first = service.post(prompts(1), headers={"Idempotency-Key": "a"}, model="fake")
    monkeypatch.setattr(context.known, "get", lambda _: None)
    assert service.post(prompts(1), headers={"Idempotency-Key": "a"}, model="fake").data == first.data
    refused = service.post(prompts(1), headers={"Idempotency-Key": "b"}, model="fake")
    assert (refused.status_code, refused.json["code"]) == (422, "model_not_found")


def test_a_commit_in_doubt_is_said_to_be(service: Service, context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the database goes away at COMMIT nobody knows: 503 says so, and the same key finds out."""
    real = Database.transaction
    lost: list[str] = []

    @contextmanager
    def transaction(self: Database, **options: bool) -> Iterator[Any]:
        with real(self, **options) as tx:
            yield tx
        if service.rows() and not lost:
            lost.append("once")
            raise DatabaseUnavailable("gone")

    monkeypatch.setattr(Database, "transaction", transaction)
    headers = {"Idempotency-Key": "abc"}
    answer = service.post(prompts(1), headers=headers)
    assert (answer.status_code, answer.json["code"]) == (503, "outcome_unknown")
    again = taken(service.post(prompts(1), headers=headers))
    assert [row.id for row in service.rows()] == [again["id"]]
    assert service.tend(again["id"])["counts"]["total"] == 1
