"""Files: what was uploaded and what was written for download. The bytes lie in storage, under the row's `key`.

```
uploading ──> ready ──> deleted ──> (object removed, then the row)
    └── left by a crash ───┘
```

A row is there before its first byte and visible only when it is `ready`: nothing half-made is ever seen, and no object
is without a row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from models.db import AnyRow, Id, literal, metadata, new_id, now
from models.errors import NotFound

table = sa.Table(
    "files",
    metadata,
    sa.Column("id", Id, primary_key=True),
    sa.Column("owner", sa.String(64), nullable=False),
    sa.Column("purpose", sa.String(32), nullable=False),
    sa.Column("filename", sa.Text, nullable=False),
    sa.Column("bytes", sa.BigInteger, nullable=False),
    sa.Column("key", sa.String(255), nullable=False),
    sa.Column("state", sa.String(16), nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("expires_at", sa.Double),
)

sa.Index("files_owner", table.c.owner, table.c.id)


def _partial(name: str, column: sa.ColumnElement[float], where: str) -> None:
    sa.Index(name, column, sqlite_where=sa.text(where), postgresql_where=sa.text(where))


_partial("files_expiry", table.c.expires_at, "expires_at IS NOT NULL")
_partial("files_leftover", table.c.created_at, "state IN ('deleted', 'uploading')")

BULK_INPUT = "bulk"
"""The purpose of a native bulk's input, which no list of files shows."""
BATCH_OUTPUT = "batch_output"


@dataclass(frozen=True, slots=True)
class NewFile:
    """A file whose bytes are about to be written under `key`."""

    id: str
    key: str


def begin(tx: sa.Connection, owner: str, purpose: str) -> NewFile:
    """Make the row of a file before its first byte; nobody sees it."""
    file_id = new_id("file", "-")
    # Not one folder with a million entries: the last digits of an id are random, the first are its time.
    key = f"{file_id[-2:]}/{file_id}"
    tx.execute(
        sa.insert(table).values(
            id=file_id,
            owner=owner,
            purpose=purpose,
            filename="",
            bytes=0,
            key=key,
            state="uploading",
            created_at=now(),
        )
    )
    return NewFile(file_id, key)


def finish(  # what is known of a file only now
    tx: sa.Connection, file_id: str, *, filename: str, purpose: str, size: int, expires_in: float | None
) -> AnyRow:
    """Make a file visible whose bytes are stored. Raises NotFound when it was swept as a leftover in the meantime."""
    done = (
        sa.update(table)
        .where(table.c.id == file_id, table.c.state == literal("uploading"))
        .values(
            state="ready",
            filename=filename,
            purpose=purpose,
            bytes=size,
            expires_at=None if expires_in is None else now() + expires_in,
        )
        .returning(table)
    )
    row = tx.execute(done).one_or_none()
    if row is None:
        raise NotFound("file", file_id)
    return row


def get(tx: sa.Connection, owner: str, file_id: str, *, in_use: bool = False) -> AnyRow:
    """Return a visible file of this owner; one that is `in_use` also when it was deleted meanwhile. Raises NotFound."""
    shown = (table.c.state != literal("uploading"),) if in_use else _visible()
    row = tx.execute(sa.select(table).where(table.c.id == file_id, table.c.owner == owner, *shown)).one_or_none()
    if row is None:
        raise NotFound("file", file_id)
    return row


def _visible() -> tuple[sa.ColumnElement[bool], ...]:
    return (
        table.c.state == literal("ready"),
        sa.or_(table.c.expires_at.is_(None), table.c.expires_at > now()),
    )


def page(
    tx: sa.Connection, owner: str, *, purpose: str | None, after: str | None, limit: int, newest_first: bool = True
) -> tuple[Sequence[AnyRow], bool]:
    """Return up to `limit` visible files from behind the id `after`, and whether more follow."""
    chosen = sa.select(table).where(table.c.owner == owner, *_visible(), table.c.purpose != BULK_INPUT)
    if purpose is not None:
        chosen = chosen.where(table.c.purpose == purpose)
    if after is not None:
        chosen = chosen.where(table.c.id < after if newest_first else table.c.id > after)
    order = table.c.id.desc() if newest_first else table.c.id
    rows = tx.execute(chosen.order_by(order).limit(limit + 1)).all()
    return rows[:limit], len(rows) > limit


def delete(tx: sa.Connection, file_id: str, *, owner: str | None = None, purpose: str | None = None) -> bool:
    """Hide a file for good; its bytes are removed later. False when there is no such file (of this owner, visible)."""
    mine = [table.c.id == file_id, table.c.state != literal("deleted")]
    if owner is not None:
        mine += [table.c.owner == owner, *_visible()]
    if purpose is not None:
        mine.append(table.c.purpose == purpose)
    return tx.execute(sa.update(table).where(*mine).values(state="deleted")).rowcount == 1


def abandon(tx: sa.Connection, file_id: str) -> bool:
    """Give up a file that was not finished; False when it was. Waits for a COMMIT that is still under way."""
    unfinished = (table.c.id == file_id, table.c.state == literal("uploading"))
    return tx.execute(sa.update(table).where(*unfinished).values(state="deleted")).rowcount == 1


def forget(tx: sa.Connection, ids: Sequence[str]) -> None:
    """Delete the rows of files whose bytes are gone."""
    tx.execute(sa.delete(table).where(table.c.id.in_(list(ids))))
