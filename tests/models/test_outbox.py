"""The outbox: who is told of an end, in the transaction of that end."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

from models import bulks, deliveries, endpoints, ends, event_types, jobs
from models.db import AnyRow, Database, new_id
from models.deliveries import NewDelivery
from models.endpoints import NewEndpoint
from models.ends import Settled
from models.jobs import Webhook
from models.results import NewResult
from tests.models import given


def endpoint(database: Database, *events: str, owner: str = "alice", **fields: Any) -> str:
    """Store an endpoint that is told of these events; return its id."""
    new = NewEndpoint(owner, "n", "http://Hooks.Example.com:80/x", events, "sealed", "hint", **fields)
    with database.transaction() as tx:
        return str(endpoints.create(tx, new).id)


def told(database: Database) -> list[tuple[str, str, str]]:
    """Return (subject, event, endpoint) of what was enqueued."""
    return sorted((row.job_id, row.event, row.endpoint_id) for row in given.rows(database, deliveries.table))


def end(database: Database, job_id: str, state: str, body: str | None = None) -> None:
    """End a job as an engine would."""
    batch = new_id("batch")
    result = NewResult(200, body) if state == "succeeded" else NewResult(400, None, "bad", "no")
    with database.transaction() as tx:
        jobs.move(tx, "batched", jobs.table.c.id == job_id, batch_id=batch)
        jobs.move(tx, "running", jobs.table.c.id == job_id)
        ends.settle(tx, "engine", {batch: [Settled(job_id, state, result)]})


def cancel(database: Database, ids: list[str]) -> None:
    """Cancel jobs in one transaction."""
    with database.transaction() as tx:
        for job_id in ids:
            ends.cancel(tx, "alice", job_id)


def test_the_jobs_own_url_and_each_endpoint_are_told(database: Database) -> None:
    """Each once, of what it asked for; nobody else's endpoint is."""
    both = endpoint(database, "job.cancelled", "job.succeeded")
    one = endpoint(database, "job.succeeded")
    endpoint(database, "job.cancelled", owner="bob")
    endpoint(database, "job.cancelled", enabled=False)
    (with_hook,) = given.submitted(database, webhook=given.HOOK)
    (without,) = given.submitted(database)
    cancel(database, [with_hook])
    end(database, without, "succeeded", "{}")
    assert told(database) == sorted(
        [
            (with_hook, "job.cancelled", ""),
            (with_hook, "job.cancelled", both),
            (without, "job.succeeded", both),
            (without, "job.succeeded", one),
        ]
    )


def test_a_delivery_to_an_endpoint_is_made_of_it(database: Database) -> None:
    """Its URL, host and wish for results; no secret, since the endpoint may get another one; it waits for others."""
    endpoint_id = endpoint(database, "job.cancelled", include_result=True, coalesce=30.0)
    cancel(database, given.submitted(database, webhook=Webhook("http://127.0.0.1:5/", "whsec_x")))
    hook, row = sorted(given.rows(database, deliveries.table), key=lambda found: str(found.endpoint_id))
    assert (row.endpoint_id, row.url, row.host) == (endpoint_id, "http://Hooks.Example.com:80/x", "hooks.example.com")
    assert (row.secret, row.include_result, row.state, row.owner) == (None, True, "pending", "alice")
    assert row.next_at - row.created_at == pytest.approx(30.0, abs=0.5)
    assert (hook.secret, hook.host, hook.include_result) == ("whsec_x", "127.0.0.1", False)
    assert hook.next_at == pytest.approx(hook.created_at, abs=0.5)


@pytest.mark.parametrize(
    ("state", "body", "event"),
    [
        ("succeeded", '{"status":"completed","output":[]}', "response.completed"),
        ("succeeded", '{"output":[{"status":"x"}],"status":"incomplete"}', "response.incomplete"),
        ("succeeded", "[]", "response.completed"),
        ("succeeded", "not json", "response.completed"),
        pytest.param("succeeded", '{"a":' + "[" * 100_000 + "]" * 100_000 + "}", "response.completed", id="deep"),
        ("failed", None, "response.failed"),
    ],
)
def test_a_response_has_two_names(database: Database, state: str, body: str | None, event: str) -> None:
    """It is a job and a response, whatever its answer looks like; incomplete is what the answer itself says."""
    endpoint_id = endpoint(database, *event_types.ALL)
    (job_id,) = given.submitted(database, endpoint="/v1/responses")
    end(database, job_id, state, body)
    assert told(database) == sorted([(job_id, f"job.{state}", endpoint_id), (job_id, event, endpoint_id)])


def test_responses_that_expire_have_failed(database: Database) -> None:
    """OpenAI has no event for one that expired."""
    endpoint_id = endpoint(database, *event_types.RESPONSES)
    (job_id,) = given.submitted(database, endpoint="/v1/responses")
    with database.transaction() as tx:
        moved = jobs.move(tx, "expired", jobs.table.c.id == job_id)
        ends.record(tx, [(row, "expired", None) for row in moved])
    assert told(database) == [(job_id, "response.failed", endpoint_id)]


@pytest.mark.parametrize("kind", ["bulk", "batch"])
def test_bulks_and_batches_are_told_of(database: Database, kind: str) -> None:
    """Their own webhook and the endpoints that asked, under the name of their kind."""
    endpoint_id = endpoint(database, f"{kind}.cancelled")
    endpoint(database, "bulk.completed", "batch.completed")
    with database.transaction() as tx:
        made = bulks.create(tx, bulks.NewBulk("alice", kind, "bulk", webhook_url="http://127.0.0.1:1/"))
        bulks.cancel(tx, "alice", made.id)
        (row,) = bulks.move(tx, "cancelled", bulks.table.c.id == made.id)
        bulks.announce(tx, row)
    assert told(database) == sorted([(made.id, f"{kind}.cancelled", ""), (made.id, f"{kind}.cancelled", endpoint_id)])


def test_an_end_that_is_rolled_back_was_never_told(database: Database) -> None:
    """Also to endpoints: the outbox is part of the transaction."""
    endpoint(database, *event_types.ALL)
    (job_id,) = given.submitted(database)
    with database.engine.connect() as tx:
        ends.cancel(tx, "alice", job_id)
        tx.rollback()
    assert told(database) == []


def test_an_end_is_told_once(database: Database) -> None:
    """What is in the outbox stays as it is, and the transaction goes on."""
    new = NewDelivery("alice", "job_1", "job.failed", "http://127.0.0.1:1/")
    with database.transaction() as tx:
        deliveries.enqueue(tx, [new])
    given.change(database, deliveries.table, state="delivered")
    with database.transaction() as tx:
        deliveries.enqueue(tx, [new, NewDelivery("alice", "job_2", "job.failed", "http://127.0.0.1:1/")])
    assert sorted((row.job_id, row.state) for row in given.rows(database, deliveries.table)) == [
        ("job_1", "delivered"),
        ("job_2", "pending"),
    ]


def test_owners_without_endpoints_cost_one_query(database: Database) -> None:
    """However many jobs end in a transaction."""
    ids = given.submitted(database, 50)
    seen: list[str] = []
    with database.transaction() as tx:
        moved: list[AnyRow] = list(jobs.move(tx, "cancelled", jobs.table.c.id.in_(ids)))
        sa.event.listen(tx, "before_cursor_execute", lambda *args: seen.append(args[2]))
        ends.record(tx, [(row, "cancelled", None) for row in moved])
    assert len([one for one in seen if "webhook_endpoints" in one]) == 1
    assert not [one for one in seen if "deliveries" in one or "bodies" in one]
