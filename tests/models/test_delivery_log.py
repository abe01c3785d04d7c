"""The log of deliveries: what is shown of them, and how they are sent once more."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import pytest
import sqlalchemy as sa

from models import deliveries, delivery_log
from models.db import AnyRow, Database
from models.deliveries import NewDelivery, table, tries
from models.delivery_log import Filters
from models.errors import NotEnded, NotFound, TestOnly, TriedTooOften
from tests.models import given


def stored(database: Database, count: int = 1, **fields: Any) -> list[str]:
    """Store deliveries of alice's; return their ids. `values` go into the rows past all guards."""
    values = fields.pop("values", {})
    news = [
        NewDelivery(
            **{"owner": "alice", "job_id": f"job_{nth}", "event": "job.failed", "url": "http://x.org", **fields}
        )
        for nth in range(count)
    ]
    with database.transaction() as tx:
        ids = deliveries.enqueue(tx, news)
    if values:
        with database.transaction() as tx:
            tx.execute(sa.update(table).where(table.c.id.in_(ids)).values(values))
    return ids


def tried(database: Database, webhook_id: str, *numbers: int) -> None:
    """Store failed tries."""
    rows = [{"delivery_id": webhook_id, "try": n, "at": 100.0 + n, "status": 500, "latency_ms": n} for n in numbers]
    with database.transaction() as tx:
        tx.execute(sa.insert(tries), rows)


def row(database: Database, delivery_id: str) -> AnyRow:
    """Return a delivery."""
    (found,) = given.rows(database, table, table.c.id == delivery_id)
    return found


def page(database: Database, filters: Filters, owner: str = "alice", after: str | None = None) -> Sequence[AnyRow]:
    """Return a page of two."""
    with database.reading() as tx:
        return delivery_log.page(tx, owner, filters, after=after, limit=2)[0]


def history(database: Database, delivery_id: str) -> list[tuple[int, int | None]]:
    """Return (number, status) of a delivery's tries."""
    with database.reading() as tx:
        found = delivery_log.history(tx, delivery_log.get(tx, "alice", delivery_id))
    return [(one.nth, one.status) for one in found]


def again(database: Database, delivery_id: str) -> None:
    """Redeliver."""
    with database.transaction() as tx:
        delivery_log.redeliver(tx, "alice", delivery_id)


def test_the_log_is_paged_and_filtered(database: Database) -> None:
    """Newest first, one owner's; secrets are not in it."""
    first, second, third = stored(database, 3)
    of_endpoint = stored(
        database, job_id="bulk_1", event="bulk.failed", endpoint_id="whe_1", values={"state": "failed"}
    )
    stored(database, owner="bob", job_id="job_b")
    assert [one.id for one in page(database, Filters())] == [*of_endpoint, third]
    assert [one.id for one in page(database, Filters(), after=third)] == [second, first]
    for filters in (
        Filters("failed"),
        Filters(event="bulk.failed"),
        Filters(endpoint_id="whe_1"),
        Filters(job_id="bulk_1"),
    ):
        assert [one.id for one in page(database, filters)] == of_endpoint
        assert page(database, filters, "bob") == []
    assert "secret" not in page(database, Filters())[0]._fields


def test_times_narrow_the_log_down(database: Database) -> None:
    """By the database's clock, the first moment included, the last not."""
    old, new = stored(database, 2)
    at = row(database, new).created_at
    given.change(database, table, table.c.id == old, created_at=at - 10)
    assert [one.id for one in page(database, Filters(since=at))] == [new]
    assert [one.id for one in page(database, Filters(until=at))] == [old]


def test_what_has_ended_can_be_sent_once_more(database: Database) -> None:
    """With the same id, at once, and the schedule from its beginning; the try, which fences, does not go back."""
    (delivery_id,) = stored(database, values={"state": "failed", "try": 10, "next_at": 1.0, "error": "500"})
    again(database, delivery_id)
    found = row(database, delivery_id)
    assert (found.state, found._mapping["try"], found.tries_before) == ("pending", 10, 10)
    assert found.next_at > 1.0


@pytest.mark.parametrize("state", ["pending", "sending", "noted"])
def test_only_what_has_ended_can_be_sent_once_more(database: Database, state: str) -> None:
    """What is on its way stays as it is; another owner's is not there."""
    (delivery_id,) = stored(database, values={"state": state, "try": 3})
    before = row(database, delivery_id)
    with pytest.raises(NotEnded):
        again(database, delivery_id)
    with pytest.raises(NotFound), database.transaction() as tx:
        delivery_log.redeliver(tx, "bob", delivery_id)
    assert row(database, delivery_id) == before


def test_many_at_once_send_a_delivery_once_more_once(database: Database) -> None:
    """The others are told that it is on its way."""
    (delivery_id,) = stored(database, values={"state": "failed", "try": 1})

    def work() -> bool:
        try:
            again(database, delivery_id)
        except NotEnded:
            return False
        return True

    assert sum(given.together([work] * 5)) == 1


def test_a_range_is_sent_once_more_page_by_page(database: Database) -> None:
    """Oldest first, each once, and only what was meant."""
    failed = stored(database, 5, endpoint_id="whe_1", values={"state": "failed", "try": 1})
    others = stored(database, 2, values={"state": "failed"})
    stored(database, 2, endpoint_id="whe_2", owner="bob", values={"state": "failed"})
    done = stored(database, 1, endpoint_id="whe_1", job_id="job_d", values={"state": "delivered"})
    counts, after = [], None
    while True:
        with database.transaction() as tx:
            many, after = delivery_log.redeliver_some(
                tx, "alice", Filters("failed", endpoint_id="whe_1"), after=after, limit=2
            )
        counts.append(many)
        if after is None:
            break
    assert counts == [2, 2, 1]
    found = {one.id: one.state for one in given.rows(database, table)}
    assert {found[one] for one in failed} == {"pending"}
    assert {found[one] for one in others} == {"failed"}
    assert found[done[0]] == "delivered"


def test_a_delivery_is_not_sent_again_without_end(database: Database) -> None:
    """The count of its tries never goes back, and a column holds it: from 1,000 on it is refused, and passed over."""
    (last,) = stored(database, job_id="job_l", values={"state": "failed", "try": delivery_log.MOST_TRIES - 1})
    (over,) = stored(database, job_id="job_o", values={"state": "delivered", "try": delivery_log.MOST_TRIES})
    (on_its_way,) = stored(database, job_id="job_w", values={"try": delivery_log.MOST_TRIES})
    with pytest.raises(TriedTooOften):
        again(database, over)
    with pytest.raises(NotEnded):
        again(database, on_its_way)
    with database.transaction() as tx:
        assert delivery_log.redeliver_some(tx, "alice", Filters(), after=None, limit=10) == (1, None)
    assert [row(database, one).state for one in (last, over)] == ["pending", "delivered"]


def test_a_test_is_not_sent_again(database: Database) -> None:
    """Neither alone nor in a range: whoever asked for it was answered."""
    (test,) = stored(database, job_id="test_1", endpoint_id="whe_1", values={"state": "failed", "try": 1})
    (other,) = stored(database, endpoint_id="whe_1", values={"state": "failed", "try": 1})
    before = row(database, test)
    with pytest.raises(TestOnly):
        again(database, test)
    with pytest.raises(NotFound), database.transaction() as tx:
        delivery_log.redeliver(tx, "bob", test)
    with database.transaction() as tx:
        asked = Filters("failed", endpoint_id="whe_1")
        assert delivery_log.redeliver_some(tx, "alice", asked, after=None, limit=10) == (1, None)
    assert row(database, test) == before
    assert row(database, other).state == "pending"


@pytest.mark.parametrize("purged", [False, True], ids=["redelivered", "purged"])
def test_the_last_two_of_a_group_leave_it_at_once(database: Database, *, purged: bool) -> None:
    """Neither sees that the other has left, until it has: the tries of the group go nevertheless."""
    first, second = stored(database, 2, values={"state": "failed", "try": 1, "group_id": "msg_g"})
    tried(database, "msg_g", 1)

    def leave() -> None:
        with database.transaction() as tx:
            if purged:
                delivery_log.purge(tx, [second])
            else:
                delivery_log.redeliver(tx, "alice", second)

    other = threading.Thread(target=leave)
    with database.transaction() as tx:
        delivery_log.redeliver(tx, "alice", first)
        other.start()
        other.join(0.5)
    other.join(30)
    assert [one for one in given.rows(database, tries) if one.delivery_id == "msg_g"] == []
    assert history(database, first) == [(1, 500)]


def test_history_outlives_the_group_and_the_success(database: Database) -> None:
    """Redelivered, a delivery goes alone, and keeps its tries: its own, its group's, the one that worked."""
    alone = {
        "state": "delivered",
        "try": 5,
        "tries_before": 2,
        "group_id": "msg_g",
        "delivered_at": 200.0,
        "status": 204,
    }
    first, second = stored(database, 2, values={**alone, "latency_ms": 7})
    tried(database, first, 1, 2)
    tried(database, "msg_g", 1, 2)
    again(database, first)
    assert history(database, first) == [(1, 500), (2, 500), (3, 500), (4, 500), (5, 204)]
    assert row(database, first).group_id is None
    assert history(database, second) == [(3, 500), (4, 500)]
    again(database, second)
    assert history(database, second) == [(3, 500), (4, 500), (5, 204)]
    assert [one for one in given.rows(database, tries) if one.delivery_id == "msg_g"] == []


def test_what_is_purged_takes_its_tries_with_it(database: Database) -> None:
    """A group's go with the last of its events."""
    first, second = stored(database, 2, values={"group_id": "msg_g"})
    other, alone = stored(database, 2, job_id="job_x", endpoint_id="whe_1")[:1], stored(database, job_id="job_y")
    for webhook_id in (first, "msg_g", *other, *alone):
        tried(database, webhook_id, 1)
    with database.transaction() as tx:
        delivery_log.purge(tx, [first, *alone])
    assert {one.delivery_id for one in given.rows(database, tries)} == {"msg_g", *other}
    with database.transaction() as tx:
        delivery_log.purge(tx, [second])
    assert {one.delivery_id for one in given.rows(database, tries)} == set(other)


def test_only_what_nobody_has_taken_is_given_up(database: Database) -> None:
    """A sender that has it goes on."""
    (waiting,) = stored(database)
    (taken,) = stored(database, job_id="job_t", values={"state": "sending"})
    with database.transaction() as tx:
        assert delivery_log.give_up(tx, waiting, "too late")
        assert not delivery_log.give_up(tx, taken, "too late")
    assert (row(database, waiting).state, row(database, waiting).error) == ("failed", "too late")
    assert row(database, taken).state == "sending"
