"""The two error shapes, for whatever goes wrong: RFC 9457 problem documents, and OpenAI's envelope at OpenAI's paths.

What the client sent is never repeated in an error (only names of fields and models are), nor is anything internal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import msgspec
from flask import Response, g, render_template, request
from pydantic import ValidationError

from webapi import envelope, headers

MOST_ERRORS = 20
MOST_NAME = 64
MOST_PATH = 200
"""Characters of a request's path that its problem document repeats."""
PROBLEM = "application/problem+json"
OPENAI = (
    "/v1/batches",
    "/v1/chat",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/files",
    "/v1/models",
    "/v1/responses",
    "/v1/webhook_endpoints",
    "/v1/webhook_event_types",
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


class WebhookUnknown(OutcomeUnknown):
    """The same, of a webhook endpoint or a delivery."""


def invalid(field_name: str, message: str, code: str = "invalid_value") -> Problem:
    """Return the 422 for one bad field."""
    return Problem(422, code, f"{field_name}: {message}", errors=[FieldError(field_name, message, code)])


def is_openai() -> bool:
    """Tell whether this request is at a path of OpenAI's."""
    return any(request.path == path or request.path.startswith(f"{path}/") for path in OPENAI)


def is_page() -> bool:
    """Tell whether this request is for a page of the console."""
    return request.path == "/dashboard" or request.path.startswith("/dashboard/")


def _page(problem: Problem) -> Response:
    """Return a page that says what went wrong; in the place of a part of a page, only the words, as a notice above."""
    told = {"problem": problem, "request_id": g.get("request_id"), "title": HTTPStatus(problem.status).phrase}
    # Also where there is no page, and so none whose policy it would have.
    sent = {**problem.headers, "Content-Security-Policy": headers.PAGE}
    if "HX-Request" in request.headers:
        sent |= {"HX-Retarget": "#notices", "HX-Reswap": "innerHTML"}
        return Response(render_template("console/problem.html", **told), problem.status, sent)
    return Response(render_template("console/error.html", **told), problem.status, sent)


def render(problem: Problem) -> Response:
    """Return the problem document of this request, or OpenAI's envelope."""
    if is_openai():
        return envelope.of(problem)
    if is_page():
        return _page(problem)
    document = {
        "type": f"urn:stoker:problem:{problem.code}",
        "title": HTTPStatus(problem.status).phrase,
        "status": problem.status,
        "detail": problem.detail,
        "instance": request.path[:MOST_PATH],
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


def from_pydantic(found: Sequence[Any], prefix: str = "") -> Problem:
    """Return the 422 for what pydantic found wrong (`ValidationError.errors()`); values are left out."""
    errors = []
    for item in found[:MOST_ERRORS]:
        # Keys of maps are the client's own, of any length.
        where = ".".join(str(part)[:MOST_NAME] for part in item["loc"])
        errors.append(FieldError(prefix + where, str(item["msg"]), str(item["type"])))
    detail = "; ".join(f"{error.field}: {error.message}" for error in errors[:3])
    return Problem(422, "invalid_request", detail, errors=errors)
