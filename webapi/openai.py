"""What the calls that OpenAI has too share: errors, lists, and how both are described."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from flask_openapi.models import OPENAPI3_REF_PREFIX
from pydantic import BaseModel

from webapi.errors import Problem


class ErrorBody(BaseModel):
    """What went wrong; `param` names the field."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorEnvelope(BaseModel):
    """An error, as OpenAI's API has it."""

    error: ErrorBody


def openai_problem(
    status: int, code: str, message: str, param: str | None = None, headers: Mapping[str, str] | None = None
) -> Problem:
    """Return an error that is answered as it is given here, in OpenAI's envelope."""
    return Problem(status, code, message, param=param, headers=headers)


def openai_list(data: Sequence[dict[str, Any]], *, more: bool) -> dict[str, Any]:
    """Return a page as OpenAI's lists have it."""
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": more,
    }


def openai_problems(*statuses: int) -> dict[str | int | HTTPStatus, Any]:
    """Return the descriptions of error answers."""
    reference = {"$ref": f"{OPENAPI3_REF_PREFIX}/{ErrorEnvelope.__name__}"}
    return {
        status: {"description": HTTPStatus(status).phrase, "content": {"application/json": {"schema": reference}}}
        for status in statuses
    }
