"""Results: what an engine answered, written once."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

import sqlalchemy as sa

from models.db import Id, metadata, now

table = sa.Table(
    "results",
    metadata,
    sa.Column("job_id", Id, primary_key=True),
    sa.Column("batch_id", Id),
    sa.Column("engine_id", sa.String(64)),
    sa.Column("status", sa.SmallInteger, nullable=False),
    sa.Column("body", sa.Text),
    sa.Column("error_code", sa.String(64)),
    sa.Column("error_message", sa.Text),
    sa.Column("prompt_tokens", sa.Integer, nullable=False),
    sa.Column("completion_tokens", sa.Integer, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
)
"""The primary key is what makes a second result of one job impossible."""

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class NewResult:
    """An engine's answer: `status` as in HTTP, `body` the JSON text of its answer object, or why there is none."""

    status: int
    body: str | None = field(default=None, repr=False)
    code: str | None = None
    message: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0


def storable(text: str | None) -> str | None:
    """Return JSON text without what no database takes: NUL and lone surrogates, written as their JSON escapes."""
    if text is None:
        return None
    return _UNSTORABLE.sub(lambda match: f"\\u{ord(match.group()):04x}", text)


def store(
    tx: sa.Connection,
    batch_id: str | None,
    engine_id: str | None,
    answers: Iterable[tuple[str, NewResult | None]],
) -> None:
    """Store results of jobs that were just moved to an end state, in the same transaction."""
    rows = [
        {
            "job_id": job_id,
            "batch_id": batch_id,
            "engine_id": engine_id,
            "status": result.status,
            "body": storable(result.body),
            "error_code": result.code and result.code[:64],
            "error_message": storable(result.message),
            "prompt_tokens": result.prompt_tokens,
            "completion_tokens": result.completion_tokens,
        }
        for job_id, result in answers
        if result is not None
    ]
    if rows:
        tx.execute(sa.insert(table).values(created_at=now()), rows)
