"""What the application answers when something goes wrong: what is expected to, what HTTP knows, and the rest."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import structlog
from flask import Flask, Response, g, request
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from models.errors import (
    AlreadyFinished,
    DatabaseBusy,
    DatabaseUnavailable,
    KeyBusy,
    KeyReused,
    NotEnded,
    NotFound,
    QueueFull,
    StillRunning,
    TestOnly,
    TooManyEndpoints,
    TriedTooOften,
)
from models.sealing import NoSecretKey
from models.storage import ObjectMissing, StorageFull, StorageUnavailable
from webapi import envelope
from webapi.errors import (
    BulkUnknown,
    CancelUnknown,
    FileUnknown,
    OutcomeUnknown,
    Problem,
    WebhookUnknown,
    is_openai,
    render,
)

log = structlog.get_logger("stoker.web")


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
    NotEnded: _Known(409, "not_ended"),
    TriedTooOften: _Known(409, "tried_too_often"),
    TestOnly: _Known(409, "test_only"),
    TooManyEndpoints: _Known(422, "too_many_endpoints"),
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
        "The database went away while it stored this: whether it was done is unknown. List the files to see, or "
        "send the same request again with the same Idempotency-Key.",
        {"Retry-After": "2"},
    ),
    WebhookUnknown: _Known(
        503,
        "outcome_unknown",
        "The database went away while it stored this: whether it was done is unknown. List the webhook endpoints or "
        "deliveries to see, or send the same request again with the same Idempotency-Key.",
        {"Retry-After": "2"},
    ),
    NoSecretKey: _Known(
        503,
        "no_secret_key",
        "This server cannot keep secrets at the moment, so nothing was stored. Its operator has to set "
        "STOKER_SECRET_KEY, the same for web servers and workers (`stoker keys secret-key` makes one).",
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


_TROUBLE: dict[type[Exception], str] = {
    NoSecretKey: "no secret key",
    StorageFull: "storage unavailable",
    StorageUnavailable: "storage unavailable",
}


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
        log.warning(
            next((text for kind, text in _TROUBLE.items() if isinstance(error, kind)), "database unavailable"),
            reason=str(error),
            request_id=g.get("request_id"),
        )
    headers, code = known.headers, known.code
    if isinstance(error, QueueFull):
        headers = {"Retry-After": str(error.retry_after)}
        code = code if error.unit == "jobs" else f"{error.unit}_{code}"
    told: dict[str, Any] = {"status": known.status, "detail": known.detail or str(error), "headers": headers}
    if is_openai():
        told |= envelope.changes(error)
    return render(Problem(code=code, **told))


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
