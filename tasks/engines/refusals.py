"""Rejections whose body is an error as OpenAI's API writes it.

The codes are ours to keep: clients and the docs name them. vLLM's own errors carry the HTTP status as their code
and types of its own; they are rewritten here, since clients compare `error.code`.
"""

from __future__ import annotations

import json
import re

from tasks.engines.base import Rejection, Request

TOO_LONG = re.compile(r"maximum context length|maximum model length|context length of", re.IGNORECASE)
"""How vLLM, 0.20 to 0.32, says that a prompt does not fit."""

CLIENT_ERRORS = range(400, 500)
TIMED_OUT = "request_timeout"


def refuse(request: Request, message: str, *, code: str, param: str | None = None, status: int = 400) -> Rejection:
    """Build a rejection with the error body that an OpenAI client expects."""
    kind = "invalid_request_error" if status in CLIENT_ERRORS else "server_error"
    error = {"message": message, "type": kind, "param": param, "code": code}
    return Rejection(request.id, code, message, status, json.dumps({"error": error}, ensure_ascii=False))


def timed_out(request: Request) -> Rejection:
    """Build the rejection of a request that ran longer than it may."""
    message = f"the request was not done {request.timeout:g} s after the engine took it up"
    return refuse(request, message, code=TIMED_OUT, status=408)


def unsupported(request: Request, *, known: bool) -> Rejection:
    """Build the rejection of an endpoint that no engine (`known` false) or not this model serves."""
    who = "this model does not serve" if known else "there is no engine for"
    return refuse(request, f"{who} {request.endpoint}", code="unsupported_endpoint")


def code_of(status: int, message: str, param: str | None) -> str:
    """Name an error that vLLM gave."""
    if status == 404:  # noqa: PLR2004  # HTTP's number
        return "model_not_found" if param in (None, "model") else "not_found"
    if TOO_LONG.search(message):
        return "context_length_exceeded"
    return "invalid_request" if status in CLIENT_ERRORS else "engine_error"
