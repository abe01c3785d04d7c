"""Webhook endpoints: what an owner keeps of them, and who is told of an event."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from models import endpoints
from models.db import AnyRow, Database
from models.endpoints import NewEndpoint
from models.errors import NotFound, TooManyEndpoints
from tests.models import given


def made(database: Database, owner: str = "alice", **fields: Any) -> AnyRow:
    """Store an endpoint."""
    values = {"name": "n", "url": "http://127.0.0.1:1/", "event_types": ["job.failed"], "secret": "s", **fields}
    with database.transaction() as tx:
        return endpoints.create(tx, NewEndpoint(owner=owner, secret_hint="whsec_...1", **values))


def update(database: Database, row: AnyRow, owner: str = "alice", **fields: Any) -> AnyRow:
    """Change an endpoint."""
    with database.transaction() as tx:
        return endpoints.update(tx, owner, row.id, **fields)


def test_pages_are_newest_first_and_one_owners(database: Database) -> None:
    """Each page begins behind the last id of the page before; nothing of another owner is in it."""
    mine = [made(database).id for _ in range(5)]
    made(database, "bob")
    with database.reading() as tx:
        first, more = endpoints.page(tx, "alice", limit=3)
        rest, last = endpoints.page(tx, "alice", after=first[-1].id, limit=3)
    assert [row.id for row in [*first, *rest]] == mine[::-1]
    assert (more, last) == (True, False)


def test_an_endpoint_of_another_owner_is_none(database: Database) -> None:
    """It cannot be looked at, changed, rotated or deleted, and stays as it is."""
    row = made(database)
    for work in (
        lambda tx: endpoints.get(tx, "bob", row.id),
        lambda tx: endpoints.update(tx, "bob", row.id, name="x"),
        lambda tx: endpoints.rotate(tx, "bob", row.id, "s", "h", keep_old=False),
        lambda tx: endpoints.delete(tx, "bob", row.id),
    ):
        with pytest.raises(NotFound), database.transaction() as tx:
            work(tx)
    assert given.rows(database, endpoints.table) == [row]


def test_an_owner_has_so_many_endpoints_and_no_more(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when many are made at once; another owner has its own number."""
    monkeypatch.setattr(endpoints, "MOST", 3)

    def work() -> bool:
        try:
            made(database)
        except TooManyEndpoints:
            return False
        return True

    assert sum(given.together([work] * 8)) == 3
    made(database, "bob")


def test_few_endpoints_of_an_owner_ask_for_events_of_jobs(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each costs a row with each end of a job. Disabled ones count; made or changed, alone or many at once."""
    monkeypatch.setattr(endpoints, "MOST_OF_JOBS", 3)
    plain = [made(database, event_types=["bulk.failed"]) for _ in range(3)]
    first = made(database, event_types=["bulk.failed", "response.failed"], enabled=False)

    def make() -> bool:
        try:
            made(database, event_types=["job.succeeded"])
        except TooManyEndpoints:
            return False
        return True

    def change(row: AnyRow) -> bool:
        try:
            update(database, row, event_types=["job.succeeded"])
        except TooManyEndpoints as error:
            assert "3 webhook endpoints that ask for job.* or response.* events" in str(error)  # noqa: PT017  # of many
            return False
        return True

    works = [make, make, make, *(lambda row=row: change(row) for row in plain)]
    assert sum(given.together(works)) == 2
    assert sum("job.succeeded" in row.event_types for row in given.rows(database, endpoints.table)) == 2
    assert update(database, first, event_types=["job.failed"]).event_types == ["job.failed"]
    assert made(database, event_types=["batch.completed"]).event_types == ["batch.completed"]
    made(database, "bob")
    update(database, first, event_types=["bulk.failed"])
    assert make()


def test_two_that_are_changed_at_once_are_both_counted(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second waits until the first is stored, and is refused."""
    monkeypatch.setattr(endpoints, "MOST_OF_JOBS", 1)
    first, second = (made(database, event_types=["bulk.failed"]) for _ in range(2))
    refused = threading.Event()

    def change() -> None:
        try:
            update(database, second, event_types=["job.failed"])
        except TooManyEndpoints:
            refused.set()

    other = threading.Thread(target=change)
    with database.transaction() as tx:
        endpoints.update(tx, "alice", first.id, event_types=["job.failed"])
        other.start()
        other.join(0.5)
    other.join(30)
    assert refused.is_set()


def test_what_changes_nothing_is_no_change(database: Database) -> None:
    """The time of the last change is that of the last change."""
    row = made(database, coalesce=1.5, event_types=["job.failed", "bulk.failed"])
    same: dict[str, Any] = {"name": "n", "coalesce": 1.5, "event_types": ["job.failed", "bulk.failed"], "enabled": True}
    assert update(database, row, **same) == row
    changed = update(database, row, coalesce=None)
    assert changed.coalesce is None
    assert changed.updated_at > row.updated_at


def test_one_that_was_disabled_is_judged_anew_when_it_is_enabled(database: Database) -> None:
    """Nothing of why it was disabled is left; other changes do not enable it."""
    row = made(database)
    given.change(database, endpoints.table, disabled_at=5.0, disabled_why="410", failing_since=1.0)
    assert update(database, row, name="other").disabled_at == 5.0
    enabled = update(database, row, enabled=True)
    assert (enabled.disabled_at, enabled.disabled_why, enabled.failing_since) == (None, None, None)
    disabled = update(database, row, enabled=False)
    assert disabled.disabled_at is not None
    assert disabled.disabled_why == endpoints.BY_OWNER


def test_the_old_secret_signs_for_a_day_when_it_is_kept(database: Database) -> None:
    """Rotated without keeping it, the one before is gone at once."""
    row = made(database, secret="first")
    with database.transaction() as tx:
        kept = endpoints.rotate(tx, "alice", row.id, "second", "h2", keep_old=True)
    assert (kept.secret, kept.old_secret, kept.secret_hint) == ("second", "first", "h2")
    assert kept.old_secret_until - kept.updated_at == pytest.approx(86_400, abs=1)
    with database.transaction() as tx:
        gone = endpoints.rotate(tx, "alice", row.id, "third", "h3", keep_old=False)
    assert (gone.secret, gone.old_secret, gone.old_secret_until) == ("third", None, None)


def test_only_enabled_endpoints_of_these_owners_are_told(database: Database) -> None:
    """A disabled one is not, nor is one of an owner who was not asked for."""
    first = made(database, include_result=True, coalesce=2.0)
    made(database, enabled=False)
    made(database, "carol")
    other = made(database, "bob")
    with database.reading() as tx:
        found = endpoints.subscribers(tx, ["alice", "bob"])
    assert [(one.id, one.owner, one.include_result, one.coalesce) for one in found] == [
        (first.id, "alice", True, 2.0),
        (other.id, "bob", False, None),
    ]
    assert found[0].event_types == ["job.failed"]
