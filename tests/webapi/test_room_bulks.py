"""Bulks that are larger than the queue: they come in as fast as there is room, and hold nothing while they wait."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from flask import Flask

from models import bulk_leases, bulks, jobs
from models.bulks import BULK_KIND
from models.db import AnyRow, Database
from stoker.settings import Settings
from tests.models import given
from tests.webapi.bulk_kit import Service, prompts
from webapi.app import create_app
from webapi.context import EXTENSION

LIMIT, TOTAL = 100, 400
FILLED = 90


@pytest.fixture
def app(settings: Settings) -> Iterator[Flask]:
    """Return the application, with room for a hundred jobs of an owner, and for four hundred of all."""
    made = create_app(settings.model_copy(update={"max_queued_per_owner": LIMIT, "max_queued": TOTAL}))
    yield made
    made.extensions[EXTENSION].close()


def row_of(database: Database, bulk_id: str) -> AnyRow:
    """Return a bulk's row."""
    (row,) = given.rows(database, bulks.table, bulks.table.c.id == bulk_id)
    return row


def waits(database: Database, bulk_id: str) -> bool:
    """Tell whether a bulk is to be tended again, and nobody holds it."""
    with database.reading() as tx:
        return bulk_leases.unattended(tx) == [bulk_id] and row_of(database, bulk_id).holder is None


def queued(database: Database) -> int:
    """Return how many jobs are queued."""
    return len(given.rows(database, jobs.table, jobs.table.c.state == "queued"))


def test_a_bulk_larger_than_the_limit_completes(service: Service, database: Database) -> None:
    """It fills what bulks may, waits as a running one, goes on when jobs have ended, and loses or doubles no line."""
    bulk_id = service.submit(prompts(250))
    document = service.tend(bulk_id)
    seen = []
    while document["state"] == "running":
        seen.append(queued(database))
        assert seen[-1] <= FILLED
        assert waits(database, bulk_id) == (row_of(database, bulk_id).total < 250)
        document = service.run(bulk_id)
    assert seen == [90, 90, 70]
    assert document["state"] == "completed"
    assert [job.line_no for job in service.jobs(bulk_id)] == list(range(1, 251))
    assert len(service.lines(bulk_id)) == 250


def test_a_bulk_that_waits_is_left_alone(service: Service, database: Database) -> None:
    """To be rung again and again changes nothing, until a sixteenth of the limit is free."""
    bulk_id = service.begin(prompts(250))
    before = row_of(database, bulk_id)
    service.tend(bulk_id)
    service.run(bulk_id, most=5)
    service.tend(bulk_id)
    assert row_of(database, bulk_id).line == before.line == FILLED
    service.run(bulk_id, most=1)
    assert row_of(database, bulk_id).line == FILLED + 6


def test_a_bulk_that_waits_leaves_room_for_single_jobs(service: Service) -> None:
    """Its owner can still hand in others, which wait behind nobody's upload."""
    service.begin(prompts(250))
    answer = service.client.post("/v1/jobs", json={"prompt": "hi", "lane": "realtime"})
    assert answer.status_code == 202
    assert service.post(prompts(1)).status_code == 202


def test_a_bulk_waits_for_what_others_have_queued(service: Service, database: Database) -> None:
    """When the whole queue is full it takes nothing, and goes on when there is room again."""
    ids = given.submitted(database, TOTAL - 10, owner="bob")
    bulk_id = service.begin(prompts(80))
    assert (row_of(database, bulk_id).line, waits(database, bulk_id)) == (0, True)
    given.cut(database, ids[:60])
    service.tend(bulk_id)
    assert (row_of(database, bulk_id).line, waits(database, bulk_id)) == (30, True)
    given.cut(database, ids[60:])
    service.tend(bulk_id)
    assert row_of(database, bulk_id).line == 80


def test_a_bulk_that_waits_can_be_cancelled(service: Service, database: Database) -> None:
    """What is left of its lines needs no room: all are accounted for."""
    bulk_id = service.begin(prompts(250))
    assert service.do(bulk_id, "cancel").status_code == 200
    document = service.tend(bulk_id)
    assert (document["state"], document["counts"]["cancelled"]) == ("cancelled", 250)


def test_a_bulk_that_waits_can_expire(service: Service, database: Database) -> None:
    """Its time goes by while it waits."""
    bulk_id = service.begin(prompts(250))
    given.change(database, bulks.table, bulks.table.c.kind == BULK_KIND, expires_at=1.0)
    document = service.tend(bulk_id)
    assert (document["state"], document["counts"]["expired"]) == ("expired", 250)


def test_two_bulks_of_an_owner_share_its_room(service: Service, database: Database) -> None:
    """The second waits for the first one's jobs, and both complete."""
    first, second = service.begin(prompts(85)), service.begin(prompts(60))
    assert (row_of(database, first).line, row_of(database, second).line) == (85, 5)
    assert service.run(first)["state"] == "completed"
    service.tend(second)
    assert row_of(database, second).line == 60
    assert service.run(second)["state"] == "completed"
