"""A job's body as engines read it."""

from __future__ import annotations

import json

import pytest

from tasks.engines.base import Rejection, Request
from tasks.engines.bodies import asks_usage, read, response_id


def request(body: str, endpoint: str = "/v1/chat/completions", *, streamed: bool = False) -> Request:
    """Make a request."""
    return Request("job_1a", endpoint, body, "bulk", 9.0, emit=print if streamed else None)


@pytest.mark.parametrize("body", ["{", "[]", "3", "[" * 100_000])
def test_a_body_is_an_object(body: str) -> None:
    """Anything else is refused, and it is the body that is wrong."""
    outcome = read(request(body))
    assert isinstance(outcome, Rejection)
    assert json.loads(outcome.body)["error"]["param"] == "body"


def test_background_is_dropped() -> None:
    """A job is in the background already: vLLM would only say that it has queued it."""
    assert read(request('{"background": true, "input": "x"}', "/v1/responses")) == {"input": "x"}


@pytest.mark.parametrize(
    ("endpoint", "streamed"),
    [("/v1/chat/completions", False), ("/v1/embeddings", True), ("/v1/score", True), ("/v1/rerank", True)],
)
def test_streams_that_cannot_be(endpoint: str, streamed: bool) -> None:
    """Nobody listens, or the endpoint's answer comes in one piece: `stream` is refused by name."""
    outcome = read(request('{"stream": true}', endpoint, streamed=streamed))
    assert isinstance(outcome, Rejection)
    assert (outcome.status, outcome.code) == (400, "streaming_unsupported")
    assert json.loads(outcome.body)["error"]["param"] == "stream"


def test_streams_that_can_be() -> None:
    """A chat that somebody listens to is read as it is, and `stream: false` is no stream."""
    assert read(request('{"stream": true}', streamed=True)) == {"stream": True}
    assert read(request('{"stream": false}')) == {"stream": False}


@pytest.mark.parametrize(
    ("options", "asks"),
    [({"include_usage": True}, True), ({"include_usage": False}, False), ({}, False), (None, False), ("x", False)],
)
def test_usage_is_asked_for_by_an_option(options: object, asks: bool) -> None:
    """Only `stream_options.include_usage` asks for it."""
    assert asks_usage({"stream_options": options}) is asks
    assert not asks_usage({})


def test_a_response_is_named_after_its_job() -> None:
    """The two names share their number."""
    assert response_id(request("{}")) == "resp_1a"
