"""Where the lines of a new bulk come from: a raw body, a form, JSON, a file that is there, or an object in storage."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec
from flask import Request, g
from flask_openapi.models import OPENAPI3_REF_PREFIX

from models import files
from models.db import AnyRow, is_id
from models.errors import NotFound
from models.storage import allowed
from webapi import uploads
from webapi.bulk_schemas import BulkParameters, BulkRequest
from webapi.context import here
from webapi.errors import FieldError, Problem, invalid
from webapi.forms import FORM
from webapi.openapi import body_of
from webapi.uploads import Upload

SOURCES = ("requests", "file_id", "input_url")
LINES = "application/x-ndjson"
CSV = frozenset({"text/csv", "application/csv"})
GZIP = frozenset({"application/gzip", "application/x-gzip"})
RAW = CSV | GZIP | {LINES, "application/ndjson", "application/jsonl", "application/x-jsonlines"}
RAW |= {"application/jsonlines", "application/json-lines", "text/plain", "application/octet-stream", ""}

_BINARY = {"schema": {"type": "string", "format": "binary"}}
_FORM = {
    "type": "object",
    "required": ["file"],
    "properties": {"file": {"type": "string", "format": "binary", "description": ".jsonl or .csv, with .gz or not."}},
    "allOf": [{"$ref": f"{OPENAPI3_REF_PREFIX}/{BulkParameters.__name__}"}],
}
BODY: dict[str, Any] = {
    "required": True,
    "description": "Parameters of all lines are members of the JSON, fields of the form, or in the query.",
    "content": {
        **body_of(BulkRequest)["content"],
        **dict.fromkeys((LINES, "text/csv", "application/gzip"), _BINARY),
        FORM: {"schema": _FORM},
    },
}

Format = Literal["jsonl", "csv"]


@dataclass(frozen=True, slots=True)
class Content:
    """What came with a request: `names` tell what it is, `digest` tells it from any other.

    `stored` opens the file that it is stored as; None when nothing came, because the lines are elsewhere.
    """

    digest: str = ""
    names: tuple[str, ...] = ()
    uploaded: bool = False
    stored: Callable[[], AbstractContextManager[Upload | None]] = field(default=nullcontext, repr=False)


@dataclass(frozen=True, slots=True)
class Input:
    """Where the lines of a bulk are, and how they are written; no `file_id` when they are yet to be stored."""

    format: Format = "jsonl"
    gzip: bool = False
    file_id: str | None = None
    input_url: str | None = None


def is_json(request: Request) -> bool:
    """Tell whether the body is one JSON document."""
    return request.mimetype == "application/json" or request.mimetype.endswith("+json")


def check_type(request: Request) -> None:
    """Raise Problem 415 for a body that cannot be the lines of a bulk."""
    if request.mimetype == FORM:
        return
    if request.mimetype not in RAW:
        detail = (
            f"Send JSON Lines with the header Content-Type: {LINES}, CSV as text/csv, either of them compressed with "
            f"Content-Encoding: gzip, a form ({FORM}), or application/json."
        )
        raise Problem(415, "unsupported_media_type", detail)
    if request.mimetype_params.get("charset", "utf-8").lower() not in {"utf-8", "utf8", "us-ascii"}:
        raise Problem(415, "unsupported_media_type", "Send text in UTF-8, without another charset in Content-Type.")
    if _encoding(request) not in {"identity", "gzip", "x-gzip"}:
        raise Problem(415, "unsupported_media_type", "Only Content-Encoding: gzip is known.")


def _encoding(request: Request) -> str:
    return request.headers.get("Content-Encoding", "identity").strip().lower()


def of_upload(upload: Upload, request: Request) -> Content:
    """Return what was uploaded. Raises Problem 422 when that is nothing."""
    if upload.size == 0:
        raise Problem(422, "empty_file", "The body is empty: there is not one line.")
    names = (upload.filename, upload.content_type, "application/gzip" if "gzip" in _encoding(request) else "")
    digest = f"{upload.sha256} {written_as(None, names)}"
    return Content(digest, names, uploaded=True, stored=lambda: nullcontext(upload))


def of_requests(requests: msgspec.Raw) -> Content:
    """Return the elements of a JSON array as lines, each one's text unchanged but for blanks between its parts."""
    try:
        elements = msgspec.json.decode(requests, type=list[msgspec.Raw])
    except msgspec.ValidationError:
        raise invalid("requests", "must be a list of lines", "list_type") from None
    lines = b"".join(msgspec.json.format(element, indent=-1) + b"\n" for element in elements)
    digest = hashlib.sha256(lines).hexdigest()
    return Content(digest, stored=lambda: uploads.kept(lines, files.BULK_INPUT, "requests.jsonl"))


def written_as(format_: Format | None, names: tuple[str, ...]) -> tuple[Format, bool]:
    """Return how lines are written, and whether that is compressed, by the names of files and of content types."""
    lower = [name.lower() for name in names]
    csv = any(name in CSV or name.removesuffix(".gz").endswith(".csv") for name in lower)
    packed = any(name in GZIP or name.endswith(".gz") for name in lower)
    return format_ or ("csv" if csv else "jsonl"), packed


def input_of(asked: BulkRequest, content: Content) -> Input:
    """Return where the lines are that a client means. Raises Problem 422."""
    given = [name for name in SOURCES if getattr(asked, name) is not None]
    if content.uploaded:
        if given:
            raise invalid(given[0], "goes with a body of JSON, not beside lines that are uploaded", "one_of")
        return Input(*written_as(asked.format, content.names))
    if len(given) != 1:
        errors = [FieldError(name, "exactly one of them is needed", "one_of") for name in given or SOURCES]
        raise Problem(422, "one_of", f"Give exactly one of {', '.join(SOURCES)}.", errors=errors)
    if asked.file_id is not None:
        return _of_file(asked.file_id, asked.format)
    if asked.input_url is not None:
        return _of_url(asked.input_url, asked.format)
    if asked.format == "csv":
        raise invalid("format", "requests are JSON")
    return Input()


def _of_file(file_id: str, format_: Format | None) -> Input:
    row = visible_file(file_id)
    if row is None or row.purpose == files.BULK_INPUT:  # which goes with its bulk
        raise invalid("file_id", "there is no such file", "file_not_found")
    form, packed = written_as(format_, (row.filename,))
    return Input(form, packed, file_id=file_id)


def visible_file(file_id: str) -> AnyRow | None:
    """Return a file of this request's owner, None when there is none."""
    if not is_id("file", file_id, "-"):
        return None
    with here().database.reading() as tx:
        try:
            return files.get(tx, g.owner, file_id)
        except NotFound:
            return None


def _of_url(url: str, format_: Format | None) -> Input:
    prefixes = here().settings.input_prefixes
    if not allowed(url, prefixes):
        why = "is not below a prefix that the setting STOKER_INPUT_URLS allows"
        raise invalid("input_url", why if prefixes else f"{why}: it is empty", "input_url_not_allowed")
    form, packed = written_as(format_, (urlsplit(url).path,))
    return Input(form, packed, input_url=url)
