"""Bodies with very many errors in them."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from flask.testing import FlaskClient

P = {"prompt": "hi"}
CHAT = {"endpoint": "/v1/chat/completions"}

CROWDS: list[tuple[dict[str, Any], str]] = [
    ({"messages": [0] * 300_000}, "messages.0"),
    ({**CHAT, "body": {"messages": [0] * 300_000}}, "body.messages.0"),
    ({**P, "metadata": {f"{at}": 1 for at in range(150_000)}}, "metadata"),
    ({**P, "metadata": {f"{at}": 1 for at in range(64)}}, "metadata.0"),
    ({**P, "webhook": {"url": "https://a.example", **{f"{at}": 1 for at in range(150_000)}}}, "webhook"),
    ({**CHAT, "body": {}, **{f"{at}": 1 for at in range(150_000)}}, "0"),
    ({**CHAT, "body": {}, "k" * 10_000: 1}, "k" * 64),
]


@pytest.mark.parametrize(("body", "field"), CROWDS, ids=[field[:12] for _, field in CROWDS])
def test_a_crowd_of_errors_is_cut_short(client: FlaskClient, body: dict[str, Any], field: str) -> None:
    """However much is wrong, the answer is quick and short, and names the first of it."""
    raw = json.dumps(body)
    started = time.monotonic()
    answer = client.post("/v1/jobs", data=raw, content_type="application/json")
    # A list of an error each takes minutes, and gigabytes.
    assert time.monotonic() - started < 30
    assert answer.status_code == 422
    assert answer.json["errors"][0]["field"] == field
    assert len(answer.json["errors"]) <= 20
    assert len(answer.data) < 5000
    assert len(answer.json["detail"]) < 1000
