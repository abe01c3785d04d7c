"""The rows of files: invisible before the last byte, gone for everybody when deleted or expired."""

from __future__ import annotations

import time

import pytest

from models import files
from models.db import Database
from models.errors import NotFound
from tests.models import given


def stored(database: Database, owner: str = "alice", purpose: str = "batch", expires_in: float | None = None) -> str:
    """Store a file, and return its id."""
    with database.transaction() as tx:
        new = files.begin(tx, owner, purpose)
        files.finish(tx, new.id, filename="a.jsonl", purpose=purpose, size=7, expires_in=expires_in)
    return new.id


def listed(database: Database, owner: str = "alice", **more: object) -> list[str]:
    """Return the ids of the files of an owner."""
    wanted = {"purpose": None, "after": None, "limit": 100, **more}
    with database.reading() as tx:
        rows, _ = files.page(tx, owner, **wanted)  # type: ignore[arg-type]  # a test's own
    return [row.id for row in rows]


def test_a_file_is_not_visible_before_its_end(database: Database) -> None:
    """Not even to its owner; it is finished once."""
    with database.transaction() as tx:
        new = files.begin(tx, "alice", "")
        with pytest.raises(NotFound):
            files.get(tx, "alice", new.id)
    assert listed(database) == []
    with database.transaction() as tx:
        made = files.finish(tx, new.id, filename="a.jsonl", purpose="batch", size=7, expires_in=60)
        assert (made.key, made.owner, made.bytes, made.purpose) == (new.key, "alice", 7, "batch")
        assert made.expires_at - made.created_at == pytest.approx(60, abs=5)
        assert files.get(tx, "alice", new.id) == made
        with pytest.raises(NotFound):
            files.finish(tx, new.id, filename="b", purpose="batch", size=8, expires_in=None)


def test_an_upload_that_was_swept_cannot_be_finished(database: Database) -> None:
    """Its bytes may be gone."""
    with database.transaction() as tx:
        new = files.begin(tx, "alice", "")
        assert files.delete(tx, new.id)
        with pytest.raises(NotFound):
            files.finish(tx, new.id, filename="a", purpose="batch", size=7, expires_in=None)


def test_keys_are_spread_over_folders(database: Database) -> None:
    """Each is of its own, in one of 256 folders."""
    with database.transaction() as tx:
        keys = {files.begin(tx, "alice", "").key for _ in range(100)}
    assert len(keys) == 100
    assert all(len(key.split("/")[0]) == 2 for key in keys)
    assert len({key.split("/")[0] for key in keys}) > 20


def test_a_file_belongs_to_its_owner(database: Database) -> None:
    """Others neither find nor delete it."""
    file_id = stored(database)
    with database.transaction() as tx:
        with pytest.raises(NotFound):
            files.get(tx, "bob", file_id)
        assert not files.delete(tx, file_id, owner="bob")
    assert listed(database, "bob") == []
    assert listed(database) == [file_id]


def test_deleted_and_expired_files_are_gone(database: Database) -> None:
    """Nobody deletes them again."""
    deleted, expired = stored(database), stored(database, expires_in=60)
    given.change(database, files.table, expires_at=time.time() - 1)
    with database.transaction() as tx:
        assert not files.delete(tx, expired, owner="alice")
    given.change(database, files.table, expires_at=None)
    with database.transaction() as tx:
        assert files.delete(tx, deleted, owner="alice")
        assert not files.delete(tx, deleted, owner="alice")
        with pytest.raises(NotFound):
            files.get(tx, "alice", deleted)
    assert listed(database) == [expired]


def test_pages_go_both_ways(database: Database) -> None:
    """From behind any id, of one purpose or of all; the inputs of bulks are in none."""
    ids = [stored(database, purpose="batch" if n % 2 else "evals") for n in range(6)]
    stored(database, purpose=files.BULK_INPUT)
    assert listed(database) == ids[::-1]
    assert listed(database, newest_first=False, after=ids[2]) == ids[3:]
    assert listed(database, after=ids[2]) == ids[1::-1]
    assert listed(database, purpose="evals", newest_first=False) == ids[::2]
    with database.reading() as tx:
        for limit, more in ((5, True), (6, False)):
            rows, found = files.page(tx, "alice", purpose=None, after=None, limit=limit)
            assert (len(rows), found) == (limit, more)


def test_forgotten_files_leave_no_row(database: Database) -> None:
    """Once their bytes are gone."""
    ids = [stored(database) for _ in range(3)]
    with database.transaction() as tx:
        files.forget(tx, ids[:2])
    assert [row.id for row in given.rows(database, files.table)] == ids[2:]
