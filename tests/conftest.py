"""What every test may ask for: migrated empty databases, Redis, settings.

A test that asks for `database` (or `database_url`, or `settings`) runs on SQLite and on PostgreSQL. A missing
server fails the run: nothing is skipped.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import psycopg
import pytest
from psycopg import sql

from models import schema
from models.db import Database
from stoker import settings as stoker_settings
from tests import servers

COUNTED = ("sqlite", "postgres", "redis", "vllm", "journey")
SECRET_KEY = "dGhlIGtleSBvZiBhbGwgdGVzdHMsIG5vIHNlY3JldCE="
"""What the tests' servers seal secrets with."""
_SERVER_OF = {"sqlite_url": "sqlite", "postgres_url": "postgres", "redis_url": "redis"}

hypothesis.settings.register_profile("stoker", deadline=None, max_examples=50, print_blob=True)
hypothesis.settings.load_profile("stoker")


def pytest_configure(config: pytest.Config) -> None:
    """Make the tests, and the processes that they start, independent of the settings of whoever runs them."""
    for name in [name for name in os.environ if name.startswith(("STOKER_", "OTEL_"))]:
        del os.environ[name]
    # A shell starts what runs in the background with Ctrl-C ignored, and every process would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # So does nohup with a hang-up.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests by the servers that their fixtures need; `database_url` carries its marks itself."""
    for item in items:
        for fixture in _SERVER_OF.keys() & set(getattr(item, "fixturenames", ())):
            item.add_marker(_SERVER_OF[fixture])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many tests ran on what, and what chaos came to."""
    ran = [*terminalreporter.stats.get("passed", ()), *terminalreporter.stats.get("failed", ())]
    counts = Counter(mark for report in ran if report.when == "call" for mark in COUNTED if mark in report.keywords)
    counted = ", ".join(f"{mark} {counts[mark]}" for mark in COUNTED)
    terminalreporter.write_sep("=", f"tests that ran on: {counted}")
    for told in (text for report in ran if report.when == "call" for name, text in report.user_properties):
        terminalreporter.write_line(str(told))


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[servers.Postgres]:
    """Run a PostgreSQL server for the whole session; a test that breaks its server starts one of its own."""
    with servers.postgres() as server:
        yield server


@pytest.fixture(scope="session")
def redis_server() -> Iterator[servers.Redis]:
    """Run a Redis server for the whole session; a test that breaks its server starts one of its own."""
    with servers.redis() as server:
        yield server


@pytest.fixture(scope="session")
def migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the file of a migrated empty SQLite database, to be copied."""
    path = tmp_path_factory.mktemp("migrated") / "stoker.db"
    database = Database(f"sqlite:///{path}")
    schema.upgrade(database)
    database.close()
    return path


@pytest.fixture(scope="session")
def migrated_postgres(postgres_server: servers.Postgres) -> Iterator[psycopg.Connection]:
    """Return a connection to the one migrated PostgreSQL database, which is emptied between tests.

    Measured: emptying takes 1 to 4 ms, a copy of a template database and its removal 60 to 100 ms.
    """
    url = postgres_server.create("stoker")
    database = Database(stoker_settings.load(database_url=url).database)
    schema.upgrade(database)
    database.close()
    with psycopg.connect(url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def sqlite_url(tmp_path: Path, migrated_sqlite: Path) -> str:
    """Return the URL of a migrated empty SQLite database."""
    path = tmp_path / "stoker.db"
    shutil.copy(migrated_sqlite, path)
    return f"sqlite:///{path}"


@pytest.fixture
def postgres_url(postgres_server: servers.Postgres, migrated_postgres: psycopg.Connection) -> str:
    """Return the URL of the migrated PostgreSQL database, emptied; what a test left connected is cut off."""
    migrated_postgres.execute(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    for table in schema.TABLES:
        migrated_postgres.execute(sql.SQL("DELETE FROM {}").format(sql.Identifier(table.name)))
    return postgres_server.url("stoker")


@pytest.fixture
def sqlite_database(sqlite_url: str) -> Iterator[Database]:
    """Return a migrated empty SQLite database."""
    yield from _opened(sqlite_url)


@pytest.fixture
def postgres_database(postgres_url: str) -> Iterator[Database]:
    """Return a migrated empty PostgreSQL database."""
    yield from _opened(postgres_url)


@pytest.fixture(
    params=[
        pytest.param("sqlite", marks=pytest.mark.sqlite),
        pytest.param("postgres", marks=pytest.mark.postgres),
    ]
)
def database_url(request: pytest.FixtureRequest) -> str:
    """Return the URL of a migrated empty database, of each kind in turn."""
    return str(request.getfixturevalue(f"{request.param}_url"))


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """Return a migrated empty database, of each kind in turn."""
    yield from _opened(database_url)


@pytest.fixture
def redis_url(redis_server: servers.Redis) -> str:
    """Return the URL of an empty Redis."""
    redis_server.flush()
    return redis_server.url


@pytest.fixture
def settings(tmp_path: Path, database_url: str, redis_url: str) -> stoker_settings.Settings:
    """Return settings with the fake engine, on the databases of the test."""
    return stoker_settings.load(
        data=tmp_path / "data",
        database_url=database_url,
        redis_url=redis_url,
        engine="fake",
        engine_name="engine",
        model_name="fake",
        secret_key=SECRET_KEY,
    )


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a crowd wait for the database: on a slow machine its last would be refused, after two seconds."""
    monkeypatch.setattr("webapi.context.PATIENCE", 60.0)


def _opened(url: str) -> Iterator[Database]:
    database = Database(stoker_settings.load(database_url=url).database)
    yield database
    database.close()
