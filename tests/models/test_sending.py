"""Sending: parcels, groups that stay whole, and the health of endpoints."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

from models import deliveries, endpoint_health, endpoints, owed, sending
from models.db import Database, new_id, now
from models.deliveries import NewDelivery
from models.endpoint_health import News
from models.sending import Delivery, Ended, Try
from tests.models import given

OK = Try(ok=True, status=204, latency=0.0123)
BAD = Try(ok=False, status=500, latency=1.0, error="the receiver answered 500")


def endpoint(database: Database, **fields: Any) -> str:
    """Store an endpoint that takes events together; return its id."""
    ident = new_id("whe")
    values = {"id": ident, "owner": "alice", "name": "", "url": "http://127.0.0.1:1/new", "event_types": []}
    values |= {"include_result": False, "coalesce": 1.0, "secret": "new", "secret_hint": ""}
    with database.transaction() as tx:
        tx.execute(sa.insert(endpoints.table).values(created_at=now(), updated_at=now(), **values | fields))
    return ident


def tell(database: Database, endpoint_id: str, count: int, delay: float = 0.0) -> list[str]:
    """Put so many events for an endpoint into the outbox; return their ids."""
    with database.transaction() as tx:
        return deliveries.enqueue(
            tx,
            [
                NewDelivery(
                    "alice", new_id("job"), "job.failed", "http://127.0.0.1:1/old", endpoint_id=endpoint_id, delay=delay
                )
                for _ in range(count)
            ],
        )


def claim(database: Database, hold: float = 30.0) -> list[tuple[Delivery, ...]]:
    """Claim what is due; return parcels."""
    with database.reading() as tx:
        found = owed.due(tx, 10_000)
    with database.transaction() as tx:
        return sending.claim(tx, found, hold)


def record(database: Database, parcel: tuple[Delivery, ...], tried: Try, retry_in: float | None = None) -> int:
    """Store how a parcel's try ended; return how many rows were still ours."""
    with database.transaction() as tx:
        return len(sending.record(tx, [Ended(one, tried, retry_in) for one in parcel]))


def make_due(database: Database) -> None:
    """Let the time of every delivery come."""
    given.change(database, deliveries.table, next_at=1.0)


def test_when_the_first_is_due_all_go_together(database: Database) -> None:
    """What has not waited its time goes with it, in order; what comes later does not, and goes alone if it is alone."""
    mine = endpoint(database)
    ids = tell(database, mine, 3, delay=0.0) + tell(database, mine, 4, delay=100.0)
    (parcel,) = claim(database)
    assert [one.id for one in parcel] == sorted(ids)
    assert len({one.group_id for one in parcel}) == 1
    assert {(one.url, one.secrets) for one in parcel} == {("http://127.0.0.1:1/new", ("new",))}
    later = tell(database, mine, 1)
    ((other,),) = claim(database)
    assert (other.id, other.group_id) == (later[0], None)


def test_nothing_goes_before_the_first_is_due(database: Database) -> None:
    """Events wait for company."""
    tell(database, endpoint(database), 3, delay=100.0)
    assert claim(database) == []


def test_a_retry_sends_the_same_group(database: Database) -> None:
    """Same id, same events in the same order, fenced and recorded together; new events do not join it."""
    mine = endpoint(database)
    tell(database, mine, 5)
    (first,) = claim(database)
    assert record(database, first, BAD, retry_in=60.0) == 5
    tell(database, mine, 2)
    make_due(database)
    again, new = sorted(claim(database), key=len, reverse=True)
    assert [(one.id, one.group_id, one.count) for one in again] == [(one.id, one.group_id, 2) for one in first]
    assert len(new) == 2
    assert record(database, first, OK) == 0
    assert record(database, again, OK) == 5
    assert [(row.delivery_id, row._mapping["try"], row.status) for row in given.rows(database, deliveries.tries)] == [
        (first[0].group_id, 1, 500)
    ]


def test_a_group_whose_sender_died_is_whole_again(database: Database) -> None:
    """Its claim runs out for all of it, and the next sender gets all or nothing."""
    tell(database, endpoint(database), 50)
    (first,) = claim(database, hold=0.0)

    def work() -> list[tuple[Delivery, ...]]:
        return claim(database)

    taken = [parcel for some in given.together([work] * 4) for parcel in some]
    assert [[one.id for one in parcel] for parcel in taken] == [[one.id for one in first]]
    assert record(database, first, OK) == 0


def test_a_group_without_its_first_goes_on(database: Database) -> None:
    """One of a group that ended alone, since its job is gone, holds up none of the others."""
    tell(database, endpoint(database), 3)
    (parcel,) = claim(database)
    record(database, parcel[:1], BAD)
    record(database, parcel[1:], BAD, retry_in=0.0)
    (again,) = claim(database)
    assert [one.id for one in again] == [one.id for one in parcel[1:]]


def test_senders_at_once_make_one_group(database: Database) -> None:
    """Four senders find the same events due: none is in two groups, none is left."""
    ids = tell(database, endpoint(database), 100)
    taken = [parcel for some in given.together([lambda: claim(database)] * 4) for parcel in some]
    assert sorted(one.id for parcel in taken for one in parcel) == sorted(ids)


def test_a_request_holds_so_many_events_and_bytes(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is beyond either goes with the next; one that is too large goes alone."""
    monkeypatch.setattr(sending, "MOST_TOGETHER", 4)
    mine = endpoint(database)
    tell(database, mine, 10)
    assert [len(parcel) for _ in range(3) for parcel in claim(database)] == [4, 4, 2]
    monkeypatch.setattr(sending, "MOST_BYTES", 250)
    engine = given.engine(database)
    batch = given.running(database, engine, 5)
    ids = [job.id for job in batch.jobs]
    given.settled(database, batch.id, [given.answered(job_id, '"' + "x" * 98 + '"') for job_id in ids])
    large, url = endpoint(database, include_result=True), "http://127.0.0.1:1/old"
    with database.transaction() as tx:
        deliveries.enqueue(
            tx,
            [NewDelivery("alice", one, "job.succeeded", url, include_result=True, endpoint_id=large) for one in ids],
        )
    assert [len(parcel) for _ in range(3) for parcel in claim(database)] == [2, 2, 1]


def test_what_was_tried_alone_stays_alone(database: Database) -> None:
    """An endpoint that takes events together from now on: a delivery that was tried keeps its `webhook-id`."""
    mine = endpoint(database, coalesce=None)
    tell(database, mine, 1)
    ((alone,),) = claim(database)
    record(database, (alone,), BAD, retry_in=0.0)
    given.change(database, endpoints.table, coalesce=1.0)
    tell(database, mine, 2)
    assert sorted(len(parcel) for parcel in claim(database)) == [1, 2]
    assert len(given.rows(database, deliveries.table, deliveries.table.c.group_id.is_(None))) == 1


def test_the_size_of_a_request_is_that_of_what_was_asked_for(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Events that wait with their results count with them, whatever the endpoint asks for by now."""
    monkeypatch.setattr(sending, "MOST_BYTES", 250)
    batch = given.running(database, given.engine(database), 6)
    ids = [job.id for job in batch.jobs]
    given.settled(database, batch.id, [given.answered(job_id, '"' + "x" * 98 + '"') for job_id in ids])
    large, small = endpoint(database, include_result=False), endpoint(database, include_result=True)
    url = "http://127.0.0.1:1/"
    for which, ident in ((True, large), (False, small)):
        new = [NewDelivery("a", one, "job.succeeded", url, include_result=which, endpoint_id=ident) for one in ids]
        with database.transaction() as tx:
            deliveries.enqueue(tx, new)
    parcels = [parcel for _ in range(3) for parcel in claim(database)]
    sizes = {ident: [len(some) for some in parcels if some[0].endpoint_id == ident] for ident in (large, small)}
    assert sizes == {large: [2, 2, 2], small: [6]}


def test_deliveries_follow_their_endpoint_to_another_host(database: Database) -> None:
    """What waited for the old host is not sent before it is counted at the new one; tried, fresh and in groups."""
    together, alone = endpoint(database), endpoint(database, coalesce=None)
    tell(database, together, 3)
    (group,) = claim(database)
    record(database, group, BAD, retry_in=0.0)
    tell(database, together, 2)
    tell(database, alone, 2)
    other = tell(database, endpoint(database, coalesce=None), 1)
    given.change(
        database, endpoints.table, endpoints.table.c.id.in_([together, alone]), url="http://New.Example.com:81/"
    )
    with database.reading() as tx:
        found = owed.due(tx, 100)
    with database.transaction() as tx:
        assert [[one.id for one in parcel] for parcel in sending.claim(tx, found, 30.0)] == [other]
    waiting = deliveries.table.c.id != other[0]
    assert {row.host for row in given.rows(database, deliveries.table, waiting)} == {"new.example.com"}
    parcels = claim(database)
    assert sorted(map(len, parcels)) == [1, 1, 2, 3]
    assert {one.host for parcel in parcels for one in parcel} == {"new.example.com"}
    assert group[0].group_id in {parcel[0].group_id for parcel in parcels}


@pytest.mark.parametrize(
    ("change", "why"),
    [({"disabled_at": 1.0}, "the endpoint is disabled"), (None, "the endpoint was deleted")],
    ids=["disabled", "deleted"],
)
def test_what_has_no_endpoint_any_more_is_dead(database: Database, change: dict[str, Any] | None, why: str) -> None:
    """Its deliveries are claimed, to end with the reason."""
    mine = endpoint(database)
    tell(database, mine, 2)
    if change is None:
        with database.transaction() as tx:
            tx.execute(sa.delete(endpoints.table))
    else:
        given.change(database, endpoints.table, **change)
    assert {one.dead for parcel in claim(database) for one in parcel} == {why}


def test_the_old_secret_signs_until_its_time_is_over(database: Database) -> None:
    """While a secret rotates a delivery has both."""
    mine = endpoint(database, old_secret="old", old_secret_until=5e9)
    tell(database, mine, 1)
    assert claim(database, hold=0.0)[0][0].secrets == ("new", "old")
    given.change(database, endpoints.table, old_secret_until=1.0)
    assert claim(database)[0][0].secrets == ("new",)


def health(database: Database, days: float = 5.0, **found: set[str]) -> dict[str, str]:
    """Tell of tries."""
    urls = {row.id: row.url for row in given.rows(database, endpoints.table)}
    news = News(**{name: frozenset((one, urls[one]) for one in ids) for name, ids in found.items()})
    with database.transaction() as tx:
        return endpoint_health.tell(tx, news, days)


def test_an_endpoint_that_only_fails_is_disabled(database: Database) -> None:
    """After so many days without a success, not before; the log of deliveries has a note that nobody sends."""
    mine = endpoint(database)
    assert health(database, failed={mine}) == {}
    (row,) = given.rows(database, endpoints.table)
    assert row.failing_since is not None
    assert health(database, worked={mine}, failed={mine}) == {}
    assert given.rows(database, endpoints.table)[0].failing_since is None
    health(database, failed={mine})
    given.change(database, endpoints.table, failing_since=row.failing_since - 5 * 86_400 - 1)
    assert health(database, failed={mine}) == {mine: "every try has failed for 5 days"}
    assert health(database, failed={mine}) == {}
    (row,) = given.rows(database, endpoints.table)
    assert (row.disabled_at is not None, row.disabled_why) == (True, "every try has failed for 5 days")
    (note,) = given.rows(database, deliveries.table)
    assert (note.event, note.state, note.endpoint_id, note.error) == (
        endpoint_health.NOTE,
        "noted",
        mine,
        row.disabled_why,
    )
    assert claim(database) == []


def test_what_failed_long_ago_does_not_count(database: Database) -> None:
    """With nothing sent in between, one failure in January and one in June are no five days of failures."""
    mine, day = endpoint(database), endpoint_health.DAY
    health(database, failed={mine})
    (row,) = given.rows(database, endpoints.table)
    given.change(
        database,
        endpoints.table,
        failing_since=row.failing_since - 150 * day,
        last_failed_at=row.failing_since - 6 * day,
    )
    assert health(database, failed={mine}) == {}
    (anew,) = given.rows(database, endpoints.table)
    assert anew.failing_since >= row.failing_since
    assert anew.last_failed_at == anew.failing_since
    given.change(
        database, endpoints.table, failing_since=row.failing_since - 6 * day, last_failed_at=row.failing_since - 4 * day
    )
    assert list(health(database, failed={mine})) == [mine]
    assert given.rows(database, endpoints.table)[0].last_failed_at >= row.failing_since


def test_the_tries_of_one_event_are_one_series(database: Database) -> None:
    """They are up to a day apart, which is no silence, also where an endpoint is disabled after an hour."""
    mine = endpoint(database)
    health(database, days=0.05, failed={mine})
    (row,) = given.rows(database, endpoints.table)
    long_ago = row.failing_since - 1.1 * endpoint_health.DAY
    given.change(database, endpoints.table, failing_since=long_ago, last_failed_at=long_ago)
    assert list(health(database, days=0.05, failed={mine})) == [mine]


def test_an_endpoint_that_is_gone_is_disabled_at_once(database: Database) -> None:
    """As often as it is enabled and gone again, each with a note of its own."""
    mine = endpoint(database)
    for _ in range(2):
        assert list(health(database, gone={mine})) == [mine]
        given.change(database, endpoints.table, disabled_at=None)
    assert len(given.rows(database, deliveries.table)) == 2


def test_news_of_an_old_url_says_nothing_of_the_new_one(database: Database) -> None:
    """An endpoint that has moved while a try was on its way is neither disabled nor judged by how that ended."""
    mine = endpoint(database)
    old = frozenset({(mine, "http://127.0.0.1:1/old")})
    with database.transaction() as tx:
        assert endpoint_health.tell(tx, News(gone=old), 5.0) == {}
        assert endpoint_health.tell(tx, News(failed=old), 5.0) == {}
    (row,) = given.rows(database, endpoints.table)
    assert (row.disabled_at, row.failing_since) == (None, None)
    health(database, failed={mine})
    with database.transaction() as tx:
        endpoint_health.tell(tx, News(worked=old), 5.0)
    assert given.rows(database, endpoints.table)[0].failing_since is not None
