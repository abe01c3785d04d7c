"""Request bodies that are files, raw or as one part of a form: streamed into storage, never whole in memory.

A file's row is there before its first byte, and the caller makes it visible, in the transaction that the file belongs
to. Whatever goes wrong before that: nothing is visible, and nothing stays.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import BoundedSemaphore

import structlog
from flask import Request, g
from gunicorn.http.errors import ParseException  # type: ignore[import-untyped]
from werkzeug.exceptions import ClientDisconnected

from models import files
from models.errors import StokerError
from models.failpoints import failpoint
from models.files import NewFile
from webapi import forms
from webapi.caller import fitting
from webapi.context import Context, here
from webapi.errors import Problem, is_openai
from webapi.forms import FORM, Form
from webapi.json_body import patience

log = structlog.get_logger("stoker.web")

BLOCK = 256 * 1024
PAUSE = 30.0
SPARE = 2 * forms.MOST_MEMORY
"""What a form may be larger than its file."""
MOST_NAME = 255
MOST_ENDING = 20

_BOUNDARY = re.compile(r"[\x20-\x7e]{1,200}")


@dataclass(frozen=True, slots=True)
class Upload:
    """A file that is stored and not yet visible; `fields` are the other parts of the form that it came in."""

    file_id: str
    key: str
    filename: str
    size: int
    sha256: str
    content_type: str
    fields: dict[str, str]
    began: float
    """When its row was made, by the monotonic clock."""


@contextmanager
def receive(request: Request, purpose: str, limit: int) -> Iterator[Upload]:
    """Store a request's body, or the part `file` of its form, and yield it: `files.finish` is the caller's to call.

    When the block fails, or does not finish the file, nothing is left of it. Raises Problem, StorageFull and
    StorageUnavailable.
    """
    context = here()
    limit = fitting(limit, "file_bytes")
    with _place(context.uploads):
        yield from _received(context, request, purpose, limit)


@contextmanager
def _place(places: BoundedSemaphore) -> Iterator[None]:
    """Take one of the places for uploads: each holds a thread and buffers. Raises Problem 503."""
    if not places.acquire(blocking=False):
        detail = "This process takes as many uploads as it may already (STOKER_MAX_UPLOADS); try again soon."
        raise Problem(503, "too_many_uploads", detail, headers={"Retry-After": "2"})
    try:
        yield
    finally:
        places.release()


def _received(context: Context, request: Request, purpose: str, limit: int) -> Iterator[Upload]:
    body = _Body(request, limit)
    boundary = _boundary(request)
    with context.database.transaction() as tx:
        new = files.begin(tx, g.owner, purpose)
    began = time.monotonic()
    try:
        with context.storage.writer(new.key) as out, body.in_time(context.settings.upload_timeout):
            sink = _Sink(out.write, limit)
            form = _raw(body, request, sink) if boundary is None else forms.read(body, boundary, sink.take)
        failpoint("upload.stored")
        yield Upload(
            file_id=new.id,
            key=new.key,
            filename=base_name(form.filename),
            size=sink.size,
            sha256=sink.digest.hexdigest(),
            content_type=form.content_type,
            fields=form.fields,
            began=began,
        )
    finally:
        _abandon(new)


@contextmanager
def kept(data: bytes, purpose: str, filename: str) -> Iterator[Upload]:
    """Store bytes that came in another way, and yield the file as `receive` does."""
    context, began = here(), time.monotonic()
    with context.database.transaction() as tx:
        new = files.begin(tx, g.owner, purpose)
    try:
        with context.storage.writer(new.key) as out:
            out.write(data)
        digest = hashlib.sha256(data).hexdigest()
        yield Upload(new.id, new.key, filename, len(data), digest, "", {}, began)
    finally:
        _abandon(new)


def base_name(sent: str) -> str:
    """Return the name of a file without folders, control characters and excess, its ending kept."""
    name = "".join(sign for sign in re.split(r"[/\\]", sent)[-1] if sign.isprintable()).strip()
    if len(name) > MOST_NAME:
        ending = "." + name.rpartition(".")[2]
        kept = ending if len(ending) <= MOST_ENDING else ""
        name = name[: MOST_NAME - len(kept)] + kept
    return name if name.strip(".") else "upload"


def _abandon(new: NewFile) -> None:
    """Remove what was not finished; what cannot be removed now, retention removes later."""
    try:
        with here().database.transaction() as tx:
            unfinished = files.abandon(tx, new.id)
        if unfinished:
            here().storage.delete(new.key)
    except StokerError as error:
        log.warning("an upload is left behind", file_id=new.id, reason=str(error), request_id=g.get("request_id"))


def _boundary(request: Request) -> str | None:
    """Return what separates the parts of a form; None when the body is no form."""
    if request.mimetype != FORM:
        return None
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise Problem(415, "unsupported_media_type", "Send the form as it is, without a Content-Encoding.")
    boundary = request.mimetype_params.get("boundary", "")
    if not _BOUNDARY.fullmatch(boundary):
        raise Problem(400, "malformed_body", f"The Content-Type {FORM} has no boundary, or a strange one.")
    return boundary


def _raw(body: _Body, request: Request, sink: _Sink) -> Form:
    for data in body:
        sink.take(data)
    return Form(content_type=request.mimetype)


def _too_large(limit: int) -> Problem:
    detail = f"The file is larger than the {limit} bytes that this server takes."
    return Problem(400 if is_openai() else 413, "file_too_large", detail, param=forms.PART)


class _Sink:
    """Where a file's bytes go: counted, hashed, and on to storage."""

    def __init__(self, write: Callable[[bytes], None], limit: int) -> None:
        self._write = write
        self._limit = limit
        self.size = 0
        self.digest = hashlib.sha256()

    def take(self, data: bytes) -> None:
        """Take the next bytes. Raises Problem when they are too many."""
        self.size += len(data)
        if self.size > self._limit:
            raise _too_large(self._limit)
        self.digest.update(data)
        self._write(data)
        failpoint("upload.receiving")


class _Body:
    """The bytes of a request, with a limit on their number, on each pause and on their time altogether."""

    def __init__(self, request: Request, limit: int) -> None:
        self._environ = request.environ
        self._announced = request.content_length
        self._limit = limit
        self._most = limit + SPARE if request.mimetype == FORM else limit
        self._whole = self._until = 0.0
        if (self._announced or 0) > self._most:
            raise _too_large(limit)

    @contextmanager
    def in_time(self, seconds: float) -> Iterator[None]:
        """Give the body so many seconds altogether."""
        self._whole = seconds
        self._until = time.monotonic() + seconds
        with patience(self._environ, PAUSE, seconds):
            yield

    def __iter__(self) -> Iterator[bytes]:
        read = 0
        while self._announced is None or read < self._announced:
            data = self._read(BLOCK if self._announced is None else min(BLOCK, self._announced - read))
            if not data and self._announced is None:
                return
            if not data or time.monotonic() >= self._until:
                raise self._incomplete()
            read += len(data)
            if read > self._most:
                raise _too_large(self._limit)
            yield data

    def _read(self, most: int) -> bytes:
        try:
            return bytes(self._environ["wsgi.input"].read(most))
        except (ClientDisconnected, OSError):
            raise self._incomplete() from None
        except ParseException:
            if time.monotonic() >= self._until:
                raise self._incomplete() from None  # cut between two chunks, which reads like a bad one
            raise Problem(400, "malformed_body", "The chunks of the body are not framed as HTTP/1.1 says.") from None

    def _incomplete(self) -> Problem:
        detail = f"The body ended early, stopped coming for {PAUSE:g} s, or took more than {self._whole:g} s."
        return Problem(408, "body_incomplete", detail)
