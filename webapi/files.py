"""`/v1/files`: upload, list, look at, download and delete files, as OpenAI's API has it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from itertools import chain
from socket import socket
from time import monotonic
from typing import Annotated, Any, Literal
from urllib.parse import quote

import msgspec
import sqlalchemy as sa
from flask import Response, g, request
from flask_openapi.blueprint import APIBlueprint
from flask_openapi.models.tag import Tag
from pydantic import BaseModel, Field

from models import files
from models.db import AnyRow, is_id
from models.errors import NotFound
from webapi import access, answers, keyed, uploads
from webapi.context import here, writing
from webapi.errors import FileUnknown, Problem
from webapi.forms import FORM
from webapi.keyed import REPLAYED, Once
from webapi.openai import openai_list, openai_problem, openai_problems
from webapi.schemas import Parameters, ids
from webapi.uploads import Upload

api = APIBlueprint(
    "files",
    __name__,
    url_prefix="/v1/files",
    abp_tags=[Tag(name="files", description="Inputs and outputs of batches, as OpenAI's API has them.")],
    abp_security=[{"key": []}],
    abp_responses=openai_problems(400, 401, 403, 500, 503),
)

PURPOSES = ("batch", "assistants", "fine-tune", "vision", "user_data", "evals")
LISTED = (*PURPOSES, files.BATCH_OUTPUT)
LEAST_SECONDS, MOST_SECONDS = 3600, 2_592_000
DAY = 86400.0
SEND_BLOCK = 65536
SEND_PAUSE = 60.0
"""Seconds that a client may take for a block: one that stops reading would keep a thread for ever."""

UPLOAD = {
    "required": True,
    "content": {
        FORM: {
            "schema": {
                "type": "object",
                "required": ["file", "purpose"],
                "properties": {
                    "file": {"type": "string", "format": "binary", "description": "For batches: a .jsonl file."},
                    "purpose": {"type": "string", "enum": list(PURPOSES)},
                    "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
                    "expires_after[seconds]": {
                        "type": "integer",
                        "minimum": LEAST_SECONDS,
                        "maximum": MOST_SECONDS,
                        "description": "Left out: files of batches expire after STOKER_FILE_DAYS, others never.",
                    },
                },
            }
        }
    },
}
CONTENT = {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}


class StoredFile(BaseModel):
    """A file; times are unix seconds."""

    id: str
    object: Literal["file"]
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: str
    status: Literal["processed"]
    status_details: None


class FileList(BaseModel):
    """A page of files."""

    object: Literal["list"]
    data: list[StoredFile]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileDeleted(BaseModel):
    """A file that is gone."""

    id: str
    object: Literal["file"]
    deleted: Literal[True]


class FilePath(Parameters):
    """Names a file."""

    file_id: str


class FileQuery(Parameters):
    """Which files to list."""

    after: str | None = Field(
        None, description="The id of the last file of the page before.", json_schema_extra=ids("file", "-")
    )
    limit: Annotated[int, Field(ge=1, le=10_000)] = 10_000
    order: Literal["asc", "desc"] = Field("desc", description="By the time of creation.")
    purpose: str | None = Field(None, json_schema_extra={"enum": list(LISTED)})


api.before_request(access.admit)


@api.post(
    "",
    operation_id="createFile",
    request_body=UPLOAD,
    responses={200: StoredFile, **openai_problems(408, 409, 415, 507)},
)
def create() -> Response:
    """Upload a file.

    Streamed to storage, and there as a whole or not at all. With an `Idempotency-Key` header the same upload can be
    sent again without making a second file: it gets the same answer.
    """
    key = keyed.key()
    if request.mimetype != FORM:
        raise openai_problem(415, "unsupported_media_type", f"Send a form: Content-Type {FORM}.")
    with uploads.receive(request, "", here().settings.max_upload_bytes) as upload:
        purpose = _purpose(upload)
        lasts = _lasts(upload.fields, purpose)
        if lasts is not None:
            # Counted from the start of the upload, which is the file's created_at.
            lasts -= monotonic() - upload.began
        once = Once(key, _fingerprint(upload))
        with writing(FileUnknown, patient=True) as tx:
            answer, replayed = once.answer(tx, lambda: _finished(tx, upload, purpose, lasts))
        # A second one is not finished: when this block ends, nothing is left of it.
    return answers.respond(answer, 200, **(REPLAYED if replayed else {}))


def _fingerprint(upload: Upload) -> str:
    same = msgspec.json.encode(["file", upload.sha256, upload.filename, upload.fields], order="deterministic")
    return hashlib.sha256(same).hexdigest()


def _finished(tx: sa.Connection, upload: Upload, purpose: str, lasts: float | None) -> str:
    name, size = upload.filename, upload.size
    row = files.finish(tx, upload.file_id, filename=name, purpose=purpose, size=size, expires_in=lasts)
    return answers.encode(document(row)).decode()


def _purpose(upload: Upload) -> str:
    purpose = upload.fields.get("purpose")
    if purpose is None:
        raise openai_problem(400, "missing_required_parameter", "Missing required parameter: 'purpose'.", "purpose")
    if purpose not in PURPOSES:
        raise _bad("purpose", f"must be one of {_quoted(PURPOSES)}")
    if purpose == "batch" and not upload.filename.lower().endswith(".jsonl"):
        raise openai_problem(400, "invalid_file_format", "A file for batches must be named .jsonl.", "file")
    return purpose


def _lasts(fields: dict[str, str], purpose: str) -> float | None:
    """Return the seconds after which a file expires, if it does."""
    anchor, seconds = fields.get("expires_after[anchor]"), fields.get("expires_after[seconds]")
    if anchor is None and seconds is None:
        return here().settings.file_days * DAY if purpose == "batch" else None
    if anchor is None or seconds is None:
        param = f"expires_after[{'anchor' if anchor is None else 'seconds'}]"
        raise openai_problem(400, "missing_required_parameter", f"Missing required parameter: '{param}'.", param)
    if anchor != "created_at":
        raise _bad("expires_after[anchor]", "must be 'created_at'")
    if not re.fullmatch("[0-9]{4,7}", seconds) or not LEAST_SECONDS <= int(seconds) <= MOST_SECONDS:
        raise _bad("expires_after[seconds]", f"must be an integer from {LEAST_SECONDS} to {MOST_SECONDS}")
    return float(seconds)


def _bad(param: str, message: str) -> Problem:
    return openai_problem(400, "invalid_value", f"{param} {message}.", param)


def _quoted(values: tuple[str, ...]) -> str:
    return ", ".join(f"'{value}'" for value in values)


def document(row: AnyRow) -> dict[str, Any]:
    """Return a file as clients see it."""
    created = int(row.created_at)
    return {
        "id": row.id,
        "object": "file",
        "bytes": row.bytes,
        "created_at": created,
        "expires_at": None if row.expires_at is None else created + round(row.expires_at - row.created_at),
        "filename": row.filename,
        "purpose": row.purpose,
        "status": "processed",
        "status_details": None,
    }


@api.get("", operation_id="listFiles", responses={200: FileList})
def index(query: FileQuery) -> Response:
    """List files, without those that have expired."""
    if query.after is not None and not is_id("file", query.after, "-"):
        raise _bad("after", "must be the id of a file (the last one of the page before)")
    if query.purpose is not None and query.purpose not in LISTED:
        raise _bad("purpose", f"must be one of {_quoted(LISTED)}")
    with here().database.reading() as tx:
        rows, more = files.page(
            tx,
            g.owner,
            purpose=query.purpose,
            after=query.after,
            limit=query.limit,
            newest_first=query.order == "desc",
        )
    return answers.respond(answers.encode(openai_list([document(row) for row in rows], more=more)))


@api.get("/<file_id>", operation_id="getFile", responses={200: StoredFile, **openai_problems(404)})
def show(path: FilePath) -> Response:
    """Look at a file."""
    return answers.respond(answers.encode(document(_find(path.file_id))))


def _find(file_id: str) -> AnyRow:
    _check_id(file_id)
    with here().database.reading() as tx:
        row = files.get(tx, g.owner, file_id)
    if row.purpose == files.BULK_INPUT:
        raise NotFound("file", file_id)
    return row


def _check_id(file_id: str) -> None:
    if not is_id("file", file_id, "-"):
        raise NotFound("file", file_id[:80])


@api.delete("/<file_id>", operation_id="deleteFile", responses={200: FileDeleted, **openai_problems(404)})
def delete(path: FilePath) -> Response:
    """Delete a file."""
    _find(path.file_id)
    with writing(FileUnknown) as tx:
        if not files.delete(tx, path.file_id, owner=g.owner):
            raise NotFound("file", path.file_id)
    return answers.respond(answers.encode({"id": path.file_id, "object": "file", "deleted": True}))


@api.get("/<file_id>/content", operation_id="getFileContent", responses={200: CONTENT, **openai_problems(404)})
def content(path: FilePath) -> Response:
    """Download a file: the exact bytes that were uploaded."""
    row = _find(path.file_id)
    blocks = here().storage.read(row.key)
    # The first block before the answer begins: then it can still say what is wrong.
    first = next(blocks, b"")
    sent = paced(chain([first], blocks), request.environ.get("gunicorn.socket"))
    response = Response(sent, mimetype="application/octet-stream")
    response.content_length = row.bytes
    response.headers["Content-Disposition"] = _attachment(row.filename)
    return response


def _attachment(filename: str) -> str:
    plain = filename.encode("ascii", "replace").decode().replace("\\", "_").replace('"', "_").replace("?", "_")
    if plain == filename:
        return f'attachment; filename="{plain}"'
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(filename, safe='')}"


def paced(blocks: Iterator[bytes], connection: socket | None) -> Iterator[bytes]:
    """Yield bytes in blocks, each of which a client must take within SEND_PAUSE."""
    if connection is not None:
        connection.settimeout(SEND_PAUSE)
    try:
        for block in blocks:
            for at in range(0, len(block), SEND_BLOCK):
                yield block[at : at + SEND_BLOCK]
    finally:
        if connection is not None:
            connection.settimeout(None)
