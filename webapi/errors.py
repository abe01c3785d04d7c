"""The two error shapes, for whatever goes wrong: RFC 9457 problem documents, and OpenAI's envelope at OpenAI's paths.

What the client sent is never repeated in an error (only names of fields and models are), nor is anything internal.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import msgspec
import structlog
from flask import Flask, Response, g, request
from pydantic import ValidationError
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from models.errors import (
    AlreadyFinished,
    DatabaseBusy,
    DatabaseUnavailable,
    KeyBusy,
    KeyReused,
    NotFound,
    QueueFull,
    StillRunning,
)
from models.storage import ObjectMissing, StorageFull, StorageUnavailable
from webapi import envelope

log = structlog.get_logger("stoker.web")

MOST_ERRORS = 20
MOST_NAME = 64
PROBLEM = "application/problem+json"
OPENAI = (
    "/v1/batches",
    "/v1/chat",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/files",
    "/v1/models",
    "/v1/responses",
)
"""The paths, and all below them, whose errors have OpenAI's shape."""


@dataclass(frozen=True, slots=True)
class FieldError:
    """What is wrong with one field, and what is allowed."""

    field: str
    message: str
    code: str


class Problem(Exception):
    """An error that the client is told of: its status, a code that does not change, and a text for people.

    `param` is the field that OpenAI's envelope names; left out, the first of `errors`.
    """

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        errors: Sequence[FieldError] = (),
        headers: Mapping[str, str] | None = None,
        param: str | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.errors = errors
        self.headers = dict(headers or {})
        self.first = errors[0] if errors else None
        self.param = param or (self.first.field if self.first else None)


class OutcomeUnknown(Exception):
    """The database went away while it committed: the job may be stored or not."""


class CancelUnknown(OutcomeUnknown):
    """The same, of a job that was to be cancelled."""


class BulkUnknown(OutcomeUnknown):
    """The same, of a bulk that was to be stored or changed."""


class FileUnknown(OutcomeUnknown):
    """The same, of a file that was to be stored or deleted."""


@dataclass(frozen=True, slots=True)
class _Known:
    status: int
    code: str
    detail: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)


_KNOWN: dict[type[Exception], _Known] = {
    NotFound: _Known(404, "not_found"),
    AlreadyFinished: _Known(409, "already_finished"),
    StillRunning: _Known(409, "still_running"),
    KeyReused: _Known(422, "idempotency_key_reused", "This Idempotency-Key was used before with another body."),
    KeyBusy: _Known(
        409,
        "idempotency_key_busy",
        "A request with this Idempotency-Key is still running; send the same again in a moment.",
        {"Retry-After": "1"},
    ),
    QueueFull: _Known(429, "queue_full"),
    DatabaseUnavailable: _Known(
        503,
        "database_unavailable",
        "The database does not answer at the moment; nothing was stored. Try again.",
        {"Retry-After": "2"},
    ),
    DatabaseBusy: _Known(
        503,
        "overloaded",
        "This server has more requests than it can serve at the moment; nothing was stored. Try again.",
        {"Retry-After": "1"},
    ),
    OutcomeUnknown: _Known(
        503,
        "outcome_unknown",
        "The database went away while it stored the job: whether the job exists is unknown. Send the same request "
        "again with the same Idempotency-Key; without such a key a second job may come of it.",
        {"Retry-After": "2"},
    ),
    CancelUnknown: _Known(
        503,
        "outcome_unknown",
        "The database went away while it cancelled the job: look at the job to see whether it is cancelled, and "
        "cancel it again if it is not.",
        {"Retry-After": "2"},
    ),
    BulkUnknown: _Known(
        503,
        "outcome_unknown",
        "The database went away while it stored this: whether it was done is unknown. Look at the bulk, or send the "
        "same request again with the same Idempotency-Key; without such a key a second bulk may come of it.",
        {"Retry-After": "2"},
    ),
    FileUnknown: _Known(
        503,
        "outcome_unknown",
        "The database went away while it stored this: whether it was done is unknown. List the files to see.",
        {"Retry-After": "2"},
    ),
    StorageFull: _Known(507, "storage_full", "There is no room for files left on this server; nothing was stored."),
    StorageUnavailable: _Known(
        503,
        "storage_unavailable",
        "The storage of files does not answer at the moment; nothing was stored. Try again.",
        {"Retry-After": "5"},
    ),
    ObjectMissing: _Known(404, "content_missing", "The content of this file is no longer stored."),
}


def invalid(field_name: str, message: str, code: str = "invalid_value") -> Problem:
    """Return the 422 for one bad field."""
    return Problem(422, code, f"{field_name}: {message}", errors=[FieldError(field_name, message, code)])


def is_openai() -> bool:
    """Tell whether this request is at a path of OpenAI's."""
    return any(request.path == path or request.path.startswith(f"{path}/") for path in OPENAI)


def render(problem: Problem) -> Response:
    """Return the problem document of this request, or OpenAI's envelope."""
    if is_openai():
        return envelope.of(problem)
    document = {
        "type": f"urn:stoker:problem:{problem.code}",
        "title": HTTPStatus(problem.status).phrase,
        "status": problem.status,
        "detail": problem.detail,
        "instance": request.path,
        "code": problem.code,
        "request_id": g.get("request_id"),
        "errors": problem.errors,
    }
    return Response(msgspec.json.encode(document), problem.status, problem.headers, mimetype=PROBLEM)


def render_invalid(error: ValidationError) -> Response:
    """Return the answer to bad parameters of a path or query."""
    return render(from_pydantic(found_by(error)))


def found_by(error: ValidationError) -> Sequence[Any]:
    """Return what pydantic found wrong, without what the client sent."""
    return error.errors(include_url=False, include_input=False, include_context=False)


def install(app: Flask) -> None:
    """Answer every error of this application with a problem document."""
    app.register_error_handler(Problem, render)
    app.register_error_handler(HTTPException, _from_http)
    app.register_error_handler(Exception, _unexpected)
    for kind in _KNOWN:
        app.register_error_handler(kind, _expected)


def _expected(error: Exception) -> Response:
    known = next(_KNOWN[kind] for kind in type(error).__mro__ if kind in _KNOWN)
    # A line for each of a crowd that is turned away would be one more load.
    if known.status >= HTTPStatus.INTERNAL_SERVER_ERROR and not isinstance(error, DatabaseBusy):
        stored = isinstance(error, StorageFull | StorageUnavailable)
        log.warning(
            "storage unavailable" if stored else "database unavailable",
            reason=str(error),
            request_id=g.get("request_id"),
        )
    headers = {"Retry-After": str(error.retry_after)} if isinstance(error, QueueFull) else known.headers
    told: dict[str, Any] = {"status": known.status, "detail": known.detail or str(error), "headers": headers}
    if is_openai():
        told |= envelope.changes(error)
    return render(Problem(code=known.code, **told))


def _from_http(error: HTTPException) -> Response:
    status = error.code or 500
    headers = {name: value for name, value in error.get_headers() if name in {"Allow", "Retry-After", "Location"}}
    if status < HTTPStatus.BAD_REQUEST:
        return Response(status=status, headers=headers)
    return render(Problem(status, HTTPStatus(status).name.lower(), _explain(error, status), headers=headers))


def _explain(error: HTTPException, status: int) -> str:
    if status == HTTPStatus.NOT_FOUND:
        return "There is nothing at this address; /docs lists what there is."
    if status == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = ", ".join(sorted(getattr(error, "valid_methods", None) or ()))
        return f"{request.method} is not allowed here; allowed: {allowed}."
    if isinstance(error, RequestEntityTooLarge):
        return "The body is larger than this server takes (STOKER_MAX_BODY_BYTES)."
    return error.description or HTTPStatus(status).description


def _unexpected(error: Exception) -> Response:
    # Only where it happened: an exception's text may hold what the client sent.
    frames = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in traceback.extract_tb(error.__traceback__)]
    log.error("unexpected error", kind=type(error).__name__, frames=frames, request_id=g.get("request_id"))
    return render(
        Problem(500, "internal_error", "Something went wrong on this server; its log has more under this request_id.")
    )


def from_pydantic(found: Sequence[Any], prefix: str = "") -> Problem:
    """Return the 422 for what pydantic found wrong (`ValidationError.errors()`); values are left out."""
    errors = []
    for item in found[:MOST_ERRORS]:
        # Keys of maps are the client's own, of any length.
        where = ".".join(str(part)[:MOST_NAME] for part in item["loc"])
        errors.append(FieldError(prefix + where, str(item["msg"]), str(item["type"])))
    detail = "; ".join(f"{error.field}: {error.message}" for error in errors[:3])
    return Problem(422, "invalid_request", detail, errors=errors)
