"""Upgrades while the service runs: old code lives on a schema that was expanded, and nobody waits long for a step."""

from __future__ import annotations

import shutil
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa
from alembic.script import ScriptDirectory

from models import jobs, schema
from models.db import Database
from stoker.settings import load
from tests import servers
from tests.models import given
from tests.tasks.inprocess import until

Add = Callable[[str, str], str]

EXPAND = """
op.add_column("jobs", sa.Column("colour", sa.Text))
op.create_index("jobs_colour", "jobs", ["colour"])
"""
CONCURRENT = """
with op.get_context().autocommit_block():
    op.create_index("jobs_colour", "jobs", ["owner", "state"], postgresql_concurrently=True)
"""
CONTRACT = 'op.drop_table("collectors")'


@pytest.fixture(
    params=[
        pytest.param("sqlite", marks=pytest.mark.sqlite),
        pytest.param("postgres", marks=pytest.mark.postgres),
    ]
)
def own(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """Return a database at this version, of each kind in turn, whose tables the test may change."""
    if request.param == "sqlite":
        database = Database(f"sqlite:///{tmp_path / 'own.db'}")
        schema.upgrade(database)
        yield database
        database.close()
        return
    yield from _own_postgres(request.getfixturevalue("postgres_server"))


@pytest.fixture
def own_postgres(postgres_server: servers.Postgres) -> Iterator[Database]:
    """Return a PostgreSQL database at this version, whose tables the test may change."""
    yield from _own_postgres(postgres_server)


def _own_postgres(server: servers.Postgres) -> Iterator[Database]:
    database = Database(load(database_url=server.create("own")).database)
    schema.upgrade(database)
    yield database
    database.close()
    server.drop("own")


def head() -> str:
    """Return the number of this version's newest step."""
    script = ScriptDirectory(str(schema.STEPS))
    return str(script.get_current_head()).partition("_")[0]


@pytest.fixture
def steps(tmp_path: Path) -> Path:
    """Return a copy of the steps, to which the next version's may be added."""
    return Path(shutil.copytree(schema.STEPS, tmp_path / "migrations"))


@pytest.fixture
def add(steps: Path) -> Add:
    """Return what adds a step of a later version: `since` (a number) and what it does; it returns its revision."""

    def make(since: str, does: str) -> str:
        before = str(ScriptDirectory(str(steps)).get_current_head())
        number = f"{int(before.partition('_')[0]) + 1:04}"
        revision = f"{number}_since_{since}"
        body = textwrap.indent(does.strip(), "    ")
        text = (
            f"import sqlalchemy as sa\nfrom alembic import op\n\nrevision = {revision!r}\ndown_revision = {before!r}\n"
        )
        (steps / f"versions/{revision}.py").write_text(f"{text}\n\ndef upgrade():\n{body}\n")
        return revision

    return make


def test_old_code_lives_on_an_expanded_schema(own: Database, steps: Path, add: Add) -> None:
    """It knows by the step's name that it may: checks are content, upgrading does nothing, jobs come in."""
    expanded = add(head(), EXPAND)
    schema.upgrade(own, steps=steps)
    assert schema.check(own, steps=steps) is None
    assert schema.check(own) == expanded
    schema.upgrade(own)
    assert schema.check(own) == expanded
    given.submitted(own)
    assert [row.state for row in given.rows(own, jobs.table)] == ["queued"]


def test_old_code_refuses_a_contracted_schema(own: Database, steps: Path, add: Add) -> None:
    """Once what it needs is gone it does not start, and does not touch the tables."""
    add(head(), EXPAND)
    contracted = add(f"{int(head()) + 1:04}", CONTRACT)
    schema.upgrade(own, steps=steps)
    assert schema.check(own, steps=steps) is None
    for refused in (schema.check, schema.upgrade):
        with pytest.raises(schema.SchemaOutdated, match=f"at {contracted}, which a newer version made"):
            refused(own)


def test_a_step_without_a_promise_is_refused(own: Database) -> None:
    """A step that this version does not know, and that does not say who can live with it, may be anything."""
    with own.transaction() as tx:
        tx.execute(sa.text("UPDATE alembic_version SET version_num = '0099'"))
    with pytest.raises(schema.SchemaOutdated, match="0099"):
        schema.check(own)


def test_an_index_is_made_beside_the_work(own_postgres: Database, steps: Path, add: Add) -> None:
    """CREATE INDEX CONCURRENTLY works in a step, also while somebody else waits to upgrade as well."""
    add(head(), CONCURRENT)
    others = [threading.Thread(target=schema.upgrade, args=(own_postgres,), kwargs={"steps": steps}) for _ in range(2)]
    for other in others:
        other.start()
    for other in others:
        other.join(60)
        assert not other.is_alive()
    assert schema.check(own_postgres, steps=steps) is None
    with own_postgres.reading() as tx:
        valid = "SELECT indisvalid FROM pg_index WHERE indexrelid = 'jobs_colour'::regclass"
        assert tx.exec_driver_sql(valid).scalar_one() is True


def test_a_step_that_waits_lets_others_through(
    own_postgres: Database, steps: Path, add: Add, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a long query holds the table, the step tries again and again; in between, jobs come in."""
    monkeypatch.setattr(schema, "LOCK_WAIT", 0.05)
    monkeypatch.setattr(schema, "PAUSE", 0.05)
    expanded = add(head(), EXPAND)
    said: list[str] = []
    upgrading = threading.Thread(target=schema.upgrade, args=(own_postgres, said.append), kwargs={"steps": steps})
    with psycopg.connect(own_postgres.engine.url.set(drivername="postgresql").render_as_string()) as reader:
        reader.execute("SELECT count(*) FROM jobs")
        upgrading.start()
        until(lambda: len(said) >= 3)
        for _ in range(20):
            given.submitted(own_postgres)
    upgrading.join(60)
    assert not upgrading.is_alive()
    assert set(said) == {"a table is in use by a long transaction; trying again"}
    assert schema.check(own_postgres) == expanded
    assert len(given.rows(own_postgres, jobs.table)) == 20


def test_a_step_that_never_gets_its_table_gives_up(
    own_postgres: Database, steps: Path, add: Add, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of it is done, and the text says what to do."""
    for name in ("LOCK_WAIT", "PAUSE", "PATIENCE"):
        monkeypatch.setattr(schema, name, 0.05)
    add(head(), EXPAND)
    with psycopg.connect(own_postgres.engine.url.set(drivername="postgresql").render_as_string()) as reader:
        reader.execute("SELECT count(*) FROM jobs")
        with pytest.raises(schema.SchemaBusy, match="stoker doctor"):
            schema.upgrade(own_postgres, steps=steps)
    assert schema.check(own_postgres) is None
    schema.upgrade(own_postgres, steps=steps)


def test_the_times_of_a_step_are_not_those_of_others(own_postgres: Database, steps: Path, add: Add) -> None:
    """A step may take its time; whoever gets a connection afterwards is bounded as ever."""
    add(head(), EXPAND)
    schema.upgrade(own_postgres, steps=steps)
    with own_postgres.reading() as tx:
        assert tx.exec_driver_sql("SHOW statement_timeout").scalar_one() == "1min"
        assert tx.exec_driver_sql("SHOW lock_timeout").scalar_one() == "5s"
