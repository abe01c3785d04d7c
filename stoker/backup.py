"""Backups of the database, taken while the service runs, and the way back.

SQLite is copied by its own online backup; PostgreSQL by its own programs, `pg_dump` and `pg_restore`, which must be on
PATH and not older than the server. A backup is there whole or not at all, readable by its owner alone.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import URL

from models import pooling, restoring, schema
from models.db import Database
from models.errors import StokerError
from models.storage import fsync
from stoker.settings import Settings

_SQLITE = b"SQLite format 3\0"
_POSTGRES = b"PGDMP"


class BackupError(StokerError):
    """A backup cannot be made or restored; the text says what to do."""


def backup(settings: Settings, to: Path) -> int:
    """Write a consistent copy of the database to the file `to`; return its size in bytes. Raises BackupError."""
    url = _direct(settings)
    with _new(to) as part:
        if url.get_backend_name() == "sqlite":
            _copy(_file(url), part)
            _settle(part)
        else:
            _run("pg_dump", url, "--format=custom", "--no-owner", "--no-privileges", f"--file={part}")
    return to.stat().st_size


def restore(settings: Settings, source: Path) -> int:
    """Fill an empty place with a backup, for a service that does not run; return how many batches were under way.

    What was running is queued again, uncharged. Tables of an older version are brought up to this one. Raises
    BackupError, SchemaOutdated and DatabaseUnavailable.
    """
    url = _direct(settings)
    sqlite = url.get_backend_name() == "sqlite"
    _check_kind(source, sqlite=sqlite)
    if not sqlite:
        return _restore_postgres(settings, url, source)
    target = _file(url)
    for file in (target, *(target.with_name(target.name + end) for end in ("-wal", "-shm"))):
        if file.exists():
            raise BackupError(f"{file} exists: stop the service and move it away first; nothing is overwritten")
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _new(target) as part:
        _copy(source, part)
        _settle(part)
        with closing(Database(f"sqlite:///{part}", pool_size=1)) as database:
            return _begin_again(database)


def _direct(settings: Settings) -> URL:
    url, pooled = pooling.direct(settings.database)
    if pooled:
        raise BackupError("backups do not go through PgBouncer: name PostgreSQL itself in STOKER_DATABASE_URL")
    return url


def _begin_again(database: Database) -> int:
    schema.upgrade(database)
    with database.transaction() as tx:
        return restoring.begin_again(tx)


def _restore_postgres(settings: Settings, url: URL, source: Path) -> int:
    with closing(Database(settings.database, pool_size=1)) as database:
        with database.reading() as tx:
            if sa.inspect(tx).get_table_names():
                name = url.render_as_string(hide_password=True)
                raise BackupError(f"{name} is not empty: make a new database (createdb) and name that one")
        options = ("--no-owner", "--no-privileges", "--exit-on-error", "--single-transaction")
        _run("pg_restore", url, *options, str(source))
        returned = _begin_again(database)
        # A dump brings no statistics; without them the first plans are poor.
        with database.engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
            connection.exec_driver_sql("ANALYZE")
    return returned


@contextmanager
def _new(to: Path) -> Iterator[Path]:
    """Yield the name of a new file that gets its place and name only when it is whole, and on disk."""
    if to.exists():
        raise BackupError(f"{to} exists: nothing is overwritten, choose another name")
    part = to.with_name(f".{to.name}.part")
    try:
        part.unlink(missing_ok=True)
        os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        yield part
        fsync(part)
        part.rename(to)
        fsync(to.parent)
    except OSError as error:
        raise BackupError(f"{error.filename or to}: {error.strerror}") from None
    finally:
        for end in ("", "-wal", "-shm", "-journal"):
            part.with_name(part.name + end).unlink(missing_ok=True)


def _file(url: URL) -> Path:
    if not url.database or url.database == ":memory:":
        raise BackupError("this database lies in no file")
    return Path(url.database).absolute()


def _copy(source: Path, to: Path) -> None:
    """Copy a SQLite database as it is at one moment; others may go on writing to it."""
    if not source.is_file():
        raise BackupError(f"there is no database {source}: --data or --database-url say where it is")
    try:
        with closing(sqlite3.connect(source)) as live, closing(sqlite3.connect(to)) as copy:
            # In one step, under one snapshot: a copy by pieces begins anew whenever somebody writes.
            live.backup(copy, pages=-1)
    except sqlite3.Error as error:
        raise BackupError(f"{source} cannot be copied: {error}") from None


def _settle(file: Path) -> None:
    """Make a copy one file without a log beside it, and see that it is sound."""
    try:
        with closing(sqlite3.connect(file)) as copy:
            copy.execute("PRAGMA journal_mode=DELETE")
            (found,) = copy.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.Error as error:
        found = str(error)
    if found != "ok":
        raise BackupError(f"the copy is damaged ({found}): is the disk full, or the database damaged itself?")


def _check_kind(source: Path, *, sqlite: bool) -> None:
    try:
        with source.open("rb") as file:
            head = file.read(len(_SQLITE))
    except OSError as error:
        raise BackupError(f"{source}: {error.strerror}") from None
    wanted, name = (_SQLITE, "SQLite") if sqlite else (_POSTGRES, "PostgreSQL")
    if not head.startswith(wanted):
        raise BackupError(f"{source} is no backup of {name}: restore it into the kind of database that it came from")


def _run(program: str, url: URL, *arguments: str) -> None:
    """Run one of PostgreSQL's programs on a database; the password is on no command line."""
    found = shutil.which(program)
    if found is None:
        raise BackupError(f"{program} is not on PATH: install PostgreSQL's client programs (postgresql-client)")
    secret: Mapping[str, str] = {"PGPASSWORD": str(url.password)} if url.password is not None else {}
    plain = URL.create("postgresql", url.username, None, url.host, url.port, url.database, url.query)
    command = [found, f"--dbname={plain.render_as_string()}", *arguments]
    ran = subprocess.run(command, env={**os.environ, **secret}, capture_output=True, text=True, check=False)
    if ran.returncode != 0:
        raise BackupError(f"{program} failed: {' '.join(ran.stderr.split())[:500]}")
