"""A database that takes what it is asked and never answers: nobody waits for ever."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from models.db import Database
from models.errors import DatabaseUnavailable
from models.silence import at_most
from stoker.settings import load
from tests.chaos.proxy import Proxy
from tests.servers import Postgres


@pytest.fixture
def edge(postgres_server: Postgres, postgres_url: str) -> Iterator[Proxy]:
    """Return a proxy before the migrated database."""
    with Proxy(postgres_server.port) as proxy:
        yield proxy


@pytest.fixture
def database(edge: Proxy, postgres_server: Postgres, postgres_url: str) -> Iterator[Database]:
    """Return the database behind it, of which nobody waits for longer than three seconds for an answer."""
    url = postgres_url.replace(f":{postgres_server.port}/", f":{edge.port}/")
    made = Database(load(database_url=url).database, silence=3.0)
    yield made
    made.close()


def ask(database: Database) -> int:
    """Ask something."""
    with database.transaction() as tx:
        return int(tx.execute(sa.text("SELECT 1")).scalar_one())


@pytest.mark.postgres
def test_a_silent_database_counts_as_away(database: Database, edge: Proxy) -> None:
    """The statement is given up, its connection with it, and the next one has a new connection."""
    assert ask(database) == 1
    edge.be("half_open")
    started = time.monotonic()
    with pytest.raises(DatabaseUnavailable, match="has not answered for 3 s"):
        ask(database)
    assert time.monotonic() - started >= 3
    edge.heal()
    assert ask(database) == 1


@pytest.mark.postgres
def test_a_commit_that_is_not_answered_counts_as_away(database: Database, edge: Proxy) -> None:
    """Nor is the answer to a COMMIT waited for, or to the ROLLBACK after it."""
    with pytest.raises(DatabaseUnavailable), database.transaction() as tx:  # noqa: PT012  # the COMMIT is inside
        tx.execute(sa.text("SELECT 1"))
        edge.be("half_open")


@pytest.mark.postgres
def test_what_takes_long_and_is_answered_is_let_be(postgres_server: Postgres, postgres_url: str) -> None:
    """Without a limit, as for migrations, a statement takes its time; a thread can have a limit of its own."""
    database = Database(load(database_url=postgres_url).database)
    with database.transaction() as tx:
        tx.execute(sa.text("SELECT pg_sleep(1.5)"))
    with pytest.raises(DatabaseUnavailable), at_most(0.5), database.transaction() as tx:
        tx.execute(sa.text("SELECT pg_sleep(30)"))
    database.close()
