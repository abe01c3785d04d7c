"""The whole schema, and the way from an empty or older database to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

# Every table is imported, so that `metadata` is whole.
from models import batches, bulks, deliveries, engines, files, idempotency, jobs, keys, queue, results, sweeps
from models.db import Database, metadata
from models.errors import StokerError

__all__ = ["SchemaOutdated", "check", "metadata", "upgrade"]

TABLES = (
    batches.table,
    bulks.table,
    deliveries.table,
    engines.table,
    engines.serving,
    engines.models,
    files.table,
    idempotency.table,
    jobs.table,
    jobs.bodies,
    keys.table,
    queue.turns,
    queue.collectors,
    results.table,
    sweeps.table,
)

_LOCK = 0x570C


class SchemaOutdated(StokerError):
    """The database's tables are not those of this version."""


def _config(connection: sa.Connection) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    return config


@contextmanager
def _alone(database: Database) -> Iterator[sa.Connection]:
    """Hold the database for one migration: of several processes that start at once, the others wait."""
    with database.engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
            connection.exec_driver_sql("SET LOCAL lock_timeout = 0")
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
        yield connection


def upgrade(database: Database) -> None:
    """Bring the schema up to this version; nothing happens when it is already."""
    with _alone(database) as connection:
        command.upgrade(_config(connection), "head")


def check(database: Database) -> None:
    """Raise SchemaOutdated unless the database's schema is that of this version."""
    with database.reading() as tx:
        found = MigrationContext.configure(tx).get_current_revision()
        wanted = ScriptDirectory.from_config(_config(tx)).get_current_head()
    if found != wanted:
        msg = f"the database schema is at {found or 'nothing'}, this version needs {wanted}: run `stoker db upgrade`"
        raise SchemaOutdated(msg)
