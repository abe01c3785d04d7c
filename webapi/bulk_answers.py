"""Bulks and batches as clients see them, made of their rows."""

from __future__ import annotations

from typing import Any

from models.bulk_views import Seen
from models.db import AnyRow
from models.states import BULK

_ENDS = ("completed", "failed", "expired", "cancelled")
_STATUS = {"running": "in_progress"}
"""Where OpenAI has another name for a state."""


def bulk(seen: Seen) -> dict[str, Any]:
    """Return a bulk's document."""
    row = seen.row
    return {
        "id": row.id,
        "object": "bulk",
        "kind": row.kind,
        "state": row.state,
        "lane": row.lane,
        "paused": row.paused_at is not None,
        "model": row.model,
        "endpoint": row.endpoint,
        "created_at": _rounded(row.created_at),
        "started_at": _rounded(row.in_progress_at),
        "finished_at": _rounded(_finished_at(row)),
        "expires_at": _rounded(row.expires_at),
        "counts": _counts(row, seen.running),
        "counted": row.ingest_done,
        **_pace(seen),
        "usage": {
            "prompt_tokens": row.prompt_tokens,
            "completion_tokens": row.completion_tokens,
            "total_tokens": row.prompt_tokens + row.completion_tokens,
        },
        "errors": row.errors or [],
        "report": row.report if row.dry_run else None,
        "metadata": row.metadata or {},
        "retry_of": row.retry_of,
        "dry_run": row.dry_run,
        "stop_after_failed": row.stop_after_failed,
        "webhook_url": row.webhook_url,
    }


def _counts(row: AnyRow, running: int) -> dict[str, int]:
    # The jobs are counted after the row was read: some of them may have begun since.
    left = row.total - row.done
    running = min(running, left)
    named = ("succeeded", "failed", "cancelled", "expired", "invalid")
    return {"total": row.total, "queued": left - running, "running": running} | {n: getattr(row, n) for n in named}


def _pace(seen: Seen) -> dict[str, float | None]:
    row = seen.row
    seconds = _seconds(seen)
    # Lines that could not be read, or were cancelled, took no time and say nothing of the others.
    ran = row.succeeded + row.failed - row.invalid
    if not ran or seconds <= 0:
        return dict.fromkeys(("rate", "tokens_per_second", "eta"))
    rate = ran / seconds
    going_on = row.state == "running" and row.ingest_done and row.paused_at is None
    return {
        "rate": round(rate, 3),
        "tokens_per_second": round((row.prompt_tokens + row.completion_tokens) / seconds, 3),
        "eta": round((row.total - row.done) / rate, 1) if going_on else None,
    }


def _seconds(seen: Seen) -> float:
    """Return for how long lines ran, or have been running."""
    row = seen.row
    if row.in_progress_at is None:
        return 0.0
    ended = row.finalizing_at or _finished_at(row) or seen.clock
    return float(ended - row.in_progress_at)


def _finished_at(row: AnyRow) -> float | None:
    return getattr(row, f"{row.state}_at") if row.state in BULK.final else None


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)


def batch(row: AnyRow) -> dict[str, Any]:
    """Return a batch's document, as OpenAI's API has it."""
    return {
        "id": row.id,
        "object": "batch",
        "endpoint": row.endpoint,
        "model": row.model,
        "errors": {"object": "list", "data": row.errors} if row.errors and row.state in BULK.final else None,
        "input_file_id": row.file_id,
        "completion_window": row.window,
        "status": status(row.state),
        "output_file_id": row.output_file_id,
        "error_file_id": row.error_file_id,
        "created_at": int(row.created_at),
        "in_progress_at": _whole(row.in_progress_at),
        "expires_at": _whole(row.expires_at),
        "finalizing_at": _whole(row.finalizing_at),
        **{f"{name}_at": _whole(getattr(row, f"{name}_at")) for name in _ENDS},
        "cancelling_at": _whole(row.cancelling_at),
        "request_counts": _request_counts(row),
        "usage": _batch_usage(row),
        "metadata": row.metadata,
    }


def status(state: str) -> str:
    """Return what OpenAI calls a state."""
    return _STATUS.get(state, state)


def _whole(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds)


def _request_counts(row: AnyRow) -> dict[str, int]:
    # The lines that validation counted become jobs only bit by bit.
    known = row.report["lines"] if row.report and row.in_progress_at is not None else 0
    return {"total": max(row.total, known), "completed": row.succeeded, "failed": row.failed}


def _batch_usage(row: AnyRow) -> dict[str, Any] | None:
    if row.in_progress_at is None and row.state in BULK.open:
        return None
    return {
        "input_tokens": row.prompt_tokens,
        "input_tokens_details": {"cached_tokens": row.cached_tokens},
        "output_tokens": row.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": row.reasoning_tokens},
        "total_tokens": row.prompt_tokens + row.completion_tokens,
    }
