"""A read replica: what may be a little old is read there, what a client has just written never is."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient

from models import diagnosis, sweeps
from models.db import Database
from stoker.checks_database import database as examined
from stoker.finding import Finding
from stoker.settings import Settings
from tests import servers
from tests.standby import Standby, standby
from tests.tasks.inprocess import until
from tests.webapi.conftest import End
from webapi.app import create_app
from webapi.context import EXTENSION, Context

pytestmark = [pytest.mark.parametrize("database_url", ["postgres"], indirect=True), pytest.mark.postgres]


@pytest.fixture(scope="module")
def replica(postgres_server: servers.Postgres) -> Iterator[Standby]:
    """Run a standby of the tests' PostgreSQL."""
    with standby(postgres_server) as server:
        yield server


@pytest.fixture
def app(settings: Settings, replica: Standby, monkeypatch: pytest.MonkeyPatch) -> Iterator[Flask]:
    """Return an application with a replica, which looks at it often."""
    monkeypatch.setattr("webapi.replica.EVERY", 0.05)
    monkeypatch.setattr(sweeps, "MOST_LAG", 1000.0)
    made = create_app(settings.model_copy(update={"database_read_url": replica.url("stoker")}))
    yield made
    made.extensions[EXTENSION].close()


@pytest.fixture
def swept(database: Database) -> Iterator[None]:
    """Let a sweeper note all the time that it lives."""
    stop = threading.Event()

    def sweep() -> None:
        while not stop.wait(0.05):
            with database.transaction() as tx:
                sweeps.begin(tx, 15.0)

    sweeper = threading.Thread(target=sweep)
    sweeper.start()
    yield
    stop.set()
    sweeper.join()


def reads_the_replica(context: Context) -> bool:
    """Tell whether the replica is what lists are read from."""
    return context.lists.chosen() is not context.database


def submitted(client: FlaskClient) -> str:
    """Hand in a job and return its id."""
    return str(client.post("/v1/jobs", json={"prompt": "hi"}).get_json()["id"])


def listed(client: FlaskClient) -> set[str]:
    """Return the jobs that a list has."""
    answer = client.get("/v1/jobs")
    assert answer.status_code == 200, answer.text
    return {one["id"] for one in answer.get_json()["data"]}


@pytest.mark.usefixtures("swept")
def test_lists_are_read_there_and_jobs_that_run_are_not(
    client: FlaskClient, context: Context, replica: Standby, end: End
) -> None:
    """A list is as old as the replica; a job is as it is, and one that has ended is read where that is known."""
    job_id = submitted(client)
    until(lambda: reads_the_replica(context), 60)
    until(lambda: job_id in listed(client), 60)
    replica.pause()
    try:
        later = submitted(client)
        end(job_id)
        assert later not in listed(client)
        assert client.get(f"/v1/jobs/{later}").get_json()["state"] == "queued"
        assert client.get(f"/v1/jobs/{job_id}").get_json()["state"] == "succeeded"
        # Too far behind: the primary is read instead.
        context.lists._most = 0.0
        until(lambda: not reads_the_replica(context), 60)
        assert later in listed(client)
    finally:
        replica.resume()
    context.lists._most = 1000.0
    until(lambda: reads_the_replica(context), 60)
    until(lambda: later in listed(client), 60)
    found = context.lists.if_ended(lambda tx: tx.exec_driver_sql("SELECT pg_is_in_recovery()").scalar_one(), bool)
    assert found is not None
    assert found[1] is True


@pytest.mark.usefixtures("swept")
def test_a_replica_that_dies_is_not_missed(client: FlaskClient, context: Context, replica: Standby) -> None:
    """Every list is answered while it is killed, stays away and comes back."""
    job_id = submitted(client)
    until(lambda: reads_the_replica(context) and job_id in listed(client), 60)
    replica.stop(signal.SIGKILL)
    try:
        for _ in range(20):
            assert job_id in listed(client)
        until(lambda: not reads_the_replica(context), 60)
        assert job_id in listed(client)
    finally:
        replica.start()
    until(lambda: reads_the_replica(context), 60)
    assert job_id in listed(client)


@pytest.mark.usefixtures("swept")
def test_a_replica_with_another_clock_is_not_read(
    client: FlaskClient, context: Context, replica: Standby, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it tells of ages, and of engines that are silent, would be wrong."""
    job_id = submitted(client)
    until(lambda: reads_the_replica(context) and job_id in listed(client), 60)
    right = diagnosis.clock

    def ahead(tx: sa.Connection) -> float:
        return right(tx) + (15.0 if tx.exec_driver_sql("SELECT pg_is_in_recovery()").scalar_one() else 0.0)

    monkeypatch.setattr(diagnosis, "clock", ahead)
    until(lambda: not reads_the_replica(context), 60)
    monkeypatch.setattr(diagnosis, "clock", right)
    until(lambda: reads_the_replica(context), 60)


def test_without_a_sweeper_nobody_knows_how_old_it_is(client: FlaskClient, context: Context) -> None:
    """The primary is read: a replica without a sign of life of the service may be of yesterday."""
    job_id = submitted(client)
    until(lambda: context.lists._behind() > 0, 60)
    context.lists._most = 5.0
    until(lambda: not reads_the_replica(context), 60)
    assert job_id in listed(client)


@pytest.mark.usefixtures("swept")
def test_what_has_not_come_there_yet_is_read_from_the_primary(
    context: Context, database: Database, replica: Standby
) -> None:
    """After an upgrade of the schema, say: a query that only the primary can answer is no error."""
    until(lambda: reads_the_replica(context), 60)
    replica.pause()
    try:
        with database.transaction() as tx:
            tx.exec_driver_sql("CREATE TABLE newer (n int)")

        def count(tx: sa.Connection) -> int:
            return int(tx.exec_driver_sql("SELECT count(*) FROM newer").scalar_one())

        assert context.lists.read(count) == 0
        until(lambda: reads_the_replica(context), 60)
        assert context.lists.of_ended(count, lambda _: True) == (context.database, 0)
    finally:
        replica.resume()
        with database.transaction() as tx:
            tx.exec_driver_sql("DROP TABLE IF EXISTS newer")


@pytest.mark.usefixtures("swept")
def test_the_doctor_looks_at_it(settings: Settings, replica: Standby) -> None:
    """How far it is behind; or that it does not answer, which costs nobody anything but the primary."""
    asked = settings.model_copy(update={"database_read_url": replica.url("stoker")})

    def found() -> Finding:
        return {finding.check: finding for finding in examined(asked)}["replica"]

    until(lambda: found().status == "ok", 60)
    replica.stop(signal.SIGKILL)
    try:
        said = found()
    finally:
        replica.start()
    assert said.status == "warning"
    assert "does not answer" in said.says
    assert "from the primary" in said.do
