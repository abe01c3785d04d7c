"""JSON from outside: bytes in, checked values out, with the bytes of each value kept as they came.

Nothing that a database or an engine would choke on passes: NUL, lone surrogates, numbers that are none, bottomless
nesting. The bytes are kept because a number that goes through a float may come out as another one.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import msgspec
import structlog
from flask import Request, Response
from gunicorn.http.errors import ParseException  # type: ignore[import-untyped]
from werkzeug.exceptions import ClientDisconnected, RequestEntityTooLarge

from models.json_text import MOST_DEPTH, bad_character, too_deep
from webapi.bodies import SMALL, Bodies
from webapi.caller import fitting
from webapi.errors import FieldError, Problem
from webapi.watchdog import Watchdog

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIEnvironment

log = structlog.get_logger("stoker.web")

PAUSE = 10.0
WHOLE = 60.0
"""Seconds that a body may take altogether: a client that sends a byte a second never makes a pause."""
DRAIN = 5.0

_watchdog = Watchdog()
_bodies = Bodies()
_members = msgspec.json.Decoder(dict[str, msgspec.Raw])
_anything = msgspec.json.Decoder()


@dataclass(frozen=True, slots=True)
class JsonObject:
    """A JSON object: `values` decoded, `raw` the bytes of each member as they were sent."""

    values: dict[str, Any]
    raw: dict[str, msgspec.Raw]

    def nested(self, name: str) -> JsonObject:
        """Return the member `name`, which is an object."""
        return JsonObject(self.values[name], _members.decode(self.raw[name]))


def read(request: Request, most_bytes: int) -> bytes:
    """Return a request's JSON body as bytes, without ever holding more than `most_bytes`.

    Raises Problem 400, 408, 413, 415, and 503 when this process holds too many large ones.
    """
    _check_content_type(request)
    most_bytes = fitting(most_bytes, "body_bytes")
    announced = request.content_length
    held = _bodies.hold(most_bytes if announced is None else min(most_bytes, announced))
    try:
        raw = whole(request, most_bytes, WHOLE)
    except RequestEntityTooLarge:
        detail = (
            f"The body is larger than the {most_bytes} bytes that this server takes "
            "(STOKER_MAX_BODY_BYTES, or the key's body_bytes)."
        )
        raise Problem(413, "body_too_large", detail) from None
    held.shrink(len(raw))
    return raw


def whole(request: Request, most_bytes: int, within: float, *, cache: bool = False) -> bytes:
    """Return a request's body, JSON or not, that comes within so many seconds; with `cache` the request keeps it.

    Raises Problem 400 and 408, and RequestEntityTooLarge.
    """
    request.max_content_length = most_bytes
    with _coming(request.environ, within):
        raw = request.get_data(cache=cache)
        # A chunked body is cut at the limit without a word.
        if len(raw) >= most_bytes and request.environ["wsgi.input"].read(1):
            raise RequestEntityTooLarge
    if len(raw) < (request.content_length or 0):
        raise _incomplete(within)
    return raw


@contextmanager
def _coming(environ: WSGIEnvironment, within: float) -> Iterator[None]:
    until = time.monotonic() + within
    try:
        with patience(environ, PAUSE, within):
            yield
    except (ClientDisconnected, OSError):
        raise _incomplete(within) from None
    except ParseException as error:
        if time.monotonic() >= until:
            raise _incomplete(within) from None  # cut between two chunks, which reads like a bad one
        log.info("malformed body", kind=type(error).__name__)
        raise Problem(400, "malformed_body", "The chunks of the body are not framed as HTTP/1.1 says.") from None


def _incomplete(within: float) -> Problem:
    detail = f"The body ended early, stopped coming for {PAUSE:g} s, or took more than {within:g} s."
    return Problem(408, "body_incomplete", detail)


@contextmanager
def patience(environ: WSGIEnvironment, pause: float, whole: float) -> Iterator[None]:
    """Let no read of the body wait longer than `pause`, and all not longer than `whole`: it would keep a thread."""
    connection = environ.get("gunicorn.socket")
    if connection is None:
        yield
        return
    connection.settimeout(pause)
    try:
        with _watchdog.watching(connection, whole):
            yield
    finally:
        connection.settimeout(None)


def is_left_over(request: Request, response: Response) -> bool:
    """Tell whether a refused request may have a body that was not read, larger than the server drops by itself."""
    if response.status_code < HTTPStatus.BAD_REQUEST:
        return False
    return (request.content_length or 0) > SMALL or "chunked" in request.headers.get("Transfer-Encoding", "")


def answer_then_drain(response: Response, request: Request) -> Response:
    """Send an answer at once, then read and drop what the client still sends, for some seconds.

    A connection closed on unread bytes is reset, and a client that sends first and reads later would never see why.
    """
    document = response.get_data()
    response.response = _drained(document, request.environ)
    response.content_length = len(document)
    return response


def _drained(document: bytes, environ: WSGIEnvironment) -> Iterator[bytes]:
    yield document
    until = time.monotonic() + DRAIN
    body = environ["wsgi.input"]
    with patience(environ, 1.0, DRAIN):
        try:
            while time.monotonic() < until and body.read(65536):
                pass
        except (OSError, ParseException) as error:
            log.debug("client went away", kind=type(error).__name__)


def _check_content_type(request: Request) -> None:
    kind = request.mimetype
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        detail = f"Send JSON, with the header Content-Type: application/json (this request had {_shown(kind)})."
        raise Problem(415, "unsupported_media_type", detail)
    charset = request.mimetype_params.get("charset", "utf-8").lower()
    if charset not in {"utf-8", "utf8", "us-ascii"}:
        raise Problem(415, "unsupported_media_type", "Send JSON in UTF-8, without another charset in Content-Type.")
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise Problem(415, "unsupported_media_type", "Send the body as it is, without a Content-Encoding.")


def _shown(kind: str) -> str:
    return kind if re.fullmatch(r"[\w.+/-]{1,100}", kind) else "none" if not kind else "another"


def parse(raw: bytes, *, nul: bool = False) -> JsonObject:
    """Return the JSON object in `raw`. Raises Problem: 400 for what is not JSON, 422 for what is refused.

    With `nul` texts may have NUL characters: none of the decoded ones is stored.
    """
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        raise _malformed(f"byte {error.start} is not UTF-8") from None
    if (bad := bad_character(raw, nul=nul)) is not None:
        raise _refused(bad.why, bad.code)
    try:
        values = _anything.decode(raw)
    except RecursionError:
        raise _too_deep() from None
    except msgspec.ValidationError:
        raise _refused("a number is out of range", "number_out_of_range") from None
    except msgspec.DecodeError as error:
        raise _malformed(str(error).removeprefix("JSON is malformed: ").lower()) from None
    if too_deep(raw):
        raise _too_deep()
    if not isinstance(values, dict):
        raise _refused("the body must be a JSON object", "object_required")
    return JsonObject(values, _members.decode(raw))


def _too_deep() -> Problem:
    return _refused(f"the body is nested deeper than {MOST_DEPTH} levels", "nested_too_deep")


def _malformed(why: str) -> Problem:
    return Problem(400, "malformed_json", f"The body is not valid JSON: {why}.")


def _refused(why: str, code: str) -> Problem:
    return Problem(422, code, f"{why[0].upper()}{why[1:]}.", errors=[FieldError("", why, code)])
