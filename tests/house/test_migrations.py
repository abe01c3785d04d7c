"""The migrations make exactly the tables that the code expects, on both databases."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from models import schema
from models.db import Database
from stoker import settings
from tests import servers

KINDS = [pytest.param("sqlite", marks=pytest.mark.sqlite), pytest.param("postgres", marks=pytest.mark.postgres)]
JOB = """
INSERT INTO jobs (id, owner, model, lane, endpoint, state, pos, tokens, notify, attempts, deferrals, lone_deaths,
                  created_at)
VALUES ('job_1', 'o', 'm', 'bulk', '/v1/completions', 'queued', 1, 3, false, 0, 0, 0, 1.0)
"""
UPGRADE = """
import sys
from models import db, schema
database = db.Database(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
schema.upgrade(database)
"""


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Return each kind of database in turn."""
    return str(request.param)


@pytest.fixture
def migrated(request: pytest.FixtureRequest, kind: str) -> Database:
    """Return a migrated database."""
    database: Database = request.getfixturevalue(f"{kind}_database")
    return database


@pytest.fixture
def bare(request: pytest.FixtureRequest, kind: str, tmp_path: Path) -> Iterator[Database]:
    """Return a database without any table."""
    if kind == "sqlite":
        database = Database(f"sqlite:///{tmp_path / 'bare.db'}")
        yield database
        database.close()
        return
    server: servers.Postgres = request.getfixturevalue("postgres_server")
    database = Database(settings.load(database_url=server.create("bare")).database)
    yield database
    database.close()
    server.drop("bare")


def indexes(database: Database) -> set[str]:
    """Return the definitions of all indexes, as the database writes them."""
    if database.dialect == "postgresql":
        ask = "SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' AND tablename <> 'alembic_version'"
    else:
        ask = "SELECT sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL"
    with database.reading() as tx:
        return set(tx.exec_driver_sql(ask).scalars())


def tables(database: Database) -> set[str]:
    """Return the names of the tables that there are."""
    with database.reading() as tx:
        return set(sa.inspect(tx).get_table_names())


def test_migrated_tables_are_those_of_the_code(migrated: Database) -> None:
    """Alembic finds no difference of tables, columns, types or constraints between database and metadata."""
    with migrated.reading() as tx:
        # Alembic does not know that each database has its own form of this index: the next test compares it.
        options = {"compare_type": True, "include_object": lambda _, name, *__: name != "jobs_queue"}
        context = MigrationContext.configure(tx, opts=options)
        assert compare_metadata(context, schema.metadata) == []
    assert tables(migrated) == {*schema.metadata.tables, "alembic_version"}
    assert {table.name for table in schema.TABLES} == {*schema.metadata.tables}


def test_migrated_indexes_are_those_of_the_code(bare: Database, migrated: Database) -> None:
    """Every index has the columns, order, INCLUDE and condition that the code declares."""
    with bare.transaction() as tx:
        schema.metadata.create_all(tx)
    assert indexes(migrated) == indexes(bare)


def test_the_queue_index_carries_the_tokens_of_a_job(migrated: Database) -> None:
    """The partial index holds only what waits, in the order of the owners' lines."""
    (queue,) = (definition for definition in indexes(migrated) if "jobs_queue" in definition)
    columns = "(model, lane, owner, pos) INCLUDE (tokens)"
    if migrated.dialect == "sqlite":
        columns = "(model, lane, owner, pos, tokens)"
    assert columns in queue
    assert "cohort_id IS NULL" in queue


def test_postgres_vacuums_the_jobs_early(postgres_database: Database) -> None:
    """Every job leaves three dead rows behind; waiting for a fifth of the table would slow the cutting down."""
    with postgres_database.reading() as tx:
        options = tx.exec_driver_sql("SELECT reloptions FROM pg_class WHERE relname = 'jobs'").scalar_one()
    assert "autovacuum_vacuum_scale_factor=0.02" in options


def test_upgrading_again_changes_nothing(migrated: Database) -> None:
    """A second upgrade is a no-op, and `check` is content."""
    before = tables(migrated), indexes(migrated)
    schema.upgrade(migrated)
    schema.check(migrated)
    assert (tables(migrated), indexes(migrated)) == before


def test_an_empty_database_is_refused(bare: Database) -> None:
    """`check` names the command that helps."""
    with pytest.raises(schema.SchemaOutdated, match="stoker db upgrade"):
        schema.check(bare)


def test_processes_that_upgrade_at_once_wait_for_each_other(bare: Database) -> None:
    """Of two processes that start on an empty database, one makes the tables, the other finds them."""
    command_line = [sys.executable, "-c", UPGRADE, bare.engine.url.render_as_string(hide_password=False)]
    pipe = subprocess.PIPE
    runs = [subprocess.Popen(command_line, stdin=pipe, stdout=pipe, stderr=pipe, text=True) for _ in range(2)]
    assert [run.stdout.readline() for run in runs if run.stdout] == ["ready\n", "ready\n"]
    for run in runs:
        assert run.stdin is not None
        run.stdin.write("go\n")
        run.stdin.flush()
    said = [run.communicate(timeout=100)[1] for run in runs]
    assert [run.returncode for run in runs] == [0, 0], said
    schema.check(bare)


def test_downgrading_leaves_nothing(bare: Database) -> None:
    """Taking back every step leaves no table and no index but alembic's own."""
    schema.upgrade(bare)
    with bare.engine.begin() as connection:
        command.downgrade(schema._config(connection), "base")
    assert tables(bare) == {"alembic_version"}
    assert indexes(bare) == set()


def test_a_step_and_back_keeps_what_lies_there(bare: Database) -> None:
    """Jobs and engines of before the newest step survive it, with its defaults, and survive taking it back."""
    with bare.engine.begin() as tx:
        command.upgrade(schema._config(tx), "0002")
    before = indexes(bare)
    with bare.engine.begin() as tx:
        tx.execute(sa.text(JOB))
        tx.execute(sa.text("INSERT INTO engine_models (engine_id, model) VALUES ('e', 'm')"))
    schema.upgrade(bare)
    with bare.engine.begin() as tx:
        assert tx.execute(sa.text("SELECT id, prefix FROM jobs")).all() == [("job_1", 0)]
        assert tx.execute(sa.text("SELECT model, slots FROM engine_models")).all() == [("m", None)]
        command.downgrade(schema._config(tx), "0002")
        assert tx.execute(sa.text("SELECT id, tokens FROM jobs")).all() == [("job_1", 3)]
        assert tx.execute(sa.text("SELECT model FROM engine_models")).all() == [("m",)]
    assert indexes(bare) == before


def test_there_is_one_head(sqlite_database: Database) -> None:
    """Two steps that follow the same one would leave it open which schema is today's."""
    with sqlite_database.reading() as tx:
        assert len(ScriptDirectory.from_config(schema._config(tx)).get_heads()) == 1


def test_each_step_says_who_can_live_with_it() -> None:
    """From the fourth on: `0007_since_0005`. What expands keeps the `since` of the step before; it never goes back."""
    script = ScriptDirectory(str(schema.STEPS))
    oldest = "0003"
    for step in reversed(list(script.walk_revisions())):
        number, _, since = step.revision.partition("_since_")
        assert Path(step.path).name.startswith(f"{number}_")
        if number > "0003":
            assert oldest <= since <= number, f"{step.revision}: name it {number}_since_{oldest}, unless it contracts"
            oldest = since


def test_the_steps_import_nothing_of_ours() -> None:
    """A step is frozen: what it makes does not change with the code."""
    for step in (Path(schema.__file__).parent / "migrations" / "versions").glob("[0-9]*.py"):
        assert "models import" not in step.read_text(encoding="utf-8")
