"""How vLLM's answers and errors become outcomes, with handlers that stand in for vLLM's."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from pydantic import BaseModel, TypeAdapter

from tasks.engines.base import Completion, Deferred, Outcome, Rejection, Request
from tasks.engines.vllm_answers import ENDPOINTS, Call, field_name, refused

REQUEST = Request("job", "/v1/chat/completions", "{}", "bulk", 9.0)


class Info(BaseModel):
    """vLLM's ErrorInfo."""

    message: str
    code: int
    param: str | None = None


class Failed(BaseModel):
    """vLLM's ErrorResponse."""

    error: Info


class Body(BaseModel):
    """A request's body."""

    messages: list[str]


def outcome_of(answer: Any) -> Outcome:
    """Let a handler answer with this."""

    async def handler(_body: Any) -> Any:
        return answer

    call = Call(ENDPOINTS["/v1/chat/completions"], handler, TypeAdapter(Body).validate_python, Failed)
    return asyncio.run(call.answer(REQUEST, {"messages": ["hello"]}))


def test_a_model_is_written_as_the_server_writes_it() -> None:
    """Compact JSON, umlauts as they are, nulls kept."""

    class Answer(BaseModel):
        text: str = "ä"
        usage: dict[str, int] = {"prompt_tokens": 2, "completion_tokens": 3}
        nothing: None = None

    outcome = outcome_of(Answer())
    assert isinstance(outcome, Completion)
    assert outcome.body == '{"text":"ä","usage":{"prompt_tokens":2,"completion_tokens":3},"nothing":null}'
    assert (outcome.usage.prompt_tokens, outcome.usage.completion_tokens) == (2, 3)


def test_a_finished_response_is_taken_as_it_is() -> None:
    """Embeddings come as HTTP responses: their bytes are the answer."""

    class Response:
        body = b'{"data":[],"usage":{"prompt_tokens":4,"total_tokens":4}}'

    outcome = outcome_of(Response())
    assert isinstance(outcome, Completion)
    assert outcome.body == Response.body.decode()
    assert (outcome.usage.prompt_tokens, outcome.usage.completion_tokens) == (4, 0)


def test_what_is_not_json_is_rejected() -> None:
    """An answer in raw bytes cannot be stored: the field that asks for it is named."""
    outcome = outcome_of(object())
    assert isinstance(outcome, Rejection)
    assert json.loads(outcome.body)["error"]["param"] == "encoding_format"


@pytest.mark.parametrize(
    ("info", "status", "code"),
    [
        (Info(message="This model's maximum context length is 8 tokens.", code=400), 400, "context_length_exceeded"),
        (
            Info(message="Input length (9) exceeds model's maximum context length (8).", code=400),
            400,
            "context_length_exceeded",
        ),
        (Info(message="The model `x` does not exist.", code=404, param="model"), 404, "model_not_found"),
        (Info(message="no", code=400, param="n"), 400, "invalid_request"),
        (Info(message="cannot load the image", code=422), 422, "invalid_request"),
        (Info(message="Internal server error", code=500), 500, "engine_error"),
    ],
)
def test_errors_keep_their_status_and_get_a_code(info: Info, status: int, code: str) -> None:
    """Errors of vLLM keep message, status and param; the code is a word that clients can compare."""
    outcome = outcome_of(Failed(error=info))
    assert isinstance(outcome, Rejection)
    assert (outcome.status, outcome.code, outcome.message) == (status, code, info.message)
    error = json.loads(outcome.body)["error"]
    assert (error["message"], error["param"], error["code"]) == (info.message, info.param, code)
    assert error["type"] == ("server_error" if status == 500 else "invalid_request_error")


def test_a_busy_engine_is_not_a_bad_request() -> None:
    """503 is Deferred: the request may well succeed later."""
    assert refused(REQUEST, Failed(error=Info(message="busy", code=503))) == Deferred("job", "busy")


def test_a_wrong_body_is_not_repeated() -> None:
    """A validation error names the field and says nothing of what was in it."""

    async def handler(_body: Any) -> Any:
        raise AssertionError

    call = Call(ENDPOINTS["/v1/chat/completions"], handler, TypeAdapter(Body).validate_python, Failed)
    outcome = asyncio.run(call.answer(REQUEST, {"messages": ["fine", {"secret": 1}]}))
    assert isinstance(outcome, Rejection)
    assert outcome.message == "messages[1]: Input should be a valid string"
    assert "secret" not in outcome.body


@pytest.mark.parametrize(
    ("location", "name"),
    [
        (("messages",), "messages"),
        (("messages", 0, "ChatCompletionUserMessageParam", "content"), "messages[0].content"),
        (("stop", "list[str]", 1), "stop[1]"),
        (("function-wrap[log()]", "prompt", "str"), "prompt"),
        ((0, "content"), "input[0].content"),
        ((), None),
    ],
)
def test_field_names(location: tuple[int | str, ...], name: str | None) -> None:
    """Locations lose what only pydantic knows of."""
    assert field_name(location, "input") == name
