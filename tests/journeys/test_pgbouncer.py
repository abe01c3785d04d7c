"""PgBouncer in transaction mode: jobs go the whole way through a few sessions that belong to nobody."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy as sa

from models import schema
from models.db import Database
from stoker.backup import BackupError, backup
from stoker.checks_database import database as examined
from stoker.finding import Finding
from stoker.settings import load
from tests import pgbouncer, servers
from tests.journeys.test_faults import Run, words
from tests.models import given

pytestmark = [pytest.mark.journey, pytest.mark.postgres, pytest.mark.timeout(600)]


@pytest.fixture
def name(postgres_server: servers.Postgres) -> Iterator[str]:
    """Return the name of an empty database."""
    postgres_server.create("pooled")
    yield "pooled"
    postgres_server.drop("pooled")


def opened(url: str) -> Database:
    """Open a database."""
    return Database(load(database_url=url).database, pool_size=8)


def found(url: str) -> dict[str, Finding]:
    """Return what `stoker doctor` finds in the database."""
    return {finding.check: finding for finding in examined(load(database_url=url))}


def test_jobs_go_the_whole_way(data: Path, name: str, postgres_server: servers.Postgres) -> None:
    """Six processes on three sessions: every job ends once, a bulk's too, and no session keeps what one was told."""
    with closing(opened(postgres_server.url(name))) as direct:
        schema.upgrade(direct)
    with pgbouncer.pgbouncer(postgres_server, size=3) as pool:
        url = pool.url(name)
        with Run(data, "--engine", "fake", "--database-url", url) as run:
            for lane in ("realtime", "standard", "bulk"):
                run.submit(*words(40), lane=lane)
            bulk = run.client.bulk(words(300, "line"))
            assert run.client.wait_bulk(bulk.id, timeout=120).counts.succeeded == 300
            with run.database.reading() as tx:
                ids = tx.execute(sa.text("SELECT id FROM jobs WHERE bulk_id IS NOT NULL")).scalars().all()
            run.accepted += ids
            assert run.check() == {"succeeded": 420}
            assert found(url)["pgbouncer"].status == "ok"
            sessions = [row for row in pool.shown("SERVERS") if row["database"] == name]
            assert 0 < len(sessions) <= 3


def test_what_it_should_tell_is_told_to_its_operator(name: str, postgres_server: servers.Postgres) -> None:
    """Without `connect_query` the doctor says which settings are missing, and the line that brings them."""
    with pgbouncer.pgbouncer(postgres_server, telling=False) as pool:
        said = found(pool.url(name))["pgbouncer"]
    assert said.status == "warning"
    assert "enable_seqscan" in said.says
    assert "connect_query='SET statement_timeout = ''60s''; " in said.do


def test_upgrades_and_backups_ask_for_postgresql_itself(
    name: str, postgres_server: servers.Postgres, tmp_path: Path
) -> None:
    """They need a session of their own; where there is nothing to upgrade, an upgrade is well."""
    with pgbouncer.pgbouncer(postgres_server) as pool, closing(opened(pool.url(name))) as db:
        with pytest.raises(schema.SchemaOutdated, match="naming PostgreSQL itself"):
            schema.upgrade(db)
        with closing(opened(postgres_server.url(name))) as direct:
            schema.upgrade(direct)
        schema.upgrade(db)
        with pytest.raises(BackupError, match="PgBouncer"):
            backup(load(database_url=pool.url(name)), tmp_path / "dump")


def test_transactions_are_told_apart(name: str, postgres_server: servers.Postgres) -> None:
    """More clients than sessions, statements often enough to be prepared elsewhere: each sees its own transaction."""
    with pgbouncer.pgbouncer(postgres_server, size=2) as pool, closing(opened(pool.url(name))) as db:
        with db.transaction() as tx:
            tx.execute(sa.text("CREATE TABLE counted (n int)"))
            tx.execute(sa.text("INSERT INTO counted VALUES (0)"))

        def count() -> None:
            for _ in range(50):
                with db.transaction() as tx:
                    tx.execute(sa.text("UPDATE counted SET n = n + :one"), {"one": 1})
                with db.reading() as tx:
                    tx.execute(sa.text("SELECT n FROM counted WHERE n > :least"), {"least": 0}).one()

        given.together([count] * 8)
        with db.reading() as tx:
            assert tx.execute(sa.text("SELECT n FROM counted")).scalar_one() == 400
