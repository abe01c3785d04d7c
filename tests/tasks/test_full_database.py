"""A database that is full: outcomes wait and are stored when there is room, and no thread of the tasks ends."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any, cast

import pytest
import sqlalchemy as sa

from models import results
from models.db import Database
from models.ends import Settled
from models.errors import DatabaseUnavailable
from models.results import NewResult
from stoker.settings import Settings
from tasks.doorbell import Doorbell
from tasks.settler import Settler
from tasks.sweeper import sweep_once
from tests.models import given
from tests.tasks.inprocess import Bell, states

BIG = "x" * 20_000


@contextmanager
def full_sqlite(database: Database) -> Iterator[None]:
    """Let the file grow no more."""

    def limit(connection: Any, _record: Any) -> None:
        connection.execute(f"PRAGMA max_page_count={pages}")

    with database.reading() as tx:
        pages = tx.exec_driver_sql("PRAGMA page_count").scalar_one()
    database.close()
    sa.event.listen(database.engine, "connect", limit)
    try:
        yield
    finally:
        sa.event.remove(database.engine, "connect", limit)
        database.close()


@contextmanager
def full_postgres(database: Database) -> Iterator[None]:
    """Let PostgreSQL say that its disk is full whenever a result comes in."""
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql(
            "CREATE FUNCTION trouble() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN RAISE EXCEPTION 'no space left on device' USING ERRCODE = '53100'; END $$"
        )
        connection.exec_driver_sql(
            "CREATE TRIGGER trouble BEFORE INSERT ON results FOR EACH ROW EXECUTE FUNCTION trouble()"
        )
        try:
            yield
        finally:
            connection.exec_driver_sql("DROP FUNCTION trouble CASCADE")


def full(database: Database) -> Any:
    """Return the trouble for this kind of database."""
    return full_postgres(database) if database.dialect == "postgresql" else full_sqlite(database)


def test_outcomes_wait_for_room(database: Database) -> None:
    """None is lost and none is stored twice: the settler tries until they are stored."""
    batch = given.running(database, given.engine(database), 50)
    settler = Settler(database, "engine", lambda _: None, pytest.fail)
    with full(database):
        for job in batch.jobs:
            settler.put(batch.id, Settled(job.id, "succeeded", NewResult(200, BIG)))
        assert not settler.wait(batch.id, timeout=1.0)
        assert states(database) == {"running": 50}
    assert settler.wait(batch.id, timeout=60)
    assert states(database) == {"succeeded": 50}
    assert len(given.rows(database, results.table)) == 50


def test_a_read_only_database_is_an_outage(postgres_database: Database) -> None:
    """After a failover to a standby nothing is called unstorable: it is waited for a server that writes."""
    batch = given.running(postgres_database, given.engine(postgres_database), 1)
    settler = Settler(postgres_database, "engine", lambda _: None, pytest.fail)

    def tell(connection: Any, _record: Any) -> None:
        connection.execute("SET default_transaction_read_only = on")
        connection.commit()

    postgres_database.close()
    sa.event.listen(postgres_database.engine, "connect", tell)
    settler.put(batch.id, Settled(batch.jobs[0].id, "succeeded", NewResult(200, "{}")))
    assert not settler.wait(batch.id, timeout=1.0)
    sa.event.remove(postgres_database.engine, "connect", tell)
    postgres_database.close()
    assert settler.wait(batch.id, timeout=60)
    assert states(postgres_database) == {"succeeded": 1}


def test_a_sweep_of_a_locked_database_is_the_next_ones(sqlite_database: Database, sqlite_url: str) -> None:
    """It fails with the one error that the tasks expect, and the next one does its work."""

    def hasten(connection: Any, _record: Any) -> None:
        connection.execute("PRAGMA busy_timeout=50")

    settings, bell = Settings(database_url=sqlite_url), cast("Doorbell", Bell())
    sa.event.listen(sqlite_database.engine, "connect", hasten)
    with closing(sqlite3.connect(sqlite_database.engine.url.database or "")) as holder:
        holder.isolation_level = None
        holder.execute("BEGIN IMMEDIATE")
        with pytest.raises(DatabaseUnavailable):
            sweep_once(sqlite_database, settings, bell)
        holder.execute("ROLLBACK")
    sweep_once(sqlite_database, settings, bell)
