"""Results of a bulk as Parquet: row group by row group, to wherever only appending is possible. Needs pyarrow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa
from pyarrow import parquet as pq

from models.db import AnyRow
from webapi import result_lines

GROUP_ROWS = 5_000
GROUP_BYTES = 4_000_000
_NUMBERS = frozenset({"line", "prompt_tokens", "completion_tokens"})
_MORE = ("seq", "job_id", "engine", "attempts", "finished_at", "result")


def parquet(pages: Iterable[Sequence[AnyRow]], columns: Sequence[str]) -> Iterator[bytes]:
    """Yield a Parquet file: the columns of a table, then `seq` and others, `result` as JSON text."""
    schema = _schema(columns)
    out = _Out()
    with pq.ParquetWriter(out, schema, compression="zstd") as writer:
        for group in _groups(pages):
            writer.write_table(_table(group, columns, schema))
            yield out.taken()
    yield out.taken()


def _schema(columns: Sequence[str]) -> pa.Schema:
    named = [(name, pa.int64() if name in _NUMBERS else pa.string()) for name in result_lines.BEFORE]
    named += [(name, pa.string()) for name in result_lines.own_names(columns, _MORE)]
    named += [(name, pa.int64() if name in _NUMBERS else pa.string()) for name in result_lines.AFTER]
    kinds = {"seq": pa.int64(), "attempts": pa.int64(), "finished_at": pa.float64()}
    return pa.schema([*named, *((name, kinds.get(name, pa.string())) for name in _MORE)])


def _groups(pages: Iterable[Sequence[AnyRow]]) -> Iterator[list[AnyRow]]:
    group: list[AnyRow] = []
    size = 0
    for page in pages:
        group += page
        size += sum(len(row.body or "") + len(row.request or "") for row in page)
        if len(group) >= GROUP_ROWS or size >= GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _table(rows: Sequence[AnyRow], columns: Sequence[str], schema: pa.Schema) -> pa.Table:
    cells = [[*result_lines.cells(row, columns), *_more(row)] for row in rows]
    return pa.Table.from_arrays(
        [pa.array(values, field.type) for field, values in zip(schema, zip(*cells, strict=True), strict=True)],
        schema=schema,
    )


def _more(row: AnyRow) -> list[Any]:
    ok = result_lines.state_of(row) == "succeeded"
    finished_at = row.finished_at or row.created_at
    job_id, body = result_lines.job_id_of(row), row.body if ok else None
    return [row.seq, job_id, row.engine_id, row.attempts or 0, finished_at, body]


class _Out:
    """A file that can only be appended to, and whose bytes are taken away as they come."""

    closed = False

    def __init__(self) -> None:
        self._blocks: list[bytes] = []

    def write(self, data: Any) -> int:
        self._blocks.append(bytes(data))
        return len(self._blocks[-1])

    def flush(self) -> None:
        """Have nothing to do."""

    def close(self) -> None:
        """Have nothing to do."""

    def taken(self) -> bytes:
        data = b"".join(self._blocks)
        self._blocks.clear()
        return data
