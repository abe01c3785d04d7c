"""From a job's body to vLLM's handler and from its answer to an outcome. Imports no vLLM."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from tasks.engines.base import Completion, Deferred, Outcome, Rejection, Request, Usage
from tasks.engines.refusals import code_of, refuse

BUSY = 503
"""vLLM's status for a request that it may well take later."""
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
    """A handler of vLLM with what reads its requests and tells its errors from its answers."""

    endpoint: Endpoint
    handler: Callable[[Any], Awaitable[Any]]
    validate: Callable[[Any], Any]
    error: type

    async def answer(self, request: Request, body: dict[str, Any]) -> Outcome:
        """Answer one request; what vLLM raises comes through, but for a wrong body."""
        try:
            answer = await self.handler(self.validate(body))
        except ValidationError as error:
            return _invalid(request, error, self.endpoint.prompt)
        if isinstance(answer, self.error):
            return refused(request, answer)
        if hasattr(answer, "model_dump"):
            content = answer.model_dump(**self.endpoint.dump)
            return _completed(request, content, _compact(content))
        if isinstance(raw := getattr(answer, "body", None), bytes):
            return _completed(request, json.loads(raw), raw.decode())
        message = "the answer would not be JSON: choose another encoding_format"
        return refuse(request, message, code="invalid_request", param="encoding_format")


def read(request: Request) -> dict[str, Any] | Rejection:
    """Read the body, or refuse what a job cannot be."""
    try:
        body = json.loads(request.body)
    except (ValueError, RecursionError):
        return refuse(request, "the body is not valid JSON", code="invalid_request", param="body")
    if not isinstance(body, dict):
        return refuse(request, "the body is not a JSON object", code="invalid_request", param="body")
    if body.get("stream"):
        message = "jobs are not streamed: leave out `stream`"
        return refuse(request, message, code="streaming_unsupported", param="stream")
    if body.get("background"):
        message = "a job is in the background already: leave out `background`"
        return refuse(request, message, code="invalid_request", param="background")
    return body


def refused(request: Request, answer: Any) -> Rejection | Deferred:
    """Turn vLLM's `ErrorResponse` into an outcome."""
    error = answer.error
    if error.code == BUSY:
        return Deferred(request.id, error.message)
    code = code_of(error.code, error.message, error.param)
    return refuse(request, error.message, code=code, param=error.param, status=error.code)


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


def _completed(request: Request, content: dict[str, Any], text: str) -> Completion:
    usage = content.get("usage") or {}
    prompt = usage.get("prompt_tokens") or usage.get("input_tokens") or 0
    written = usage.get("completion_tokens") or usage.get("output_tokens") or 0
    cached = _detail(usage, ("prompt_tokens_details", "input_tokens_details"), "cached_tokens")
    reasoned = _detail(usage, ("completion_tokens_details", "output_tokens_details"), "reasoning_tokens")
    return Completion(request.id, text, Usage(prompt, written, cached, reasoned))


def _detail(usage: dict[str, Any], groups: tuple[str, ...], name: str) -> int:
    """Return a count that only some endpoints, and some versions, tell."""
    return next((count for group in groups if (count := (usage.get(group) or {}).get(name))), 0)


def _compact(content: dict[str, Any]) -> str:
    # As vLLM's server writes its JSON.
    return json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
