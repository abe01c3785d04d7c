"""Bad input: a clear 4xx problem document, nothing stored, nothing of the prompt in logs or answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from flask.testing import FlaskClient
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from models import engines, jobs
from models.db import Database

CANARY = "c4n4ry-in-the-prompt"
P = {"prompt": CANARY}
CHAT = {"endpoint": "/v1/chat/completions"}
MESSAGES = [{"role": "user", "content": CANARY}]

BAD_FIELDS: list[tuple[dict[str, Any], str]] = [
    ({}, "prompt"),
    ({"prompt": None}, "prompt"),
    ({**P, "messages": MESSAGES}, "messages"),
    ({**P, "input": CANARY}, "input"),
    ({"prompt": ""}, "prompt"),
    ({"prompt": 5}, "prompt"),
    ({"prompt": [CANARY]}, "prompt"),
    ({"messages": []}, "messages"),
    ({"messages": CANARY}, "messages"),
    ({"messages": [CANARY]}, "messages.0"),
    ({"messages": [{"content": CANARY}]}, "messages.0.role"),
    ({"messages": MESSAGES, "endpoint": "/v1/completions"}, "endpoint"),
    ({"messages": MESSAGES, "system": CANARY}, "system"),
    ({**P, "system": CANARY, "endpoint": "/v1/completions"}, "system"),
    ({"input": []}, "input"),
    ({"input": 3}, "input"),
    ({**P, "endpoint": "/v1/embeddings"}, "endpoint"),
    ({**P, "endpoint": "/v1/nothing"}, "endpoint"),
    ({**P, "model": "unknown"}, "model"),
    ({**P, "model": ""}, "model"),
    ({**P, "model": 7}, "model"),
    ({**P, "lane": "fast"}, "lane"),
    ({**P, "lane": None}, "lane"),
    ({**P, "max_tokens": 0}, "max_tokens"),
    ({**P, "max_tokens": -1}, "max_tokens"),
    ({**P, "max_tokens": 2.5}, "max_tokens"),
    ({**P, "max_tokens": "5"}, "max_tokens"),
    ({**P, "max_tokens": True}, "max_tokens"),
    ({**P, "max_tokens": 1_000_001}, "max_tokens"),
    ({**P, "max_tokens": 10**30}, "max_tokens"),
    ({**P, "max_completion_tokens": 0}, "max_completion_tokens"),
    ({**P, "temperature": 2.1}, "temperature"),
    ({**P, "temperature": -0.1}, "temperature"),
    ({**P, "temperature": "hot"}, "temperature"),
    ({**P, "top_p": 0}, "top_p"),
    ({**P, "top_p": 1.1}, "top_p"),
    ({**P, "n": 0}, "n"),
    ({**P, "n": 129}, "n"),
    ({**P, "stop": ["a"] * 17}, "stop"),
    ({**P, "stop": [1]}, "stop"),
    ({**P, "stop": {"a": 1}}, "stop"),
    ({**P, "seed": 1.5}, "seed"),
    ({**P, "seed": 2**63}, "seed"),
    ({**P, "presence_penalty": 3}, "presence_penalty"),
    ({**P, "frequency_penalty": -3}, "frequency_penalty"),
    ({**P, "stream": 1}, "stream"),
    ({**P, "metadata": {"a": 1}}, "metadata.a"),
    ({**P, "metadata": ["a"]}, "metadata"),
    ({**P, "metadata": {f"k{i}": "v" for i in range(17)}}, "metadata"),
    ({**P, "metadata": {"k" * 65: "v"}}, f"metadata.{'k' * 64}.[key]"),
    ({**P, "metadata": {"k": "v" * 513}}, "metadata.k"),
    ({**P, "expires_in": 0}, "expires_in"),
    ({**P, "expires_in": 30 * 86400 + 1}, "expires_in"),
    ({**P, "expires_in": "1h"}, "expires_in"),
    ({**P, "webhook_url": "ftp://example.com"}, "webhook_url"),
    ({**P, "webhook_url": "http://127.0.0.1/x"}, "webhook_url"),
    ({**P, "webhook_url": "http://169.254.169.254/"}, "webhook_url"),
    ({**P, "webhook_url": "https://user:word@example.com/"}, "webhook_url"),
    ({**P, "webhook": {"url": "https://example.com", "secret": "whsec_short"}}, "webhook.secret"),
    ({**P, "webhook": {"url": "https://example.com", "secrets": "x"}}, "webhook.secrets"),
    ({**P, "webhook": {}}, "webhook.url"),
    ({**P, "webhook": {"url": "https://a.example"}, "webhook_url": "https://b.example"}, "webhook_url"),
    ({"body": {"messages": MESSAGES}}, "endpoint"),
    ({**CHAT, "body": CANARY}, "body"),
    ({**CHAT, "body": {}}, "body.messages"),
    ({**CHAT, "body": {"prompt": CANARY}}, "body.messages"),
    ({**CHAT, "body": {"messages": MESSAGES, "temperature": 9}}, "body.temperature"),
    ({**CHAT, "body": {"messages": MESSAGES, "stream": "yes"}}, "body.stream"),
    ({**CHAT, "body": {"messages": MESSAGES, "model": "unknown"}}, "body.model"),
    ({**CHAT, "body": {"messages": MESSAGES, "model": "fake"}, "model": "other"}, "body.model"),
    ({**CHAT, "body": {"messages": MESSAGES}, **P}, "prompt"),
    ({**CHAT, "body": {"messages": MESSAGES}, "temperature": 1}, "temperature"),
    ({"endpoint": "/v1/completions", "body": {"prompt": []}}, "body.prompt"),
]


def assert_nothing_happened(database: Database) -> None:
    """Check that no job was stored."""
    with database.reading() as tx:
        assert tx.execute(sa.select(sa.func.count()).select_from(jobs.table)).scalar_one() == 0


def test_each_bad_field_is_named(capfd: pytest.CaptureFixture[str], client: FlaskClient, database: Database) -> None:
    """A 422 names the field and what is allowed, repeats nothing of the prompt, and nothing is stored or logged."""
    for body, field in BAD_FIELDS:
        answer = client.post("/v1/jobs", json=body)
        assert answer.status_code == 422, (body, answer.text)
        assert answer.content_type == "application/problem+json"
        assert field in {error["field"] for error in answer.json["errors"]}, (body, answer.text)
        assert answer.json["detail"]
        assert CANARY not in answer.text, body
    assert_nothing_happened(database)
    assert CANARY not in "".join(capfd.readouterr())


DEEP = b'{"prompt":"a","x":' + b"[" * 64 + b"]" * 64 + b"}"

BAD_TEXTS: list[tuple[bytes, int, str]] = [
    (b"", 400, "malformed_json"),
    (b"{", 400, "malformed_json"),
    (b'{"prompt": hi}', 400, "malformed_json"),
    (b'{"prompt":"a"} x', 400, "malformed_json"),
    (b'{"prompt":"a","x":NaN}', 400, "malformed_json"),
    (b'{"prompt":"a","x":Infinity}', 400, "malformed_json"),
    (b'{"prompt":"a","x":-Infinity}', 400, "malformed_json"),
    (b'{"prompt":"\x00"}', 400, "malformed_json"),
    (b'{"prompt":"\xff"}', 400, "malformed_json"),
    (b'{"prompt":"\xed\xa0\x80"}', 400, "malformed_json"),
    (b'\xef\xbb\xbf{"prompt":"a"}', 400, "malformed_json"),
    ('{"prompt":"a"}'.encode("utf-16"), 400, "malformed_json"),
    (b'{"prompt":"a","x":1e999}', 422, "number_out_of_range"),
    (b'{"prompt":"a","x":' + b"9" * 5000 + b"}", 422, "number_out_of_range"),
    (b'{"prompt":"a\\u0000b"}', 422, "nul_character"),
    (b'{"prompt":"a","x":{"y":["\\u0000"]}}', 422, "nul_character"),
    (b'{"prompt":"a","k\\u0000":1}', 422, "nul_character"),
    (b'{"prompt":"\\ud800"}', 422, "lone_surrogate"),
    (b'{"prompt":"\\udc00\\ud800"}', 422, "lone_surrogate"),
    (b'{"prompt":"a","\\uDFFF":1}', 422, "lone_surrogate"),
    (b'{"prompt":"a","x":"\\\\\\ud800"}', 422, "lone_surrogate"),
    (DEEP, 422, "nested_too_deep"),
    (b"[" * 100_000 + b"]" * 100_000, 422, "nested_too_deep"),
    (b"[]", 422, "object_required"),
    (b'"prompt"', 422, "object_required"),
    (b"null", 422, "object_required"),
]


def test_each_bad_text_is_refused(client: FlaskClient, database: Database) -> None:
    """What is not JSON is a 400; JSON that cannot be stored or read again unchanged is a 422."""
    for raw, status, code in BAD_TEXTS:
        answer = client.post("/v1/jobs", data=raw, content_type="application/json")
        assert (answer.status_code, answer.json["code"]) == (status, code), (raw[:60], answer.text)
    assert_nothing_happened(database)


@pytest.mark.parametrize(
    "raw",
    [
        b'{"prompt":"\\\\u0000 \\\\ud800"}',
        b'{"prompt":"\\ud83d\\ude00"}',
        b'{"prompt":"[[[[{{{{' + b"[" * 100 + b'"}',
        b' {"prompt" : "a" , "lane":"bulk"}\n',
        b'{"prompt":"a","max_tokens":null,"stop":null,"stream":false,"metadata":null}',
        b'{"prompt":"a","x":' + b"[" * 62 + b"]" * 62 + b"}",
    ],
)
def test_what_only_looks_bad_is_taken(client: FlaskClient, raw: bytes) -> None:
    """Escaped backslashes, surrogate pairs, brackets in texts, nulls and 64 levels are fine."""
    assert client.post("/v1/jobs", data=raw, content_type="application/json").status_code == 202


@pytest.mark.parametrize("kind", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "x"])
def test_other_content_types_are_refused(client: FlaskClient, database: Database, kind: str | None) -> None:
    """A 415 says which header to send."""
    answer = client.post("/v1/jobs", data=json.dumps(P), content_type=kind)
    assert answer.status_code == 415
    assert "Content-Type: application/json" in answer.json["detail"]
    assert_nothing_happened(database)


def test_json_by_other_names_is_taken(client: FlaskClient) -> None:
    """`+json` types and a UTF-8 charset are JSON; other charsets and encodings are not."""
    for kind in ("application/vnd.api+json", "application/json; charset=UTF-8", "Application/JSON"):
        assert client.post("/v1/jobs", data=json.dumps(P), content_type=kind).status_code == 202
    latin = client.post("/v1/jobs", data=json.dumps(P), content_type="application/json; charset=latin-1")
    packed = client.post("/v1/jobs", json=P, headers={"Content-Encoding": "gzip"})
    assert (latin.status_code, packed.status_code) == (415, 415)


def test_a_body_too_large_is_refused(client: FlaskClient, database: Database) -> None:
    """A 413 names the setting; neither a declared nor a chunked body gets further."""
    raw = json.dumps({"prompt": "x" * 20_000_001}).encode()
    answer = client.post("/v1/jobs", data=raw, content_type="application/json")
    assert answer.status_code == 413
    assert "STOKER_MAX_BODY_BYTES" in answer.json["detail"]
    assert_nothing_happened(database)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("get", "/v1/jobs/job_0", 404),
        ("get", "/v1/jobs/job_0198c0ffee0198c0ffee0198c0ffee01", 404),
        ("get", "/v1/jobs/%00", 404),
        ("get", "/v1/jobs/job_%ED%A0%80/result", 404),
        ("post", "/v1/jobs/nope/cancel", 404),
        ("get", "/v1/nothing", 404),
        ("delete", "/v1/jobs", 405),
        ("put", "/v1/jobs/job_0", 405),
        ("get", "/v1/jobs/job_0/cancel", 405),
        ("get", "/v1/jobs/job_0?wait=61", 422),
        ("get", "/v1/jobs/job_0?wait=-1", 422),
        ("get", "/v1/jobs/job_0?wait=nan", 422),
        ("get", "/v1/jobs/job_0?wait=long", 422),
        ("get", "/v1/jobs/job_0?waits=1", 422),
        ("get", "/v1/jobs?limit=0", 422),
        ("get", "/v1/jobs?limit=101", 422),
        ("get", "/v1/jobs?after=job_1", 422),
        ("get", "/v1/jobs?state=done", 422),
        ("get", "/v1/jobs?lane=fast", 422),
        ("get", "/v1/jobs?stat=queued", 422),
        ("get", "/v1/jobs?model=%00", 422),
        ("get", "/v1/jobs?metadata.a%22b=1", 422),
        ("get", "/v1/jobs?metadata.=1", 422),
        ("get", "/v1/jobs?metadata.a=%00", 422),
    ],
)
def test_bad_addresses_and_parameters(client: FlaskClient, method: str, path: str, status: int) -> None:
    """Unknown ids and routes, wrong methods and bad parameters get problem documents that say what is wrong."""
    answer = getattr(client, method)(path)
    assert answer.status_code == status, answer.text
    assert answer.content_type == "application/problem+json"
    document = answer.json
    assert document["status"] == status
    assert document["request_id"] == answer.headers["X-Request-Id"]
    assert document["detail"]
    if status == 405:
        assert answer.headers["Allow"]
    if status == 422:
        assert document["errors"][0]["field"]


def test_every_answer_has_a_request_id(client: FlaskClient) -> None:
    """A sane one is kept, any other is replaced."""
    kept = client.get("/livez", headers={"X-Request-Id": "abc-1"})
    replaced = client.get("/livez", headers={"X-Request-Id": "a b" * 100})
    assert kept.headers["X-Request-Id"] == "abc-1"
    assert replaced.headers["X-Request-Id"].startswith("req_")


def test_max_tokens_is_held_against_the_model(client: FlaskClient, database: Database) -> None:
    """Once an engine told its context length, `max_tokens` may not be larger."""
    with database.transaction() as tx:
        engines.remember(tx, "small", 100, None)
    assert client.post("/v1/jobs", json={**P, "model": "small", "max_tokens": 100}).status_code == 202
    answer = client.post("/v1/jobs", json={**P, "model": "small", "max_tokens": 101})
    assert answer.status_code == 422
    assert "at most 100" in answer.json["errors"][0]["message"]


def test_a_prompt_longer_than_the_context_is_refused(client: FlaskClient, database: Database, tmp_path: Path) -> None:
    """Too many tokens are a 422; what is not known is left to the engine; vLLM's own truncation is respected."""
    tokenizer = Tokenizer(WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with database.transaction() as tx:
        engines.remember(tx, "small", 16, str(tmp_path))
        engines.remember(tx, "unknown-words", 16, None)
    words = " ".join(f"word{i}" for i in range(200))
    for body in (
        {"prompt": words},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": words}]}]},
        {"input": ["a", words]},
        {"endpoint": "/v1/completions", "body": {"prompt": words}},
    ):
        answer = client.post("/v1/jobs", json={"model": "small", **body})
        assert answer.status_code == 422, body
        assert answer.json["code"] == "context_length_exceeded"
        assert "takes 16" in answer.json["detail"]
        assert "word5" not in answer.text
    assert client.post("/v1/jobs", json={"model": "small", "prompt": words[:80]}).status_code == 202
    assert client.post("/v1/jobs", json={"model": "unknown-words", "prompt": words}).status_code == 202
    assert client.post("/v1/jobs", json={"model": "small", "prompt": "-" * 5000}).status_code == 202
    cut = {"model": "small", "prompt": words, "truncate_prompt_tokens": 10}
    assert client.post("/v1/jobs", json=cut).status_code == 202


def test_a_model_that_was_ever_registered_is_known(client: FlaskClient, database: Database) -> None:
    """A known model without an engine is accepted and waits; an unknown one is refused with the known ones listed."""
    with database.transaction() as tx:
        engines.remember(tx, "down", None, None)
    assert client.post("/v1/jobs", json={**P, "model": "down"}).status_code == 202
    refused = client.post("/v1/jobs", json={**P, "model": "never"})
    assert refused.json["code"] == "model_not_found"
    assert "down, fake" in refused.json["detail"]
