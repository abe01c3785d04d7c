"""Results of a bulk on their way out: pages of rows to JSON Lines, CSV or Parquet, in bounded memory."""

from __future__ import annotations

import csv
import importlib.util
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from flask import Response, request

from models import bulk_results
from models.db import AnyRow
from webapi import result_lines
from webapi.errors import Problem
from webapi.files import paced

TYPES = {
    "jsonl": "application/x-ndjson",
    "csv": "text/csv; charset=utf-8",
    "parquet": "application/vnd.apache.parquet",
}
CONTENT: dict[str, Any] = {
    "content": {
        TYPES["jsonl"]: {"schema": {"type": "string"}},
        "text/csv": {"schema": {"type": "string"}},
        TYPES["parquet"]: {"schema": {"type": "string", "format": "binary"}},
    },
    "headers": {"X-Incomplete": {"schema": {"type": "string", "const": "true"}, "description": "More may come."}},
}

Pages = Iterable[Sequence[AnyRow]]


def check(format_: str) -> None:
    """Raise Problem 501 for a format that cannot be written here."""
    if format_ == "parquet" and importlib.util.find_spec("pyarrow") is None:
        detail = "Parquet needs pyarrow, which this server does not have: install stoker[parquet], or ask for csv."
        raise Problem(501, "parquet_unavailable", detail)


def respond(format_: str, pages: Pages, columns: Sequence[str], name: str, headers: Mapping[str, str]) -> Response:
    """Return an answer that is made while it is sent. `columns` are what the lines of a CSV have of their own."""
    if format_ == "parquet":
        from webapi.result_parquet import parquet

        blocks = parquet(pages, columns)
    else:
        blocks = _csv(pages, columns) if format_ == "csv" else _json_lines(pages)
    # The first block before the answer begins: then it can still say what is wrong.
    first = next(blocks, b"")
    sent = paced(chain([first], blocks), request.environ.get("gunicorn.socket"))
    response = Response(sent, headers=dict(headers))
    response.headers["Content-Type"] = TYPES[format_]
    if format_ != "jsonl":
        response.headers["Content-Disposition"] = f'attachment; filename="{name}.{format_}"'
    return response


def _json_lines(pages: Pages) -> Iterator[bytes]:
    for page in pages:
        yield from bulk_results.in_blocks(map(result_lines.json_line, page))
        del page  # not kept while the next one is read


def _csv(pages: Pages, columns: Sequence[str]) -> Iterator[bytes]:
    """Yield RFC 4180, cells as they are: one that begins like a formula is not changed, only quoted where it must."""
    out = _Cells()
    writer = csv.writer(out)
    writer.writerow(result_lines.header(columns))
    yield out.taken()
    for page in pages:
        for row in page:
            writer.writerow(result_lines.cells(row, columns))
            if out.size >= bulk_results.BLOCK:
                yield out.taken()
        yield out.taken()
        del page


class _Cells:
    """What csv.writer writes to."""

    def __init__(self) -> None:
        self._lines: list[bytes] = []
        self.size = 0

    def write(self, line: str) -> int:
        self._lines.append(line.encode())
        self.size += len(line)
        return len(line)

    def taken(self) -> bytes:
        data = b"".join(self._lines)
        self._lines.clear()
        self.size = 0
        return data
