"""Errors as OpenAI's API has them: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Protocol

import msgspec
from flask import Response

from models.errors import KeyReused, NotFound

_STATUS = {422: 400}
_CODES = {
    "not_found": None,
    "unauthorized": "invalid_api_key",
    "queue_full": "rate_limit_exceeded",
    "tokens_queue_full": "rate_limit_exceeded",
    "daily_tokens_used": "rate_limit_exceeded",
    "too_many_streams": "rate_limit_exceeded",
    "missing": "missing_required_parameter",
    "extra_forbidden": "unknown_parameter",
}
_TOKENS = frozenset({"tokens_queue_full", "daily_tokens_used"})
"""Errors that say of what there is too much; of all others with 429 it is requests."""
_NOT_FOUND = {"file": "No such File object: {}", "batch": "No batch found with id '{}'."}


class _Field(Protocol):
    @property
    def code(self) -> str: ...


class _Problem(Protocol):
    status: int
    code: str
    detail: str
    param: str | None
    headers: dict[str, str]

    @property
    def first(self) -> _Field | None: ...


def of(problem: _Problem) -> Response:
    """Return the envelope of an error."""
    status = _STATUS.get(problem.status, problem.status)
    server = "server_error" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error"
    error = {
        "message": problem.detail,
        "type": _kind(problem) if status == HTTPStatus.TOO_MANY_REQUESTS else server,
        "param": problem.param,
        "code": _code(problem),
    }
    return Response(msgspec.json.encode({"error": error}), status, problem.headers, mimetype="application/json")


def _kind(problem: _Problem) -> str:
    return "tokens" if problem.code in _TOKENS else "requests"


def _code(problem: _Problem) -> str | None:
    if problem.code != "invalid_request" or problem.first is None:
        return _CODES.get(problem.code, problem.code)
    # What pydantic found: its own codes are many.
    code = problem.first.code
    if code.endswith(("_type", "_parsing")):
        return "invalid_type"
    return _CODES.get(code, "invalid_value")


def changes(error: Exception) -> Mapping[str, object]:
    """Return in what OpenAI's answer to an expected error differs from the native one."""
    if isinstance(error, NotFound):
        said = _NOT_FOUND.get(error.kind)
        return {} if said is None else {"detail": said.format(error.ident), "param": "id"}
    if isinstance(error, KeyReused):
        # The client tries a 409 again unless it is told not to.
        return {"status": 409, "headers": {"X-Should-Retry": "false"}}
    return {}
