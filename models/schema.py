"""The whole schema, and the way from an empty or older database to it, while the service runs.

A step is named `0007_since_0005`: it is the seventh, and programs whose newest step is the fifth or a later one work on
it. A step that expands (new tables, columns, indexes) keeps the `since` of the one before it; one that contracts raises
it, in a later version. So a program knows of a step that is newer than itself whether it can live with it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.exc import OperationalError

# Every table is imported, so that `metadata` is whole.
from models import (
    batches,
    bulks,
    deliveries,
    endpoints,
    engines,
    files,
    idempotency,
    jobs,
    keys,
    past_attempts,
    postgres_session,
    queue,
    results,
    samples,
    sweeps,
    usage,
)
from models.db import Database, metadata
from models.errors import StokerError

__all__ = ["SchemaBusy", "SchemaOutdated", "check", "metadata", "upgrade"]

TABLES = (
    batches.table,
    bulks.table,
    deliveries.table,
    deliveries.tries,
    endpoints.table,
    engines.table,
    engines.serving,
    engines.models,
    files.table,
    idempotency.table,
    jobs.table,
    jobs.bodies,
    keys.table,
    past_attempts.table,
    queue.turns,
    queue.collectors,
    results.table,
    samples.table,
    sweeps.table,
    usage.table,
)

_LOCK = 0x570C
STEPS = Path(__file__).parent / "migrations"
"""The folder of alembic's environment; the steps lie in its `versions`."""

LOCK_WAIT = 1.0
"""Seconds that a step waits for a table at a time. Everybody who wants the table meanwhile waits behind it."""
PAUSE = 2.0
PATIENCE = 600.0
"""Seconds after which an upgrade that does not get at a table gives up."""

Say = Callable[[str], object]


class SchemaOutdated(StokerError):
    """The database's tables are not those of this version, nor of a newer one that it can work with."""


class SchemaBusy(StokerError):
    """A step of an upgrade did not get at its table; nothing of it was done, and it may be tried again."""


def _config(connection: sa.Connection, steps: Path = STEPS) -> Config:
    config = Config()
    config.set_main_option("script_location", str(steps))
    config.attributes["connection"] = connection
    return config


def upgrade(database: Database, say: Say = lambda _: None, *, steps: Path = STEPS) -> None:
    """Bring the schema up to this version; nothing happens when it is already, or is a newer one that is compatible.

    The service may run meanwhile. `say` hears when a step has to wait. Raises SchemaBusy when it waits for too long,
    SchemaOutdated when the database is newer than this version can work with.
    """
    if database.pooled:
        _nothing_to_do(database, steps)
        return
    until = time.monotonic() + PATIENCE
    with _alone(database, until):
        while True:
            try:
                if _step(database, steps) is None:
                    return
            except OperationalError as error:
                if not _is_busy(error):
                    raise
                if time.monotonic() > until:
                    raise SchemaBusy(
                        "a table was in use for too long: end the long transaction that `stoker doctor` names, "
                        "then run `stoker db upgrade` again"
                    ) from error
                say("a table is in use by a long transaction; trying again")
                time.sleep(PAUSE)


def _nothing_to_do(database: Database, steps: Path) -> None:
    """Raise SchemaOutdated unless the schema is right: steps need a session of their own, which PgBouncer has not."""
    try:
        check(database, steps=steps)
    except SchemaOutdated as error:
        msg = f"{error}, with STOKER_DATABASE_URL naming PostgreSQL itself: upgrades do not go through PgBouncer"
        raise SchemaOutdated(msg) from None


def _step(database: Database, steps: Path) -> str | None:
    """Take the next step, in a transaction of its own; return it, None when there is none left to take."""
    with _for_a_step(database) as connection:
        config = _config(connection, steps)
        script = ScriptDirectory.from_config(config)
        found = MigrationContext.configure(connection).get_current_revision()
        if found is not None and _known(script, found) is None:
            _check_newer(found, script)
            return None
        later = [step.revision for step in script.iterate_revisions("heads", found or "base")]
        if connection.dialect.name == "postgresql":
            connection.commit()  # alembic begins its own: a step may have to work outside of any
        if not later or later[-1] == found:
            return None
        command.upgrade(config, later[-1])
        return later[-1]


def _known(script: ScriptDirectory, revision: str) -> object | None:
    return next((step for step in script.walk_revisions() if step.revision == revision), None)


@contextmanager
def _alone(database: Database, until: float) -> Iterator[None]:
    """Be the only one that upgrades. On SQLite each step has the write lock anyway."""
    if database.dialect == "sqlite":
        yield
        return
    # Not within a transaction, and not waiting within the server: either would hold up CREATE INDEX CONCURRENTLY.
    with database.engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        while not connection.execute(sa.select(sa.func.pg_try_advisory_lock(_LOCK))).scalar_one():
            if time.monotonic() > until:
                raise SchemaBusy("another upgrade of this database is still at work: wait for its end")
            time.sleep(0.1)
        try:
            yield
        finally:
            # Closed for good: the lock ends with it, also when the connection is lost.
            connection.invalidate()


@contextmanager
def _for_a_step(database: Database) -> Iterator[sa.Connection]:
    if database.dialect == "sqlite":
        with database.engine.begin() as connection:
            yield connection
        return
    with database.engine.connect() as connection:
        # A step that waits for a table keeps everybody from it who comes later: so not for long. It may work for long.
        connection.exec_driver_sql(f"SET lock_timeout = '{LOCK_WAIT:g}s'")
        postgres_session.unlimited(connection)
        connection.commit()
        try:
            yield connection
        finally:
            connection.invalidate()  # nobody else gets it with these times


def _is_busy(error: OperationalError) -> bool:
    """Tell whether a table (PostgreSQL) or the file (SQLite) was locked by others for too long."""
    busy = {"55P03", "40P01", "SQLITE_BUSY"}
    return not busy.isdisjoint({getattr(error.orig, "sqlstate", None), getattr(error.orig, "sqlite_errorname", None)})


def check(database: Database, *, steps: Path = STEPS) -> str | None:
    """Raise SchemaOutdated unless this version works on the database's schema; return it, when it is a newer one."""
    with database.reading() as tx:
        found = MigrationContext.configure(tx).get_current_revision()
        script = ScriptDirectory.from_config(_config(tx, steps))
    wanted = script.get_current_head()
    if found == wanted:
        return None
    if found is None or _known(script, found) is not None:
        msg = f"the database schema is at {found or 'nothing'}, this version needs {wanted}: run `stoker db upgrade`"
        raise SchemaOutdated(msg)
    _check_newer(found, script)
    return found


def _check_newer(found: str, script: ScriptDirectory) -> None:
    """Raise SchemaOutdated unless a step that this version does not know leaves it what it needs."""
    mine = (script.get_current_head() or "").partition("_since_")[0]
    newest, _, since = found.partition("_since_")
    if not (since and since <= mine < newest):
        msg = (
            f"the database schema is at {found}, which a newer version made: this one ends at {mine}, install that one"
        )
        raise SchemaOutdated(msg)
