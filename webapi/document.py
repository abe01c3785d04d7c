"""The OpenAPI document, completed with what holds of many calls: headers, limits, the key that makes a call one."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from flask_openapi.openapi import OpenAPI

from webapi.errors import OPENAI

IDEMPOTENT = frozenset(
    {
        "createBatch",
        "createBulk",
        "createChatCompletion",
        "createCompletion",
        "createEmbedding",
        "createFile",
        "createJob",
        "createResponse",
        "createWebhookEndpoint",
        "retryBulk",
    }
)
"""The calls that take an Idempotency-Key."""
PLACED = frozenset({"createBulk", "createJob", "retryBulk"})
"""The calls whose 202 says where the new thing is."""

_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": False,
    "description": "The same key and body again: the same answer, and nothing is made twice.",
    "schema": {"type": "string", "pattern": "^[!-~]{1,255}$"},
}
_HEADERS = {
    "Location": "Where the new thing is.",
    "Retry-After": "Seconds after which it may be worth another try.",
    "WWW-Authenticate": "How to say who you are.",
    "X-Request-Id": "Names this request in the server's log; taken from the request when that has one.",
}
_HEADERS_OF = {"401": "WWW-Authenticate", "429": "Retry-After", "503": "Retry-After"}


class Documented(OpenAPI):
    """An application whose document is complete."""

    def generate_spec_json(self) -> None:
        """Make the document."""
        super().generate_spec_json()  # type: ignore[no-untyped-call]  # the library's has no annotation
        for path, operations in self.spec_json["paths"].items():
            openai = any(path == there or path.startswith(f"{there}/") for there in OPENAI)
            for operation in operations.values():
                _complete(operation, openai=openai)


def _complete(operation: dict[str, Any], *, openai: bool) -> None:
    answers = operation["responses"]
    if openai:
        # The library promises one of every view; there it is a 400.
        answers.pop("422", None)
    if operation.get("security"):
        _add(answers, 429)
    if operation["operationId"] in IDEMPOTENT:
        operation.setdefault("parameters", []).append(_KEY)
        _add(answers, 409)
    for status, answer in answers.items():
        placed = status == "202" and operation["operationId"] in PLACED
        names = {"X-Request-Id", _HEADERS_OF.get(status, "X-Request-Id"), *({"Location"} if placed else ())}
        answer["headers"] = {name: _header(name) for name in sorted(names)}


def _add(answers: dict[str, Any], status: int) -> None:
    # Of the same shape as an error that every call has.
    content = answers["500"]["content"]
    answers.setdefault(str(status), {"description": HTTPStatus(status).phrase, "content": content})


def _header(name: str) -> dict[str, Any]:
    return {"description": _HEADERS[name], "required": True, "schema": {"type": "string"}}
