"""Results: what an engine answered, written once."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
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
    sa.Column("bulk_id", Id),
    sa.Column("seq", sa.BigInteger),
    sa.Column("ok", sa.Boolean),
    sa.Column("line_no", sa.BigInteger),
    sa.Column("custom_id", sa.Text),
)
"""The primary key is what makes a second result of one job impossible.

Every line of a bulk that ended has a row, also one that was cancelled, expired, or could not be read and so has no job
(`job_id` is `line_...`). `seq` counts them in the order of their commits, so that a reader can follow behind it."""

TOKENS = ("prompt_tokens", "completion_tokens", "cached_tokens", "reasoning_tokens")
"""What a result tells of the tokens that it took, and what bulks and usage add up."""

_OF_BULK = sa.text("bulk_id IS NOT NULL")
sa.Index(
    "results_bulk",
    table.c.bulk_id,
    table.c.ok,
    table.c.seq,
    unique=True,
    sqlite_where=_OF_BULK,
    postgresql_where=_OF_BULK,
)

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
    cached_tokens: int = 0
    reasoning_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Ended:
    """A job, or a line that never became one, that has just reached the end state `state`."""

    job_id: str
    state: str
    result: NewResult | None = None
    batch_id: str | None = None
    bulk_id: str | None = None
    line_no: int | None = None
    custom_id: str | None = None


def storable(text: str | None) -> str | None:
    """Return JSON text without what no database takes: NUL and lone surrogates, written as their JSON escapes."""
    if text is None:
        return None
    return _UNSTORABLE.sub(lambda match: f"\\u{ord(match.group()):04x}", text)


def store(tx: sa.Connection, engine_id: str | None, ended: Iterable[Ended], places: Mapping[str, int]) -> None:
    """Store what became of jobs that have just ended, in the same transaction; `places` are their `seq` by job id.

    A job of no bulk that has no result (cancelled, expired) gets no row.
    """
    rows = [
        {
            "job_id": one.job_id,
            "batch_id": one.batch_id,
            "engine_id": engine_id,
            "status": result.status,
            "body": storable(result.body),
            "error_code": result.code and result.code[:64],
            "error_message": storable(result.message),
            "prompt_tokens": result.prompt_tokens,
            "completion_tokens": result.completion_tokens,
            "bulk_id": one.bulk_id,
            "seq": places.get(one.job_id),
            "ok": None if one.bulk_id is None else one.state == "succeeded",
            "line_no": one.line_no,
            "custom_id": one.custom_id,
        }
        for one in ended
        if (result := one.result or _ending(one)) is not None
    ]
    if rows:
        tx.execute(sa.insert(table).values(created_at=now()), rows)


def _ending(one: Ended) -> NewResult | None:
    """Return what stands for the answer of a bulk's line that ended without one."""
    if one.bulk_id is None:
        return None
    return NewResult(status=0, code=one.state, message=f"The job was {one.state} before it had an answer.")
