"""`/livez`, `/readyz`, `/metrics`, and what is said when the database is away."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient

from models import engines, schema, sweeps
from models.db import Database
from models.errors import DatabaseUnavailable
from stoker.settings import Settings, load
from tests import servers
from tests.models import given
from tests.tasks.inprocess import until
from webapi import counts
from webapi.app import StartError, create_app
from webapi.context import EXTENSION, Context


def test_ready_with_everything(client: FlaskClient) -> None:
    """Database, schema and Redis are fine."""
    # Redis has 0.3 s to answer, which a busy machine may not grant it at once.
    until(lambda: (answer := client.get("/readyz")).status_code == 200 and answer.json["status"] == "ok")
    assert client.get("/livez").json == {"status": "ok"}


def test_ready_without_redis(settings: Settings) -> None:
    """Jobs are taken without Redis: ready, but degraded."""
    app = create_app(settings.model_copy(update={"redis_url": f"redis://127.0.0.1:{servers.free_port()}/0"}))
    answer = app.test_client().get("/readyz")
    assert (answer.status_code, answer.json["status"], answer.json["redis"]) == (200, "degraded", "unreachable")
    app.extensions[EXTENSION].close()


def test_ready_without_rabbitmq(settings: Settings) -> None:
    """The same where it is the broker; where Redis is, there is no such part."""
    with socket.create_server(("127.0.0.1", 0)) as there:
        for port, says in ((there.getsockname()[1], "ok"), (servers.free_port(), "unreachable")):
            app = create_app(settings.model_copy(update={"broker_url": f"amqp://guest@127.0.0.1:{port}//"}))
            answer = app.test_client().get("/readyz")
            assert (answer.status_code, answer.json["broker"]) == (200, says)
            assert says == "ok" or answer.json["status"] == "degraded"
            app.extensions[EXTENSION].close()


def test_not_ready_without_the_schema(client: FlaskClient, database: Database) -> None:
    """A database of another version is a 503 that says what to run."""
    with database.transaction() as tx:
        head = tx.exec_driver_sql("SELECT version_num FROM alembic_version").scalar_one()
        tx.exec_driver_sql("UPDATE alembic_version SET version_num = '0002'")
    try:
        answer = client.get("/readyz")
        assert (answer.status_code, answer.json["code"]) == (503, "schema_outdated")
        assert "stoker db upgrade" in answer.json["detail"]
        assert client.get("/livez").status_code == 200
    finally:
        with database.transaction() as tx:
            tx.execute(sa.text("UPDATE alembic_version SET version_num = :head"), {"head": head})


def test_metrics_count_requests_and_rows(client: FlaskClient) -> None:
    """Requests by route and status, jobs by state, lane and model; ids are in no label."""
    job_id = client.post("/v1/jobs", json={"prompt": "hi", "lane": "bulk"}).json["id"]
    client.get(f"/v1/jobs/{job_id}")
    client.get("/secret-path")
    page = client.get("/metrics")
    assert page.content_type.startswith("text/plain")
    assert 'stoker_http_requests_total{method="POST",route="/v1/jobs",status="202"}' in page.text
    assert 'route="/v1/jobs/<job_id>"' in page.text
    assert 'stoker_jobs_open{lane="bulk",model="fake",state="queued"} 1.0' in page.text
    assert "stoker_engines_live 0.0" in page.text
    assert "stoker_deliveries_pending 0.0" in page.text
    assert "stoker_sweep_age_seconds" not in page.text
    assert "stoker_doorbell_failures_total" in page.text
    assert job_id not in page.text
    assert "secret-path" not in page.text


def test_metrics_tell_when_engines_were_started_and_the_last_sweep_was(client: FlaskClient, database: Database) -> None:
    """Restarts are changes of the one, a sweeper that is late is the other; neither is there before it happened."""
    mine = given.engine(database)
    with database.transaction() as tx:
        sweeps.begin(tx, 15.0)
        started = tx.execute(sa.select(engines.table.c.started_at)).scalar_one()
    told = dict(line.rsplit(" ", 1) for line in client.get("/metrics").text.splitlines() if not line.startswith("#"))
    assert float(told[f'stoker_engine_start_time_seconds{{engine="{mine.engine}"}}']) == started
    assert 0 <= float(told["stoker_sweep_age_seconds"]) < 60


def test_the_census_is_taken_at_most_every_five_seconds(client: FlaskClient, context: Context) -> None:
    """Two looks in a row show the same counts."""
    assert "stoker_jobs_open{" not in client.get("/metrics").text
    assert counts.KEEP == 5.0
    context.counts.census.until += 60  # however slow the machine is
    client.post("/v1/jobs", json={"prompt": "hi"})
    assert "stoker_jobs_open{" not in client.get("/metrics").text


def test_a_failed_census_is_not_kept_for_long(app: Flask, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the database took not to answer, it is asked again after five seconds."""

    def slow(*_: object) -> None:
        time.sleep(0.5)
        raise DatabaseUnavailable("timeout")

    monkeypatch.setattr(counts, "take", slow)
    assert "stoker_database_up 0.0" in app.test_client().get("/metrics").text
    assert app.extensions[EXTENSION].counts.census.until - time.monotonic() <= counts.KEEP


def test_no_start_without_a_schema(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The server does not start on an empty database, and says in one line what to run."""
    settings = load(data=tmp_path_factory.mktemp("empty"), engine="fake")
    with pytest.raises(StartError, match="stoker db upgrade") as raised:
        create_app(settings)
    assert "\n" not in str(raised.value)


def test_no_start_without_a_database() -> None:
    """A database that does not answer stops the start with one line."""
    settings = load(database_url=f"postgresql://nobody@127.0.0.1:{servers.free_port()}/none", engine="fake")
    with pytest.raises(StartError, match="database does not answer") as raised:
        create_app(settings)
    assert "\n" not in str(raised.value)


def test_an_engines_word_on_a_model_is_kept(settings: Settings, database: Database) -> None:
    """Starting the web server does not forget what an engine told of the configured model."""
    with database.transaction() as tx:
        engines.remember(tx, "fake", 4096, "/models/fake")
    app = create_app(settings)
    with database.reading() as tx:
        assert engines.known(tx)["fake"].max_model_len == 4096
    app.extensions[EXTENSION].close()


def test_a_database_outage_is_a_503(
    capfd: pytest.CaptureFixture[str], client: FlaskClient, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client is told to try again, and nothing of its request is logged."""
    assert client.post("/v1/jobs", json={"prompt": "warm"}).status_code == 202

    def away(**_: object) -> None:
        raise DatabaseUnavailable("the connection was refused")

    monkeypatch.setattr(context.database, "transaction", away)
    answer = client.post("/v1/jobs", json={"prompt": "c4n4ry"})
    assert (answer.status_code, answer.json["code"]) == (503, "database_unavailable")
    assert 1 <= int(answer.headers["Retry-After"]) <= 5
    assert "refused" not in answer.text
    logged = "".join(capfd.readouterr())
    assert "database unavailable" in logged
    assert "c4n4ry" not in logged


def lose_commits(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every transaction from now on take effect and then be reported as lost."""
    real = context.database.transaction

    @contextmanager
    def lost(**options: bool) -> Iterator[sa.Connection]:
        with real(**options) as tx:
            yield tx
        raise DatabaseUnavailable("the connection was lost")

    monkeypatch.setattr(context.database, "transaction", lost)


def test_an_answer_lost_at_commit_is_said_to_be_unknown(
    client: FlaskClient, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the database goes away at COMMIT nobody knows: the answer says so and advises an Idempotency-Key."""
    lose_commits(context, monkeypatch)
    answer = client.post("/v1/jobs", json={"prompt": "hi"})
    assert (answer.status_code, answer.json["code"]) == (503, "outcome_unknown")
    assert "Idempotency-Key" in answer.json["detail"]


def test_a_cancel_lost_at_commit_is_said_to_be_unknown(
    client: FlaskClient, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer does not say that nothing was stored, but to look at the job."""
    job_id = client.post("/v1/jobs", json={"prompt": "hi"}).json["id"]
    lose_commits(context, monkeypatch)
    answer = client.post(f"/v1/jobs/{job_id}/cancel")
    assert (answer.status_code, answer.json["code"]) == (503, "outcome_unknown")
    assert "look at the job" in answer.json["detail"]
    assert "nothing was stored" not in answer.text
    assert client.get(f"/v1/jobs/{job_id}").json["state"] == "cancelled"


def test_an_unexpected_error_tells_nothing(
    capfd: pytest.CaptureFixture[str], client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A 500 has an id to look for; the log has where it happened, and neither has the exception's text."""

    def broken(*_: object) -> None:
        raise ValueError("c4n4ry")

    monkeypatch.setattr("webapi.jobs.jobs.submit", broken)
    answer = client.post("/v1/jobs", json={"prompt": "hi"}, headers={"X-Request-Id": "find-me"})
    assert (answer.status_code, answer.json["request_id"]) == (500, "find-me")
    logged = "".join(capfd.readouterr())
    assert "find-me" in logged
    assert "ValueError" in logged
    assert "c4n4ry" not in logged + answer.text


def test_schema_check_is_for_this_version(database: Database) -> None:
    """The fixture's database passes the check that the server makes."""
    schema.check(database)
