"""The database layer's own promises: one clock, outages by one name, writers that do not trip each other."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
import sqlalchemy as sa

from models import jobs, postgres_session
from models.db import Database, among, is_id, micros, new_id, now, one_of
from models.errors import DatabaseUnavailable
from stoker import settings
from tests import servers
from tests.models import given


def test_the_clock_is_wall_time(database: Database) -> None:
    """Seconds and microseconds since 1970, from the database."""
    before = time.time()
    with database.reading() as tx:
        seconds, whole = tx.execute(sa.select(now(), micros())).one()
    after = time.time()
    assert before - 0.1 <= seconds <= after + 0.1
    assert before - 0.1 <= whole / 1e6 <= after + 0.1
    assert isinstance(whole, int)


def test_the_clock_goes_on_within_a_transaction(database: Database) -> None:
    """It is read once a statement, not once a transaction."""
    with database.reading() as tx:
        first = tx.execute(sa.select(now())).scalar_one()
        time.sleep(0.05)
        assert tx.execute(sa.select(now())).scalar_one() > first


def test_among_is_membership(database: Database) -> None:
    """For any number of values, of any text, none included."""
    ids = given.submitted(database, 3)
    odd = ["'", '"', "\\", "é", "{1,2}", "NULL", "a,b"]
    with database.reading() as tx:
        found = sa.select(jobs.table.c.id).order_by(jobs.table.c.id)
        assert tx.execute(found.where(among(jobs.table.c.id, [*ids[:2], *odd]))).scalars().all() == ids[:2]
        assert tx.execute(found.where(among(jobs.table.c.id, []))).scalars().all() == []
        assert tx.execute(found.where(among(jobs.table.c.id, map(str, range(5000))))).scalars().all() == []
        assert len(tx.execute(found.where(one_of(jobs.table.c.state, ["queued", "failed"]))).all()) == 3


def test_ids_are_ordered_and_recognised() -> None:
    """A later id is greater; nothing else passes for one."""
    made = [new_id("job") for _ in range(1000)]
    assert made == sorted(set(made))
    assert all(is_id("job", one) for one in made)
    for wrong in ("", "job_", made[0] + "0", made[0].upper(), "batch_" + made[0][4:], made[0][:-1] + "g"):
        assert not is_id("job", wrong)


def test_a_server_that_is_not_there_is_unavailable() -> None:
    """However it is asked, within seconds."""
    database = Database(f"postgresql+psycopg://stoker@127.0.0.1:{servers.free_port()}/stoker")
    began = time.monotonic()
    with pytest.raises(DatabaseUnavailable), database.transaction():
        pass
    with pytest.raises(DatabaseUnavailable), database.reading():
        pass
    with pytest.raises(DatabaseUnavailable):
        database.retrying(lambda tx: tx)
    assert time.monotonic() - began < 10


def test_a_connection_that_is_cut_is_unavailable_and_then_replaced(postgres_database: Database) -> None:
    """The transaction that it hit is lost; the next one gets a new connection."""
    with pytest.raises(DatabaseUnavailable), postgres_database.transaction() as tx:  # noqa: PT012  # both are the case
        mine = tx.execute(sa.select(sa.func.pg_backend_pid())).scalar_one()
        with postgres_database.transaction() as other:
            other.execute(sa.select(sa.func.pg_terminate_backend(mine, 5000)))
        tx.execute(sa.select(1))
    with postgres_database.reading() as tx:
        assert tx.execute(sa.select(1)).scalar_one() == 1


def test_an_exhausted_pool_is_unavailable(sqlite_url: str) -> None:
    """Waiting for a connection ends, and by the same name as any outage."""
    database = Database(sqlite_url, pool_size=1)
    database.engine.pool._timeout = 0.1  # type: ignore[attr-defined]
    database.engine.pool._max_overflow = 0  # type: ignore[attr-defined]
    with database.reading():
        with pytest.raises(DatabaseUnavailable), database.reading():
            pass
        with pytest.raises(DatabaseUnavailable):
            database.retrying(lambda tx: tx)
    database.close()


def test_a_file_that_cannot_be_opened_is_unavailable(tmp_path: Path) -> None:
    """SQLite in a folder that does not exist."""
    database = Database(f"sqlite:///{tmp_path / 'none' / 'stoker.db'}")
    with pytest.raises(DatabaseUnavailable), database.transaction():
        pass


def test_an_error_of_our_own_is_no_outage(database: Database) -> None:
    """A statement that is wrong stays what it is, and its transaction leaves nothing."""
    (job_id,) = given.submitted(database)
    with pytest.raises(sa.exc.IntegrityError), database.transaction() as tx:  # noqa: PT012  # both are the case
        jobs.move(tx, "cancelled", jobs.table.c.id == job_id)
        tx.execute(sa.insert(jobs.bodies).values(job_id=job_id, body="", webhook_include_result=False))
    assert given.states(database, [job_id]) == ["queued"]


def test_a_transaction_is_one_after_a_read_on_the_same_connection(postgres_url: str) -> None:
    """What only reads needs no transaction on PostgreSQL; the pooled connection does not stay like that."""
    database = Database(postgres_url, pool_size=1)
    backend = sa.select(sa.func.pg_backend_pid())
    (job_id,) = given.submitted(database)
    with database.reading() as tx:
        read_by = tx.execute(backend).scalar_one()
    with pytest.raises(ZeroDivisionError), database.transaction() as tx:  # noqa: PT012  # both are the case
        assert tx.execute(backend).scalar_one() == read_by
        tx.execute(jobs.table.update().values(lane="bulk"))
        raise ZeroDivisionError
    assert given.job(database, job_id).lane != "bulk"
    database.close()


def test_retrying_repeats_for_a_victim_of_a_deadlock(postgres_database: Database) -> None:
    """Two transactions lock two rows crosswise: both end well, one of them at its second try."""
    ids = given.submitted(postgres_database, 2)
    tries: list[str] = []
    both = threading.Barrier(2)

    def cross(order: list[str]) -> None:
        def work(tx: sa.Connection) -> None:
            tries.append(order[0])
            for nth, job_id in enumerate(order):
                tx.execute(
                    sa.update(jobs.table).where(jobs.table.c.id == job_id).values(tokens=jobs.table.c.tokens + 1)
                )
                if nth == 0 and len(tries) <= 2:
                    both.wait(60)

        postgres_database.retrying(work)

    given.together([lambda: cross(ids), lambda: cross(ids[::-1])])
    assert len(tries) == 3
    assert [given.job(postgres_database, job_id).tokens for job_id in ids] == [3, 3]


def test_writers_on_sqlite_wait_for_each_other(sqlite_url: str) -> None:
    """Four processes' worth of writers, each reading before it writes, lose nothing and see no 'database is locked'."""
    writers = [Database(sqlite_url) for _ in range(4)]
    (job_id,) = given.submitted(writers[0])

    def count(database: Database) -> None:
        for _ in range(25):
            with database.transaction() as tx:
                tokens = tx.execute(sa.select(jobs.table.c.tokens)).scalar_one()
                tx.execute(sa.update(jobs.table).values(tokens=tokens + 1))

    given.together([lambda database=database: count(database) for database in writers])  # type: ignore[misc]
    assert given.job(writers[0], job_id).tokens == 101
    for database in writers:
        database.close()


def test_reading_on_sqlite_takes_no_write_lock(sqlite_database: Database) -> None:
    """A reader and a writer do not wait for each other."""
    with sqlite_database.transaction(), sqlite_database.reading() as tx:
        assert tx.execute(sa.select(jobs.table)).all() == []


def test_sqlite_keeps_what_was_committed_when_the_power_fails(sqlite_database: Database) -> None:
    """Write-ahead log with full synchronisation, on every connection."""
    with sqlite_database.reading() as tx:
        assert tx.exec_driver_sql("PRAGMA journal_mode").scalar_one() == "wal"
        assert tx.exec_driver_sql("PRAGMA synchronous").scalar_one() == 2


def test_an_idle_connection_that_was_cut_is_replaced(
    postgres_database: Database, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever asks next does not notice: a connection that was not used for a while is asked first."""
    monkeypatch.setattr(postgres_session, "PING_AFTER", 0.0)
    with postgres_database.reading() as tx:
        mine = tx.execute(sa.select(sa.func.pg_backend_pid())).scalar_one()
    other = Database(settings.load(database_url=postgres_url).database)
    with other.transaction() as tx:
        tx.execute(sa.select(sa.func.pg_terminate_backend(mine, 5000)))
    other.close()
    with postgres_database.reading() as tx:
        assert tx.execute(sa.select(sa.func.pg_backend_pid())).scalar_one() != mine


def test_a_client_that_vanishes_amid_its_statements_lets_go(
    postgres_database: Database, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of statements that are sent together the last are missing: the server knows no idleness there, but an end."""
    (job,) = given.submitted(postgres_database, 1)
    locked = sa.select(jobs.table.c.id).where(jobs.table.c.id == job).with_for_update()
    monkeypatch.setattr(postgres_session, "LONGEST_TRANSACTION", 2)
    vanished = Database(settings.load(database_url=postgres_url).database)
    started = time.monotonic()
    with vanished.engine.connect() as left:
        left.execute(locked)
        wire = left.connection.driver_connection.pgconn
        wire.enter_pipeline_mode()
        wire.send_query_params(b"SELECT 1", [])
        wire.send_flush_request()
        wire.flush()
        with postgres_database.transaction() as tx:
            assert tx.execute(locked).scalar_one() == job
        assert time.monotonic() - started > 1.0
        left.invalidate()
    vanished.close()


def test_a_server_looks_after_its_clients(postgres_database: Database) -> None:
    """Its sessions notice a machine that is gone, and end a transaction whose client does not."""
    with postgres_database.reading() as tx:
        told = {
            name: tx.execute(sa.select(sa.func.current_setting(name))).scalar_one()
            for name in ("tcp_keepalives_idle", "idle_in_transaction_session_timeout", "transaction_timeout")
        }
    assert told == {
        "tcp_keepalives_idle": "5",
        "idle_in_transaction_session_timeout": "30s",
        "transaction_timeout": "90s",
    }


def test_an_upgrade_takes_its_time(postgres_database: Database) -> None:
    """Whatever may take long is told so, also in the middle of a transaction."""
    with postgres_database.engine.connect() as connection:
        postgres_session.unlimited(connection)
        for name in ("statement_timeout", "idle_in_transaction_session_timeout", "transaction_timeout"):
            assert connection.execute(sa.select(sa.func.current_setting(name))).scalar_one() == "0"
        connection.invalidate()
