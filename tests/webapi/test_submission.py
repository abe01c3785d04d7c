"""From a client's document to a job."""

from __future__ import annotations

import json
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.calls import estimate
from models.jobs import NewJob
from models.sealing import Seal, new_key
from stoker.settings import load
from webapi.errors import Problem
from webapi.json_body import parse
from webapi.known_models import KnownModel, KnownModels
from webapi.submission import job_of

SEAL = Seal([new_key()])


class _Known:
    """Knows two models, without a database."""

    def get(self, name: str) -> KnownModel | None:
        return {"fake": KnownModel("fake"), "small": KnownModel("small", 1000)}.get(name)

    def names(self) -> list[str]:
        return ["fake", "small"]


def made(raw: str | dict[str, Any]) -> NewJob:
    """Return the job made of a document."""
    text = raw if isinstance(raw, str) else json.dumps(raw)
    return job_of(parse(text.encode()), "me", load(engine="fake"), cast("KnownModels", _Known()), SEAL)


def test_a_prompt_becomes_a_chat() -> None:
    """System message first; other fields go along; stoker's own fields do not."""
    job = made({"prompt": "hi", "system": "be short", "temperature": 0.5, "top_k": 7, "lane": "bulk", "metadata": {}})
    assert job.endpoint == "/v1/chat/completions"
    assert job.lane == "bulk"
    assert json.loads(job.body) == {
        "model": "fake",
        "messages": [{"role": "system", "content": "be short"}, {"role": "user", "content": "hi"}],
        "temperature": 0.5,
        "top_k": 7,
    }


@pytest.mark.parametrize(
    ("document", "endpoint", "body"),
    [
        ({"prompt": "hi", "endpoint": "/v1/completions"}, "/v1/completions", {"prompt": "hi"}),
        ({"input": ["a", "b"]}, "/v1/embeddings", {"input": ["a", "b"]}),
        ({"input": "a", "endpoint": "/v1/responses"}, "/v1/responses", {"input": "a"}),
        ({"messages": [{"role": "user", "content": None, "x": 1}]}, "/v1/chat/completions", None),
    ],
)
def test_short_forms(document: dict[str, Any], endpoint: str, body: dict[str, Any] | None) -> None:
    """Each short form has its endpoint, and its content goes through unchanged."""
    job = made(document)
    assert job.endpoint == endpoint
    assert json.loads(job.body) == {"model": "fake", **(body or document)}


def test_the_engine_gets_the_bytes_that_were_sent() -> None:
    """Large integers, long floats, escapes and unknown fields stay as they were written; only the model is put in."""
    body = '{"messages":[{"role":"user","content":"\\u00e9"}],"seed":1,"big":123456789012345678901,"f":0.10}'
    job = made(f'{{"endpoint":"/v1/chat/completions","body":{body}}}')
    assert job.body == '{"model":"fake",' + body[1:]
    short = made('{"prompt":"\\u00e9","big":123456789012345678901,"f":0.10}')
    assert short.body == (
        '{"model":"fake","messages":[{"role":"user","content":"\\u00e9"}],"big":123456789012345678901,"f":0.10}'
    )


def test_the_model_may_stand_in_either_place() -> None:
    """Outside, inside, both alike, or nowhere: then it is the configured one; a null counts as nowhere."""
    line = {"endpoint": "/v1/completions", "body": {"prompt": "x", "model": "small"}}
    assert made(line).model == "small"
    assert made({**line, "model": "small"}).model == "small"
    null = made({"endpoint": "/v1/completions", "body": {"prompt": "x", "model": None}, "model": "small"})
    assert (null.model, json.loads(null.body)["model"]) == ("small", "small")
    with pytest.raises(Problem, match="differs from model"):
        made({**line, "model": "fake"})


def test_prompts_that_begin_alike_are_known_by_it() -> None:
    """Those of a chat by its system message too; short ones are not."""
    system = "You are a careful assistant. " * 20
    first, second = (made({"prompt": prompt, "system": system}).prefix for prompt in ("one", "two"))
    assert first == second > 0
    assert made({"prompt": "one"}).prefix == 0


def test_tokens_are_estimated() -> None:
    """Four characters a token, and the answer's: its limit times `n`, or 256; an embedding has no answer."""
    text = "x" * 400
    assert made({"prompt": text}).tokens == 100 + 256
    assert made({"prompt": text, "max_tokens": 10, "n": 3}).tokens == 100 + 30
    assert made({"input": text}).tokens == 100
    assert made({"input": ["x" * 200, "y" * 200]}).tokens == 100


@given(st.integers(0, 10**8), st.none() | st.integers(0, 10**6))
def test_an_estimate_is_at_least_one(characters: int, answer: int | None) -> None:
    """It never is zero, and grows with both."""
    assert estimate(characters, answer) >= 1
    assert estimate(characters + 4, answer) > estimate(characters, answer) - 1


def test_webhooks() -> None:
    """An address alone, or with its own secret and the wish for the result."""
    secret = "whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE="
    plain = made({"prompt": "x", "webhook_url": "https://example.com/a"}).webhook
    assert plain is not None
    assert (plain.url, plain.secret, plain.include_result) == ("https://example.com/a", "", False)
    own = made({"prompt": "x", "webhook": {"url": "https://example.com/a", "secret": secret, "include_result": True}})
    assert own.webhook is not None
    assert (SEAL.open(own.webhook.secret), own.webhook.include_result) == (secret, True)
    assert own.webhook.secret != secret
    assert "whsec" not in repr(own)
