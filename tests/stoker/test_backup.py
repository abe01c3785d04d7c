"""Backups: whole or not there, of one moment, never over something, and restored only into an empty place."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command

from models import batches, bulks, engines, jobs, schema
from models.bulks import NewBulk
from models.db import Database
from stoker import backup as backups
from stoker.backup import BackupError, backup, restore
from stoker.settings import Settings, load
from tests import servers
from tests.journeys.test_operations import programs
from tests.models import given
from tests.models.test_schema import Add, add, head, steps

__all__ = ["add", "steps"]


@pytest.fixture(autouse=True)
def tools(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the programs of the tests' PostgreSQL on PATH."""
    monkeypatch.setenv("PATH", programs())


@pytest.fixture
def elsewhere(request: pytest.FixtureRequest, database: Database, tmp_path: Path) -> Iterator[Settings]:
    """Return settings that name an empty place of the same kind."""
    if database.dialect == "sqlite":
        yield load(data=tmp_path / "elsewhere")
        return
    server: servers.Postgres = request.getfixturevalue("postgres_server")
    yield load(data=tmp_path / "elsewhere", database_url=server.create("elsewhere"))
    server.drop("elsewhere")


def test_what_was_under_way_begins_again(
    database: Database, settings: Settings, elsewhere: Settings, tmp_path: Path
) -> None:
    """Running and READY jobs are queued again and charged to nobody; no engine is live, no bulk held."""
    mine = given.engine(database)
    given.running(database, mine, 3)
    given.cut(database, given.submitted(database, 2))
    given.submitted(database)
    with database.transaction() as tx:
        row = bulks.create(tx, NewBulk(owner="alice", kind="bulk", lane="bulk"))
        tx.execute(sa.update(bulks.table).where(bulks.table.c.id == row.id).values(holder="x", lease_until=1e12))
    file = tmp_path / "backup"
    assert backup(settings, file) == file.stat().st_size
    assert file.stat().st_mode & 0o077 == 0
    assert restore(elsewhere, file) == 2
    with closing(Database(elsewhere.database)) as restored:
        schema.check(restored)
        assert {(job.state, job.lone_deaths, job.cohort_id) for job in given.rows(restored, jobs.table)} == {
            ("queued", 0, None)
        }
        assert len(given.rows(restored, jobs.table)) == 6
        assert {batch.state for batch in given.rows(restored, batches.table)} == {"returned"}
        assert [engine.state for engine in given.rows(restored, engines.table)] == ["gone"]
        assert [bulk.holder for bulk in given.rows(restored, bulks.table)] == [None]
    assert not list(tmp_path.glob(".backup*"))


def test_nothing_is_overwritten(database: Database, settings: Settings, elsewhere: Settings, tmp_path: Path) -> None:
    """Neither a file by a backup, nor a database by a restore."""
    file = tmp_path / "backup"
    backup(settings, file)
    with pytest.raises(BackupError, match="exists"):
        backup(settings, file)
    restore(elsewhere, file)
    with pytest.raises(BackupError, match=r"exists|not empty"):
        restore(elsewhere, file)


def test_an_older_backup_is_brought_up_to_this_version(tmp_path: Path) -> None:
    """Its tables are upgraded before anything is read of them."""
    with closing(Database(f"sqlite:///{tmp_path / 'old.db'}")) as old, old.engine.begin() as tx:
        command.upgrade(schema._config(tx), "0002")
    backup(load(database_url=f"sqlite:///{tmp_path / 'old.db'}"), tmp_path / "backup")
    restore(load(data=tmp_path / "new"), tmp_path / "backup")
    with closing(Database(load(data=tmp_path / "new").database)) as restored:
        assert schema.check(restored) is None


def test_a_backup_of_the_other_kind_is_refused(settings: Settings, database: Database, tmp_path: Path) -> None:
    """It is named, and so is a file that is no backup, or not there."""
    for content in (b"PGDMP" if database.dialect == "sqlite" else b"SQLite format 3\0", b"hello"):
        (tmp_path / "file").write_bytes(content)
        with pytest.raises(BackupError, match="is no backup of"):
            restore(settings, tmp_path / "file")
    with pytest.raises(BackupError, match="No such file"):
        restore(settings, tmp_path / "none")


def test_a_backup_that_breaks_off_leaves_nothing(
    sqlite_url: str, sqlite_database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No file of its name, whole or half, and none beside it."""

    def full(_path: Path) -> None:
        raise OSError(28, "No space left on device", "disk")

    monkeypatch.setattr(backups, "fsync", full)
    folder = tmp_path / "backups"
    folder.mkdir()
    with pytest.raises(BackupError, match="disk: No space left on device"):
        backup(load(database_url=sqlite_url), folder / "one")
    assert list(folder.iterdir()) == []


def test_a_damaged_database_is_told(tmp_path: Path) -> None:
    """A copy that is not sound is no backup."""
    (tmp_path / "stoker.db").write_bytes(b"SQLite format 3\0" + b"\xff" * 8000)
    with pytest.raises(BackupError, match=r"cannot be copied|damaged"):
        backup(load(data=tmp_path), tmp_path / "backup")
    assert not (tmp_path / "backup").exists()


def test_a_copy_is_of_one_moment(sqlite_url: str, sqlite_database: Database, tmp_path: Path) -> None:
    """While somebody writes all the time: every job has its body, and the copy does not begin anew again and again."""
    over = threading.Event()

    def write() -> None:
        while not over.is_set():
            given.submitted(sqlite_database, 5)

    writer = threading.Thread(target=write)
    given.submitted(sqlite_database, 500, body='{"text": "' + "x" * 5000 + '"}')
    writer.start()
    try:
        backup(load(database_url=sqlite_url), tmp_path / "backup")
    finally:
        over.set()
        writer.join(60)
    with closing(sqlite3.connect(tmp_path / "backup")) as copy:
        (count,) = copy.execute("SELECT count(*) FROM jobs").fetchone()
        assert count >= 500
        assert copy.execute("SELECT count(*) FROM bodies").fetchone() == (count,)
        assert count % 5 == 0
    assert sorted(path.name for path in tmp_path.glob("backup*")) == ["backup"]


def test_a_missing_program_is_named(postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without pg_dump: what to install. One that fails tells why, without the password."""
    settings = load(database_url=postgres_url)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BackupError, match="pg_dump is not on PATH"):
        backup(settings, tmp_path / "backup")
    monkeypatch.setenv("PATH", programs())
    wrong = load(database_url="postgresql://me:tops3cret@127.0.0.1:1/none")
    with pytest.raises(BackupError, match="pg_dump failed") as caught:
        backup(wrong, tmp_path / "backup")
    assert "tops3cret" not in str(caught.value)
    assert list(tmp_path.glob("*backup*")) == []


def test_a_newer_backup_is_refused(
    sqlite_url: str, sqlite_database: Database, steps: Path, add: Add, tmp_path: Path
) -> None:
    """One whose tables this version cannot read makes no database."""
    add(f"{int(head()) + 1:04}", 'op.drop_table("collectors")')
    schema.upgrade(sqlite_database, steps=steps)
    backup(load(database_url=sqlite_url), tmp_path / "backup")
    with pytest.raises(schema.SchemaOutdated, match="a newer version"):
        restore(load(data=tmp_path / "new"), tmp_path / "backup")
    assert list((tmp_path / "new").iterdir()) == []
