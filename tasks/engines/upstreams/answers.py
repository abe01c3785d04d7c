"""What an upstream's answer means: for the request, and for the upstream. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

import msgspec

from tasks.engines.assembly import usage_of
from tasks.engines.base import Completion, Outcome, Rejection, Request
from tasks.engines.refusals import code_of

Fate = Enum("Fate", "DONE SICK BUSY CUT ELSEWHERE KEY MODEL UNSUPPORTED HALF STOPPED")
"""How one call ended.

DONE      the request has its outcome
SICK      the upstream failed: a 5xx, or an answer that is none
BUSY      it takes no more for now: 429, 503 and 504
CUT       no connection, or one that ended too early
ELSEWHERE it could not, and that says nothing of its health
KEY       it does not accept the key: the operator's business
MODEL     it has no such model, whatever it lists
UNSUPPORTED it has no such endpoint
HALF      cut after events were emitted: nobody else may go on
STOPPED   given up, since its checks go unanswered
"""

ANSWERS: dict[str, str] = {
    "/v1/chat/completions": "choices",
    "/v1/completions": "choices",
    "/v1/responses": "output",
    "/v1/embeddings": "data",
    "/v1/score": "data",
    "/v1/rerank": "results",
}
"""The list that each endpoint's answer has; of other endpoints any JSON object will do."""
KEY = frozenset({401, 402, 403, 407})
TOO_MANY = 429
BUSY = frozenset({TOO_MANY, 503, 504})
ELSEWHERE = frozenset({408, 409, 425})
NO_ENDPOINT = frozenset({404, 405, 501})
OK = 200
REDIRECTS = range(300, 400)
REFUSALS = range(400, 500)
MOST_SHOWN = 2000
"""Characters of an upstream's error message that are passed on."""
_ABOUT_MODEL = re.compile(r"\bmodels?\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a call ended: `why` is for the operator, `outcome` is there when the request is DONE."""

    fate: Fate
    why: str = ""
    outcome: Outcome | None = None
    status: int = 0
    retry_after: float | None = None

    @property
    def unavailable(self) -> bool:
        """Tell whether a busy upstream may be a sick one: no 429, and it does not say when it is back."""
        return self.status != TOO_MANY and self.retry_after is None


@dataclass(frozen=True, slots=True)
class Error:
    """An upstream's error, however it writes it. `body` is in OpenAI's envelope."""

    message: str
    code: Any
    param: str | None
    body: str


def read(request: Request, status: int, text: bytes, retry_after: float | None) -> Verdict:
    """Judge a whole answer."""
    if status == OK:
        return completed(request, text)
    if status in KEY:
        return Verdict(Fate.KEY, f"it does not accept the API key ({status})", status=status)
    if status in BUSY or status in ELSEWHERE:
        fate = Fate.BUSY if status in BUSY else Fate.ELSEWHERE
        return Verdict(fate, f"it answered {status}", status=status, retry_after=retry_after)
    if status in NO_ENDPOINT:
        return _not_there(error_in(text, status), status)
    if status in REFUSALS:
        return Verdict(Fate.DONE, outcome=rejection(request, error_in(text, status), status), status=status)
    redirect = ", a redirect: its URL is not right" if status in REDIRECTS else ""
    return Verdict(Fate.SICK, f"it answered {status}{redirect}", status=status)


def completed(request: Request, text: bytes) -> Verdict:
    """Judge an answer with status 200: its text is kept as it is, if it is what the endpoint answers."""
    try:
        answer = msgspec.json.decode(text)
        body = text.decode()
    except (ValueError, RecursionError):
        return Verdict(Fate.SICK, "its answer is not JSON", status=OK)
    wanted = ANSWERS.get(request.endpoint)
    if not isinstance(answer, dict) or (wanted and not isinstance(answer.get(wanted), list)):
        return Verdict(Fate.SICK, f"its answer is none to {request.endpoint}", status=OK)
    return Verdict(Fate.DONE, outcome=Completion(request.id, body, usage_of(answer)), status=OK)


def error_in(text: bytes, status: int) -> Error:
    """Find the error in an answer: OpenAI's, TGI's (`error` is text), FastAPI's (`detail`), or whatever came."""
    shown = text[: 4 * MOST_SHOWN].decode(errors="replace").strip()
    try:
        answer = msgspec.json.decode(text)
        body = text.decode()
    except (ValueError, RecursionError):
        answer, body = None, ""
    if isinstance(answer, dict):
        given = answer.get("error")
        if isinstance(given, dict):
            return _error(given, body)
        if given is None and isinstance(answer.get("message"), str):
            return _wrapped(answer, status)
        shown = _words(given if given is not None else answer.get("detail", shown))
        return _wrapped({"message": shown, "code": answer.get("error_type")}, status)
    if shown.startswith("<"):
        shown = ""  # a web page tells a program nothing
    return _wrapped({"message": shown or f"the upstream answered {status}"}, status)


def rejection(request: Request, error: Error, status: int) -> Rejection:
    """Build the rejection of a request that an upstream refused, with the upstream's own status and error."""
    told = error.code if isinstance(error.code, str) and error.code.isprintable() else ""
    code = told or code_of(status, error.message, error.param)
    return Rejection(request.id, code, error.message, status, error.body)


def models_in(text: bytes) -> dict[str, int | None]:
    """Read the answer of `GET /v1/models`: each name and, where it is told, its context. Raises ValueError."""
    try:
        answer = msgspec.json.decode(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    entries = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(entries, list):
        raise ValueError("not a list of models")  # noqa: TRY004  # as the docstring says
    found: dict[str, int | None] = {}
    for entry in entries:
        if isinstance(entry, dict) and isinstance(name := entry.get("id"), str) and name:
            length = entry.get("max_model_len")
            found[name] = length if isinstance(length, int) and length > 0 else None
    return found


def _not_there(error: Error, status: int) -> Verdict:
    """Tell a missing model from a missing endpoint, which servers without it answer in many ways."""
    about = error.code == "model_not_found" or error.param == "model" or _ABOUT_MODEL.search(error.message)
    if status == 404 and about:  # noqa: PLR2004  # HTTP's number
        return Verdict(Fate.MODEL, "it denies the model", status=status)
    return Verdict(Fate.UNSUPPORTED, "it has no such endpoint", status=status)


def _error(given: Mapping[str, Any], body: str) -> Error:
    param = given.get("param")
    message = _words(given.get("message") or "")[:MOST_SHOWN]
    return Error(message, given.get("code"), param if isinstance(param, str) else None, body)


def _wrapped(given: Mapping[str, Any], status: int) -> Error:
    message = str(given["message"])[:MOST_SHOWN]
    param = given["param"] if isinstance(given.get("param"), str) else None
    kind = "invalid_request_error" if status in REFUSALS else "server_error"
    code = given["code"] if isinstance(given.get("code"), str) else None
    error = {"message": message, "type": kind, "param": param, "code": code or code_of(status, message, param)}
    return Error(message, code, param, json.dumps({"error": error}, ensure_ascii=False))


def _words(value: Any) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
