"""Tags: the pairs of texts in `metadata` columns, by which clients find things again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import sqlalchemy as sa


def tagged(
    tx: sa.Connection, column: sa.ColumnElement[Any], wanted: Mapping[str, str]
) -> Iterator[sa.ColumnElement[bool]]:
    """Yield a condition for each tag; SQLite's JSON paths have no way to write a key with quotes in it."""
    for key, value in wanted.items():
        if tx.dialect.name == "postgresql":
            yield column[key].as_string() == value
        else:
            tag = sa.func.json_each(column).table_valued("key", "value")
            yield sa.exists().where(tag.c.key == key, tag.c.value == value)
