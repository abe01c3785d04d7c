"""`/v1/usage`: what became of jobs, and the tokens that they took, by day, owner and model."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, timedelta
from typing import Annotated, Any

import sqlalchemy as sa
from flask import Response, g
from flask_openapi.blueprint import APIBlueprint
from flask_openapi.models.tag import Tag
from pydantic import BaseModel, ConfigDict, Field

from models import usage
from models.db import AnyRow
from webapi import access, answers
from webapi.context import here
from webapi.errors import invalid
from webapi.openapi import problems
from webapi.schemas import Parameters

USUAL_DAYS = 30
MOST_ROWS = 10_000
EVERYBODY = "*"
_FIRST_DAY = date(1970, 1, 1)

Day = Annotated[str, Field(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$", json_schema_extra={"format": "date"})]

api = APIBlueprint(
    "usage",
    __name__,
    url_prefix="/v1/usage",
    abp_tags=[Tag(name="usage", description="What was used, by day and model.")],
    abp_security=[{"key": []}],
    abp_responses=problems(401, 403, 422, 429, 500, 503),
)
api.before_request(access.admit)


class UsageQuery(Parameters):
    """Of which days, whom, and which model; days are UTC, both ends included."""

    model_config = ConfigDict(extra="forbid", populate_by_name=False)

    first: Day | None = Field(None, alias="from", description="First day; left out: 29 days before the last one.")
    last: Day | None = Field(None, alias="to", description="Last day; left out: today.")
    model: Annotated[str, Field(max_length=255)] | None = None
    owner: Annotated[str, Field(max_length=64)] | None = Field(
        None, description="Another owner, or * for all; needs the scope admin."
    )


class JobCounts(BaseModel):
    """How many jobs ended how."""

    succeeded: int
    failed: int
    cancelled: int
    expired: int


class TokenCounts(BaseModel):
    """How many tokens they took; `cached` ones are among the prompt's, `reasoning` ones among the completion's."""

    prompt: int
    completion: int
    cached: int
    reasoning: int
    total: int


class UsageRow(BaseModel):
    """What one owner used of one model on one day."""

    date: Day
    owner: str
    model: str
    jobs: JobCounts
    tokens: TokenCounts


class UsageList(BaseModel):
    """What was used, by day, owner and model."""

    model_config = ConfigDict(populate_by_name=True)

    object: str
    first: Day = Field(alias="from")
    last: Day = Field(alias="to")
    data: list[UsageRow]


@api.get("", operation_id="getUsage", responses={200: UsageList})
def index(query: UsageQuery) -> Response:
    """Get what was used; a job counts on the day on which it ended."""
    return answers.respond(answers.encode(document(query)))


def document(query: UsageQuery) -> dict[str, Any]:
    """Return what was used, as its list. Raises Problem 403 and 422."""
    owner = _owner_of(query)
    if "\x00" in (query.model or ""):
        raise invalid("model", "must not have a NUL character")

    def look(tx: sa.Connection) -> tuple[int, int, Sequence[AnyRow]]:
        last = _day_of(query.last, "to") if query.last else usage.day(tx)
        first = _day_of(query.first, "from") if query.first else last - (USUAL_DAYS - 1)
        if first > last:
            raise invalid("from", "must not be behind `to`")
        return first, last, usage.page(tx, owner, first, last, model=query.model, limit=MOST_ROWS + 1)

    first, last, rows = here().lists.read(look)
    if len(rows) > MOST_ROWS:
        raise invalid("from", f"these are more than {MOST_ROWS} rows: ask for fewer days, or one owner or model")
    return {"object": "list", "from": _written(first), "to": _written(last), "data": [_row(row) for row in rows]}


def _owner_of(query: UsageQuery) -> str | None:
    """Return whose usage is asked for, None for everybody's. Raises Problem 403 for another's without admin."""
    if query.owner is None or query.owner == g.owner:
        return str(g.owner)
    if not g.caller.may("admin"):
        raise access.missing(["admin"])
    if "\x00" in query.owner:
        raise invalid("owner", "must not have a NUL character")
    return None if query.owner == EVERYBODY else query.owner


def _day_of(text: str, name: str) -> int:
    try:
        return (date.fromisoformat(text) - _FIRST_DAY).days
    except ValueError:
        raise invalid(name, "must be a day like 2026-11-28") from None


def _written(day: int) -> str:
    try:
        return (_FIRST_DAY + timedelta(days=day)).isoformat()
    except OverflowError:
        raise invalid("to", "must leave room for the days before it") from None


def _row(row: AnyRow) -> dict[str, Any]:
    prompt, completion = row.prompt_tokens, row.completion_tokens
    tokens = {
        "prompt": prompt,
        "completion": completion,
        "cached": row.cached_tokens,
        "reasoning": row.reasoning_tokens,
    }
    return {
        "date": _written(row.day),
        "owner": row.owner,
        "model": row.model,
        "jobs": {state: getattr(row, state) for state in usage.STATES},
        "tokens": tokens | {"total": prompt + completion},
    }
