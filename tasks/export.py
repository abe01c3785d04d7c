"""Export: a batch's output and error file, written page by page in bounded memory; then the bulk's end state.

Each attempt writes files of its own, which nobody sees before the commit that ends the bulk. What a killed attempt
leaves is swept away like any half-made upload.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec
import sqlalchemy as sa

from models import bulk_leases, bulk_results, bulks, files
from models.bulk_leases import Superseded
from models.bulks import BATCH_KIND
from models.db import AnyRow, new_id
from models.errors import NotFound
from models.failpoints import failpoint
from models.files import BATCH_OUTPUT, NewFile
from models.json_text import one_line
from tasks.tending import Tending

_RENEW_EVERY = 2.0
_DAY = 86400.0

NEVER_RAN = {
    "cancelled": ("batch_cancelled", "This request was cancelled before it was answered."),
    "expired": ("batch_expired", "This request could not be executed before the completion window expired."),
}
"""How OpenAI names what became of a line that has no answer."""
_TIMED_OUT = "request_timeout"


@dataclass(frozen=True, slots=True)
class _Written:
    """A file whose bytes are stored."""

    file: NewFile
    name: str
    size: int


def export(tending: Tending, held: AnyRow) -> None:
    """Write a batch's files, and bring a bulk of which every line has ended to its end state."""
    made: dict[str, _Written] = {}
    if held.kind == BATCH_KIND and held.done:
        if held.succeeded:
            made["output_file_id"] = _write(tending, held, ok=True)
        if held.done > held.succeeded:
            made["error_file_id"] = _write(tending, held, ok=False)

    def finish(tx: sa.Connection) -> None:
        ids = {column: _finish(tx, tending, held, written) for column, written in made.items()}
        row = bulk_leases.move(tx, held, tending.me, bulk_leases.outcome(held), **ids)
        bulks.announce(tx, row)

    try:
        failpoint("export.written")
        tending.database.retrying(finish)
        failpoint("export.committed")
    except NotFound:
        # This process was frozen for so long that its files were swept: nothing else would remove what it wrote since.
        for written in made.values():
            tending.storage.delete(written.file.key)
        raise Superseded(held.id) from None
    tending.bell.deliver()


def _finish(tx: sa.Connection, tending: Tending, held: AnyRow, written: _Written) -> str:
    files.finish(
        tx,
        written.file.id,
        filename=written.name,
        purpose=BATCH_OUTPUT,
        size=written.size,
        expires_in=held.output_expires_after or tending.settings.file_days * _DAY,
    )
    return written.file.id


def _write(tending: Tending, held: AnyRow, *, ok: bool) -> _Written:
    with tending.database.transaction() as tx:
        bulk_leases.renew(tx, held, tending.me, tending.lease)
        file = files.begin(tx, held.owner, BATCH_OUTPUT)
    size = 0
    with tending.storage.writer(file.key) as out:
        for block in bulk_results.in_blocks(_lines(tending, held, ok=ok)):
            out.write(block)
            size += len(block)
    return _Written(file, f"batch_{'output' if ok else 'error'}_{held.id.removeprefix('batch_')}.jsonl", size)


def _lines(tending: Tending, held: AnyRow, *, ok: bool) -> Iterator[bytes]:
    renewed = time.monotonic()
    for page in bulk_results.follow(tending.database, held.id, ok=ok):
        for row in page:
            yield output_line(row) if ok else error_line(row)
        if time.monotonic() - renewed > _RENEW_EVERY:
            tending.check()
            with tending.database.transaction() as tx:
                bulk_leases.renew(tx, held, tending.me, tending.lease)
            renewed = time.monotonic()


def output_line(row: AnyRow) -> bytes:
    """Return a line of an output file; the engine's answer goes in as the text that it is."""
    return _line(
        row, {"status_code": row.status, "request_id": new_id("req"), "body": msgspec.Raw(one_line(row.body).encode())}
    )


def error_line(row: AnyRow) -> bytes:
    """Return a line of an error file: the answer of a failed request, or why there was none."""
    if row.error_code in NEVER_RAN:
        code, message = NEVER_RAN[row.error_code]
        return _line(row, None, {"code": code, "message": message})
    if row.error_code == _TIMED_OUT:
        return _line(row, None, {"code": _TIMED_OUT, "message": row.error_message})
    body = msgspec.Raw(one_line(row.body or _error_body(row)).encode())
    return _line(row, {"status_code": row.status, "request_id": new_id("req"), "body": body})


def _error_body(row: AnyRow) -> str:
    kind = "server_error" if row.status >= 500 else "invalid_request_error"  # noqa: PLR2004  # HTTP's server errors
    error = {"message": row.error_message, "type": kind, "param": None, "code": row.error_code}
    return msgspec.json.encode({"error": error}).decode()


def _line(row: AnyRow, response: object, error: object = None) -> bytes:
    line = {"id": new_id("batch_req"), "custom_id": row.custom_id, "response": response, "error": error}
    return msgspec.json.encode(line) + b"\n"
