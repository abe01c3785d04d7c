"""A job as clients see it, made of its row."""

from __future__ import annotations

from typing import Any

import msgspec
import sqlalchemy as sa
from flask import Response

from models.jobs import NewJob, Stored
from webapi.errors import Problem

JSON = "application/json"


def job(row: sa.Row[Any], position: int | None, *, with_result: bool = True) -> dict[str, Any]:
    """Return a job's document; the engine's answer goes in as the text that it is, without being read again."""
    answer = row.body if with_result and row.state == "succeeded" else None
    return {
        "id": row.id,
        "object": "job",
        "state": row.state,
        "lane": row.lane,
        "model": row.model,
        "endpoint": row.endpoint,
        "attempts": row.attempts,
        "created_at": _rounded(row.created_at),
        "started_at": _rounded(row.started_at),
        "finished_at": _rounded(row.finished_at),
        "expires_at": _rounded(row.expires_at),
        "queue_position": position,
        "usage": _usage(row),
        "result": None if answer is None else msgspec.Raw(answer.encode()),
        "error": _error(row),
        "metadata": row.tags or {},
        "webhook_url": row.webhook_url,
        "bulk_id": row.bulk_id,
        "line": row.line_no,
        "custom_id": row.custom_id,
    }


def accepted(new: NewJob, stored: Stored) -> dict[str, Any]:
    """Return the document of a job that was stored just now, without reading it again."""
    return {
        "id": stored.id,
        "object": "job",
        "state": "queued",
        "lane": new.lane,
        "model": new.model,
        "endpoint": new.endpoint,
        "attempts": 0,
        "created_at": _rounded(stored.created_at),
        "started_at": None,
        "finished_at": None,
        "expires_at": _rounded(stored.expires_at),
        "queue_position": None,
        "usage": None,
        "result": None,
        "error": None,
        "metadata": new.metadata or {},
        "webhook_url": new.webhook and new.webhook.url,
        "bulk_id": None,
        "line": None,
        "custom_id": None,
    }


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)


def _usage(row: sa.Row[Any]) -> dict[str, int] | None:
    if row.state != "succeeded" or row.prompt_tokens is None:
        return None
    return {
        "prompt_tokens": row.prompt_tokens,
        "completion_tokens": row.completion_tokens,
        "total_tokens": row.prompt_tokens + row.completion_tokens,
    }


def _error(row: sa.Row[Any]) -> dict[str, Any] | None:
    if row.state != "failed":
        return None
    return {"code": row.error_code or "failed", "message": row.error_message or "", "status": row.status or 500}


def failure(row: sa.Row[Any]) -> Problem:
    """Return the error of a job that ended without an answer."""
    if row.state in {"cancelled", "expired"}:
        return Problem(409, f"job_{row.state}", f"The job {row.id} was {row.state} before it was done.")
    status = row.status if row.status and row.status >= 400 else 500  # noqa: PLR2004  # HTTP's errors
    headers = {"Retry-After": "5"} if status == 503 else {}  # noqa: PLR2004  # as above
    return Problem(status, row.error_code or "failed", row.error_message or "The job failed.", headers=headers)


def encode(document: Any) -> bytes:
    """Return a document as JSON."""
    return msgspec.json.encode(document)


def respond(body: bytes | str, status: int = 200, **headers: str) -> Response:
    """Return an answer of JSON; header names are written with `_` for `-`."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Response(body, status, named, mimetype=JSON)
