"""A job's body as engines read it: what of it is refused, what is dropped, what it asks of a stream. Pure."""

from __future__ import annotations

import json
from typing import Any

from tasks.engines.assembly import STREAMED
from tasks.engines.base import Rejection, Request
from tasks.engines.refusals import refuse


def read(request: Request) -> dict[str, Any] | Rejection:
    """Read the body, or refuse what a job cannot be."""
    try:
        body = json.loads(request.body)
    except (ValueError, RecursionError):
        return refuse(request, "the body is not valid JSON", code="invalid_request", param="body")
    if not isinstance(body, dict):
        return refuse(request, "the body is not a JSON object", code="invalid_request", param="body")
    if body.get("stream") and (why := _no_stream(request)):
        return refuse(request, f"{why}: leave out `stream`", code="streaming_unsupported", param="stream")
    # A job is in the background already, and asking for what it is anyway is no mistake.
    body.pop("background", None)
    return body


def asks_usage(body: dict[str, Any]) -> bool:
    """Tell whether the client wants a last event with what the answer cost."""
    options = body.get("stream_options")
    return isinstance(options, dict) and bool(options.get("include_usage"))


def response_id(request: Request) -> str:
    """Name the answer of `/v1/responses`: `resp_<hex>` for `job_<hex>`, so that one is found by the other."""
    return f"resp_{request.id.removeprefix('job_')}"


def _no_stream(request: Request) -> str:
    if request.endpoint not in STREAMED:
        return f"{request.endpoint} has no stream"
    return "" if request.emit is not None else "this job is not streamed"
