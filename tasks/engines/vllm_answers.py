"""From a job's body to vLLM's handler and from its answer to an outcome. Imports no vLLM."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from tasks.engines.assembly import RESPONSES, json_text, usage_of
from tasks.engines.base import Completion, Deferred, Outcome, Rejection, Request
from tasks.engines.bodies import asks_usage, response_id
from tasks.engines.refusals import code_of, refuse
from tasks.engines.vllm_streams import follow, with_usage

BUSY = 503
"""vLLM's status for a request that it may well take later."""
PRIORITIES = {"realtime": 0, "standard": 1, "bulk": 2}
"""vLLM's priority for each lane: the smaller runs first, and the larger is preempted when memory runs out."""
FAILED = 500
MARKERS = frozenset({"str", "int", "float", "bool", "bytes", "list", "dict", "tuple", "set", "none", "body"})
"""Branches of a union as pydantic names them in a location."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """How vLLM answers one path: `method` of `state.<handler>`, given a `request`, whose prompt is in `prompt`.

    `dump` is how vLLM's server turns the answer into JSON.
    """

    handler: str
    method: str
    request: str
    prompt: str
    dump: dict[str, Any] = field(default_factory=dict)


ENDPOINTS: dict[str, Endpoint] = {
    "/v1/chat/completions": Endpoint(
        "openai_serving_chat", "create_chat_completion", "ChatCompletionRequest", "messages"
    ),
    "/v1/completions": Endpoint("openai_serving_completion", "create_completion", "CompletionRequest", "prompt"),
    "/v1/responses": Endpoint(
        "openai_serving_responses",
        "create_responses",
        "ResponsesRequest",
        "input",
        {"mode": "json", "by_alias": True},
    ),
    "/v1/embeddings": Endpoint("serving_embedding", "__call__", "EmbeddingRequest", "input"),
    "/v1/score": Endpoint("serving_scores", "__call__", "ScoreRequest", "queries"),
    "/v1/rerank": Endpoint("serving_scores", "__call__", "RerankRequest", "query"),
}


@dataclass(frozen=True, slots=True)
class Call:
    """A handler of vLLM with what reads its requests and tells its errors from its answers.

    `by_lane`: vLLM runs with `--scheduling-policy priority`; with another one any priority but 0 is an error.
    """

    endpoint: Endpoint
    handler: Callable[[Any], Awaitable[Any]]
    validate: Callable[[Any], Any]
    error: type
    by_lane: bool = False

    async def answer(self, request: Request, body: dict[str, Any]) -> Outcome:
        """Answer one request; what vLLM raises comes through, but for a wrong body."""
        streamed = bool(body.get("stream"))
        try:
            answer = await self.handler(self._asked(request, with_usage(request, body) if streamed else body))
        except ValidationError as error:
            return _invalid(request, error, self.endpoint.prompt)
        if isinstance(answer, self.error):
            return refused(request, answer)
        if hasattr(answer, "__aiter__"):
            return await _streamed(request, answer, usage=asks_usage(body))
        if hasattr(answer, "model_dump"):
            content = answer.model_dump(**self.endpoint.dump)
            return Completion(request.id, json_text(content), usage_of(content))
        if isinstance(raw := getattr(answer, "body", None), bytes):
            return Completion(request.id, raw.decode(), usage_of(json.loads(raw)))
        message = "the answer would not be JSON: choose another encoding_format"
        return refuse(request, message, code="invalid_request", param="encoding_format")

    def _asked(self, request: Request, body: dict[str, Any]) -> Any:
        """Make vLLM's own request of a body, with what is ours to say."""
        asked = self.validate(body)
        if self.by_lane and hasattr(asked, "priority"):
            # Also over a client's own: its bulk does not overtake what others are waiting for.
            asked.priority = PRIORITIES.get(request.lane, max(PRIORITIES.values()))
        if request.endpoint == RESPONSES and hasattr(asked, "request_id"):
            asked.request_id = response_id(request)
        return asked


def refused(request: Request, answer: Any) -> Rejection | Deferred:
    """Turn vLLM's `ErrorResponse` into an outcome."""
    return _refusal(request, answer.error.code, answer.error.message, answer.error.param)


async def _streamed(request: Request, stream: AsyncGenerator[Any], *, usage: bool) -> Outcome:
    """Answer with a stream; the error that ended one is an outcome."""
    try:
        told = await follow(request, stream, usage=usage)
    except ValidationError:
        # The body was fine: vLLM (0.32) cannot write an error of its own as an event of a response.
        told = {"message": "vLLM failed in the middle of the answer"}
    if not isinstance(told, dict):
        return told
    code = told.get("code")
    return _refusal(request, code if isinstance(code, int) else FAILED, str(told.get("message")), told.get("param"))


def _refusal(request: Request, status: int, message: str, param: str | None) -> Rejection | Deferred:
    if status == BUSY:
        return Deferred(request.id, message)
    return refuse(request, message, code=code_of(status, message, param), param=param, status=status)


def field_name(location: tuple[int | str, ...], prompt: str) -> str | None:
    """Return the field of a pydantic error as OpenAI names it (`messages[0].content`); None when it is the body.

    A location that starts with a number is inside the prompt: vLLM validates messages a second time by themselves.
    """
    name = prompt if location and isinstance(location[0], int) else ""
    for part in location:
        if isinstance(part, int):
            name += f"[{part}]"
        elif part.isidentifier() and part not in MARKERS and not part[0].isupper():
            name += f".{part}" if name else part
    return name or None


def _invalid(request: Request, error: ValidationError, prompt: str) -> Rejection:
    """Name the first wrong field, without repeating what was in it."""
    first = error.errors(include_url=False, include_input=False)[0]
    cause = first.get("ctx", {}).get("error")
    param = getattr(cause, "parameter", None) or field_name(first["loc"], prompt)
    message = f"{param}: {first['msg']}" if param else first["msg"]
    return refuse(request, message, code="invalid_request", param=param)
