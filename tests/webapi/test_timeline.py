"""`/v1/jobs/{id}/timeline`: what happened to a job, and in words what it waits for."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from flask.testing import FlaskClient

from models import batches, bulks, cohorts, deliveries, engines, jobs, past_attempts
from models.db import Database, new_id
from models.ends import Settled
from models.engines import Incarnation
from models.results import NewResult
from models.timeline import MOST_ATTEMPTS
from tests.models import given
from tests.webapi.conftest import End

OWNER = "local"


def timeline(client: FlaskClient, job_id: str) -> Any:
    """Return the document."""
    answer = client.get(f"/v1/jobs/{job_id}/timeline")
    assert answer.status_code == 200, answer.text
    return answer.json


def waiting(client: FlaskClient, job_id: str) -> str:
    """Return what a job waits for."""
    return str(timeline(client, job_id)["waiting"])


def starting(database: Database) -> None:
    """Register an engine that is not open yet."""
    with database.transaction() as tx:
        engines.register(tx, Incarnation("slow", new_id("run"), "fake", "host", 1, 1, "boot:1"))


def test_each_step_has_its_time(client: FlaskClient, database: Database) -> None:
    """From the submission to the end: what lies between adds up to the whole."""
    mine = given.engine(database)
    batch = given.running(database, mine, 3, owner=OWNER)
    first, second, third = (job.id for job in batch.jobs)
    told = timeline(client, first)
    assert ([step["name"] for step in told["steps"]], told["state"]) == (["submitted", "batched", "started"], "running")
    assert told["waiting"].startswith("Engine engine has been running it for ")
    given.settled(database, batch.id, [given.answered(first)])
    told = timeline(client, first)
    assert [step["name"] for step in told["steps"]] == ["submitted", "batched", "started", "succeeded"]
    assert sum(step["seconds"] or 0 for step in told["steps"]) == pytest.approx(
        told["steps"][-1]["at"] - told["steps"][0]["at"], abs=0.01
    )
    (attempt,) = told["attempts"]
    assert (attempt["number"], attempt["outcome"], attempt["engine"], attempt["jobs"]) == (1, "succeeded", "engine", 3)
    assert (told["mates"], told["waiting"], told["deliveries"]) == (sorted([second, third]), "", [])


def test_attempts_that_came_to_nothing_are_told(client: FlaskClient, database: Database) -> None:
    """With the engine that each died in, in their order, and the present one behind them."""
    for name in ("a", "b"):
        mine = given.engine(database, name)
        if name == "a":
            (job_id,) = given.submitted(database, owner=OWNER)
            given.cut(database, [job_id])
        else:
            given.cut(database, [job_id], cohort="cohort_1", engine="b")
        given.claimed(database, mine)
        if name == "a":
            database.retrying(lambda tx, mine=mine: cohorts.crash(tx, mine.engine, mine.id, "crashed", max_attempts=9))
    told = timeline(client, job_id)
    assert [(one["number"], one["outcome"], one["engine"]) for one in told["attempts"]] == [
        (1, "crashed", "a"),
        (2, "running", "b"),
    ]
    names = [step["name"] for step in told["steps"]]
    assert names == ["submitted", "batched", "started", "crashed", "batched", "started"]


def test_of_many_attempts_the_last_are_told(client: FlaskClient, database: Database) -> None:
    """One that was put off a thousand times has no endless page; the page says how many are left out."""
    mine = given.engine(database)
    batch = given.running(database, mine, 1, owner=OWNER)
    job_id = batch.jobs[0].id
    rows = [
        {"job_id": job_id, "attempt": n, "batch_id": batch.id, "started_at": n, "ended_at": n + 0.5}
        for n in range(1, MOST_ATTEMPTS + 9)
    ]
    with database.transaction() as tx:
        tx.execute(sa.insert(past_attempts.table).values(outcome="deferred"), rows)
    given.change(database, jobs.table, jobs.table.c.id == job_id, attempts=MOST_ATTEMPTS + 9)
    told = timeline(client, job_id)
    assert [one["number"] for one in told["attempts"]] == list(range(9, MOST_ATTEMPTS + 10))
    assert [step["name"] for step in told["steps"]].count("deferred") == MOST_ATTEMPTS
    assert "The first 8 are left out" in client.get(f"/dashboard/jobs/{job_id}").text


def test_a_webhook_is_a_step(client: FlaskClient, database: Database, end: End) -> None:
    """Told of when it was delivered; until then it is among the deliveries."""
    hook = {"url": "https://example.com/hook"}
    job_id = client.post("/v1/jobs", json={"prompt": "hi", "webhook": hook}).json["id"]
    end(job_id)
    told = timeline(client, job_id)
    assert [(one["state"], one["event"]) for one in told["deliveries"]] == [("pending", "job.succeeded")]
    table = deliveries.table
    given.change(database, table, table.c.job_id == job_id, state="delivered", delivered_at=5e9)
    assert timeline(client, job_id)["steps"][-1]["name"] == "told"


def test_why_it_waits_for_an_engine(client: FlaskClient, database: Database) -> None:
    """None is up; one is starting; all places are taken; there is room."""
    (job_id,) = given.submitted(database, owner=OWNER)
    assert "start one" in waiting(client, job_id)
    starting(database)
    assert "Starting: slow (for 0." in waiting(client, job_id)
    mine = given.engine(database)
    assert "An engine has room (0 of 256" in waiting(client, job_id)
    _, later = given.submitted(database, 2, owner=OWNER)
    # SQLite's clock has milliseconds only: those of the same one are in no order.
    given.change(database, jobs.table, jobs.table.c.id == later, pos=jobs.table.c.pos + 1)
    assert "2 jobs of yours in this lane go before it" in waiting(client, later)
    given.cut(database, [job_id])
    assert waiting(client, job_id) == "It is in a batch of 1 job, which waits for the next engine that has room."
    given.claimed(database, mine)
    given.change(database, engines.table, engines.table.c.id == "engine", slots=1)
    assert "The only place for fake is taken (engine engine). 1 job of yours" in waiting(client, later)


def test_why_it_was_put_off(client: FlaskClient, database: Database) -> None:
    """By an upstream, or because the engine died while it ran alone."""
    mine = given.engine(database)
    batch = given.running(database, mine, 1, owner=OWNER)
    job_id = batch.jobs[0].id
    given.settled(database, batch.id, [Settled(job_id, "delayed", run_in=60.0)])
    assert waiting(client, job_id).startswith("No upstream could take it (put off once). It is tried again in ")
    given.change(database, jobs.table, jobs.table.c.id == job_id, lone_deaths=2, run_at=1.0)
    assert "died 2 of 3 times" in waiting(client, job_id)
    assert waiting(client, job_id).endswith("is tried again now.")


def test_why_a_suspect_and_a_paused_line_wait(client: FlaskClient, database: Database) -> None:
    """One runs apart, the other until its bulk is resumed."""
    given.engine(database)
    suspect, paused = given.submitted(database, 2, owner=OWNER)
    given.change(database, jobs.table, jobs.table.c.id == suspect, cohort_id="cohort_1")
    given.change(database, jobs.table, jobs.table.c.id == paused, lane=bulks.PAUSED)
    assert "runs apart" in waiting(client, suspect).replace("to run apart", "runs apart")
    assert "resume the bulk" in waiting(client, paused)


def test_a_job_that_ended_without_an_engine(client: FlaskClient, database: Database) -> None:
    """Cancelled while it waited: two steps, no attempt."""
    (job_id,) = given.submitted(database, owner=OWNER)
    client.post(f"/v1/jobs/{job_id}/cancel")
    told = timeline(client, job_id)
    assert [step["name"] for step in told["steps"]] == ["submitted", "cancelled"]
    assert (told["attempts"], told["mates"]) == ([], [])


def test_a_batch_that_was_deleted_is_no_error(client: FlaskClient, database: Database) -> None:
    """The job outlives its batch by retention: what is still known is told."""
    mine = given.engine(database)
    batch = given.running(database, mine, 1, owner=OWNER)
    given.settled(database, batch.id, [Settled(batch.jobs[0].id, "failed", NewResult(500, code="x", message="y"))])
    with database.transaction() as tx:
        tx.execute(sa.delete(batches.table))
    told = timeline(client, batch.jobs[0].id)
    assert [step["name"] for step in told["steps"]] == ["submitted", "started", "failed"]


def test_what_is_not_there_is_404(client: FlaskClient, database: Database) -> None:
    """No such job, another owner's, and what is no id."""
    (others,) = given.submitted(database, owner="bob")
    for ident in (others, new_id("job"), "job_x", "%00"):
        assert client.get(f"/v1/jobs/{ident}/timeline").status_code == 404
