"""A database that is full, slow or refuses: every call that stores answers 503, keeps nothing, and works afterwards."""

from __future__ import annotations

import io
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from models import bulks, engines, files, idempotency, jobs
from models.db import Database
from stoker.settings import Settings
from tests.webapi.bulk_kit import LINES, prompts, requests
from webapi.context import Context

Trouble = Callable[[Context], AbstractContextManager[None]]
CHAT = {"model": "fake", "messages": [{"role": "user", "content": "hi"}]}
BIG = "x" * 300_000
TAGS = {f"k{nth}": "x" * 500 for nth in range(16)}
"""Rows with these, or with a body of that size, need pages of their own."""
KEY = {"Idempotency-Key": "once"}


_IN_QUERY = {f"metadata.{name}": text for name, text in TAGS.items()}


def _job(client: FlaskClient) -> TestResponse:
    return client.post("/v1/jobs", json={"prompt": BIG}, headers=KEY)


def _bulk(client: FlaskClient) -> TestResponse:
    return client.post("/v1/bulks", data=prompts(1), content_type=LINES, headers=KEY, query_string=_IN_QUERY)


def _requests(client: FlaskClient) -> TestResponse:
    return client.post("/v1/bulks", json={"requests": [{"prompt": "hi"}], "metadata": TAGS}, headers=KEY)


def _file(client: FlaskClient) -> TestResponse:
    return client.post("/v1/files", data={"purpose": "batch", "file": (io.BytesIO(requests(1)), "in.jsonl")})


def _batch(client: FlaskClient) -> TestResponse:
    body = {"input_file_id": "file-x", "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    return client.post("/v1/batches", json=body | {"metadata": TAGS}, headers=KEY)


def _chat(client: FlaskClient) -> TestResponse:
    return client.post("/v1/chat/completions", json=CHAT | {"user": BIG})


def _response(client: FlaskClient) -> TestResponse:
    return client.post("/v1/responses", json={"model": "fake", "input": BIG, "background": True})


CALLS = {call.__name__: call for call in (_job, _bulk, _requests, _file, _batch, _chat, _response)}


@contextmanager
def _failing(context: Context, sqlstate: str, *, at_commit: bool = False) -> Iterator[None]:
    """Let PostgreSQL fail with an error of its own whenever a row comes in, or at the COMMIT of one."""
    tables = ("jobs", "bulks", "files")
    kind = ("CONSTRAINT TRIGGER", "AFTER", "DEFERRABLE INITIALLY DEFERRED")
    made, when, how = kind if at_commit else ("TRIGGER", "BEFORE", "")
    with _admin(context) as connection:
        connection.execute(
            "CREATE FUNCTION trouble() RETURNS trigger LANGUAGE plpgsql AS"
            f" $$ BEGIN RAISE EXCEPTION 'trouble' USING ERRCODE = '{sqlstate}'; END $$"
        )
        for table in tables:
            connection.execute(
                f"CREATE {made} trouble {when} INSERT ON {table} {how} FOR EACH ROW EXECUTE FUNCTION trouble()"
            )
        try:
            yield
        finally:
            connection.execute("DROP FUNCTION trouble CASCADE")


@contextmanager
def _admin(context: Context) -> Iterator[psycopg.Connection[Any]]:
    url = context.settings.database.replace("+psycopg", "")
    with psycopg.connect(url, autocommit=True) as connection:
        yield connection


@contextmanager
def _locked_tables(context: Context) -> Iterator[None]:
    """Hold what every write needs, so that it runs into a time limit."""
    with _limited(context, "SET statement_timeout = 200"), _admin(context) as connection, connection.transaction():
        connection.execute("LOCK TABLE jobs, bulks, files IN SHARE MODE")
        yield


@contextmanager
def _limited(context: Context, statement: str) -> Iterator[None]:
    """Tell each new connection of the application something first."""

    def tell(connection: Any, _record: Any) -> None:
        with closing(connection.cursor()) as cursor:
            cursor.execute(statement)
        if isinstance(connection, psycopg.Connection):
            connection.commit()

    context.database.close()
    sa.event.listen(context.database.engine, "connect", tell)
    try:
        yield
    finally:
        sa.event.remove(context.database.engine, "connect", tell)
        context.database.close()


@contextmanager
def _full_sqlite(context: Context) -> Iterator[None]:
    """Let the database file grow no more, and fill what is free in it."""
    with context.database.transaction() as tx:
        tx.exec_driver_sql("CREATE TABLE filler (x)")
        pages = tx.exec_driver_sql("PRAGMA page_count").scalar_one()
    with _limited(context, f"PRAGMA max_page_count={pages}"):
        with closing(sqlite3.connect(context.database.engine.url.database or "")) as filler:
            filler.execute(f"PRAGMA max_page_count={pages}")
            try:
                while True:
                    filler.execute("INSERT INTO filler VALUES (zeroblob(500))")
                    filler.commit()
            except sqlite3.OperationalError as error:
                assert error.sqlite_errorname == "SQLITE_FULL"  # noqa: PT017  # it ends the loop
        yield
    with context.database.transaction() as tx:
        tx.exec_driver_sql("DROP TABLE filler")


@contextmanager
def _locked_sqlite(context: Context) -> Iterator[None]:
    """Hold SQLite's write lock for longer than anybody waits."""
    with (
        _limited(context, "PRAGMA busy_timeout=50"),
        closing(sqlite3.connect(context.database.engine.url.database)) as c,
    ):
        c.isolation_level = None
        c.execute("BEGIN IMMEDIATE")
        yield
        c.execute("ROLLBACK")


POSTGRES: dict[str, Trouble] = {
    "disk full": lambda context: _failing(context, "53100"),
    "disk full at COMMIT": lambda context: _failing(context, "53100", at_commit=True),
    "out of memory": lambda context: _failing(context, "53200"),
    "broken disk": lambda context: _failing(context, "58030"),
    "shutting down": lambda context: _failing(context, "57P01"),
    "read only": lambda context: _limited(context, "SET default_transaction_read_only = on"),
    "slow": _locked_tables,
}
SQLITE: dict[str, Trouble] = {"disk full": _full_sqlite, "locked": _locked_sqlite}


@pytest.fixture
def known(database: Database) -> None:
    """Make the model known."""
    with database.transaction() as tx:
        engines.remember(tx, "fake", None, None)


def _stored(database: Database) -> list[int]:
    ready = sa.select(files.table).where(files.table.c.state == "ready").subquery()
    kept = (jobs.table, jobs.bodies, bulks.table, idempotency.table, ready)
    with database.reading() as tx:
        return [tx.execute(sa.select(sa.func.count()).select_from(table)).scalar_one() for table in kept]


def _check(client: FlaskClient, context: Context, settings: Settings, call: str, trouble: Trouble) -> None:
    post = CALLS[call]
    with ExitStack() as away:
        away.enter_context(trouble(context))
        answer = post(client)
        assert answer.status_code == 503, answer.text
        assert int(answer.headers["Retry-After"]) >= 1
        code = answer.json["error"]["code"] if "error" in answer.json else answer.json["code"]
        assert code in {"database_unavailable", "outcome_unknown"}
    fresh = Database(settings.database)
    try:
        assert _stored(fresh) == [0] * 5
    finally:
        fresh.close()
    if call != "_chat":  # for whose answer nobody is there
        again = post(client)
        assert again.status_code in {200, 202}, again.text
        assert "Idempotency-Replayed" not in again.headers


@pytest.mark.parametrize(
    ("trouble", "call"),
    # A file's row is so small that it finds room in a page that there is.
    [(trouble, call) for trouble in SQLITE for call in CALLS if (trouble, call) != ("disk full", "_file")],
)
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.sqlite
def test_trouble_with_sqlite(
    client: FlaskClient, context: Context, settings: Settings, known: None, call: str, trouble: str
) -> None:
    """A full disk or a lock that is held for long is a 503 that says so, and nothing of the request stays."""
    _check(client, context, settings, call, SQLITE[trouble])


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("trouble", POSTGRES)
@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
@pytest.mark.postgres
def test_trouble_with_postgres(
    client: FlaskClient, context: Context, settings: Settings, known: None, call: str, trouble: str
) -> None:
    """So is whatever PostgreSQL may say when it cannot go on."""
    _check(client, context, settings, call, POSTGRES[trouble])
