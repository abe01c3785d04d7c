"""The sender and endpoints: events that go together, endpoints that fail, hosts that hang, on real HTTP."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy as sa
from prometheus_client import REGISTRY
from standardwebhooks import Webhook as Standard

from models import deliveries, endpoint_health, endpoints, jobs, sealing
from models.db import Database, new_id, now
from models.deliveries import NewDelivery
from models.secrets import secret_of
from stoker.settings import Settings, load
from tasks import lineup, webhook
from tests.models import given
from tests.receivers import Received, Receiver, Reply, receiver
from tests.tasks.inprocess import until

SECRET, OLD = (secret_of(text) for text in (b"the secret of an endpoint, 32 b.", b"the secret it had before, 32 b.."))
KEY = sealing.new_key()


@pytest.fixture
def hooks() -> Iterator[Receiver]:
    """Run a receiver."""
    with receiver() as running:
        yield running


def settings_with(**more: Any) -> Settings:
    """Return settings that allow loopback, with a schedule that does not wait."""
    values = {"webhook_allow_cidrs": "127.0.0.0/8", "webhook_schedule": "0,0,0", "engine": "fake", "secret_key": KEY}
    return load(**{"webhook_secret": SECRET, "webhook_timeout": 5.0, **values, **more})


def endpoint(database: Database, url: str, **fields: Any) -> str:
    """Store an endpoint; return its id."""
    ident = new_id("whe")
    values = {"id": ident, "owner": "owner", "name": "", "url": url, "event_types": [], "include_result": False}
    values |= {"secret": sealing.Seal([KEY]).close(SECRET), "secret_hint": ""}
    with database.transaction() as tx:
        tx.execute(sa.insert(endpoints.table).values(created_at=now(), updated_at=now(), **values | fields))
    return ident


def tell(database: Database, url: str, count: int = 1, endpoint_id: str = "", *, test: bool = False) -> list[str]:
    """End so many jobs that a URL or an endpoint is told of; return their ids."""
    ids = given.submitted(database, count, owner="owner")
    given.change(database, jobs.table, state="succeeded", finished_at=1.0)
    told = [new_id("test") for _ in ids] if test else ids
    with database.transaction() as tx:
        deliveries.enqueue(
            tx, [NewDelivery("owner", one, "job.succeeded", url, endpoint_id=endpoint_id) for one in told]
        )
    return told


def send(database: Database, settings: Settings, **more: Any) -> int:
    """Send what is due; every name leads to loopback."""
    family = webhook.egress.socket.AF_INET
    return webhook.deliver_due(database, settings, look=lambda _host, _port: [(family, "127.0.0.1")], **more)


def test_events_go_together(database: Database, hooks: Receiver) -> None:
    """One request with one id, signed, all events in it; again, byte by byte, until it is heard."""
    replies = iter([Reply(500), Reply(200)])
    hooks.answer = lambda _: next(replies)
    mine = endpoint(database, hooks.url, coalesce=1.0)
    ids = tell(database, hooks.url, 25, mine)
    assert send(database, settings_with()) == 50
    first, second = hooks.received
    assert (first.body, first.headers["webhook-id"]) == (second.body, second.headers["webhook-id"])
    told = Standard(SECRET).verify(second.body, dict(second.headers))
    assert told["id"] == second.headers["webhook-id"]
    assert [one["data"]["id"] for one in told["data"]] == ids
    rows = given.rows(database, deliveries.table)
    assert {(row.state, row.group_id, row._mapping["try"]) for row in rows} == {("delivered", told["id"], 2)}


def test_an_endpoint_signs_with_its_own_secrets(sqlite_database: Database, hooks: Receiver) -> None:
    """They are stored sealed; the old one signs as well while its time lasts."""
    old = sealing.Seal([KEY]).close(OLD)
    mine = endpoint(sqlite_database, f"{hooks.url}/new", old_secret=old, old_secret_until=5e9)
    tell(sqlite_database, f"{hooks.url}/old", 1, mine)
    send(sqlite_database, settings_with(webhook_secret=""))
    (got,) = hooks.received
    assert got.path == "/new"
    for secret in (SECRET, OLD):
        Standard(secret).verify(got.body, dict(got.headers))


def test_a_secret_that_cannot_be_opened_is_tried_again(sqlite_database: Database, hooks: Receiver) -> None:
    """Nothing is sent, the delivery waits and says why, and the endpoint's health is not ours to judge by it."""
    tell(sqlite_database, hooks.url, 1, endpoint(sqlite_database, hooks.url))
    send(sqlite_database, settings_with(secret_key=sealing.new_key(), webhook_schedule="0,100"))
    (row,) = given.rows(sqlite_database, deliveries.table)
    assert row.state == "pending"
    assert row.error.startswith("the signing secret cannot be opened")
    assert hooks.received == []
    assert given.rows(sqlite_database, endpoints.table)[0].failing_since is None


def test_gone_disables_the_endpoint(database: Database, hooks: Receiver) -> None:
    """After a 410 nothing more is sent there: what waited fails, with the reason."""
    hooks.answer = lambda _: Reply(410)
    mine = endpoint(database, hooks.url)
    tell(database, hooks.url, 1, mine)
    send(database, settings_with())
    tell(database, hooks.url, 3, mine)
    send(database, settings_with())
    assert len(hooks.received) == 1
    ended = Counter((row.state, row.error) for row in given.rows(database, deliveries.table))
    assert ended == {
        ("failed", "the receiver answered 410"): 1,
        ("failed", "the endpoint is disabled"): 3,
        ("noted", "the receiver answered 410: it is gone for good"): 1,
    }


def test_an_endpoint_that_fails_for_days_is_disabled(sqlite_database: Database, hooks: Receiver) -> None:
    """The first failure is noted, a success wipes it out, the failure after so many days disables."""
    hooks.answer = lambda _: Reply(500)
    settings = settings_with(webhook_schedule="0")
    mine = endpoint(sqlite_database, hooks.url)
    tell(sqlite_database, hooks.url, 1, mine)
    send(sqlite_database, settings)
    (row,) = given.rows(sqlite_database, endpoints.table)
    assert (row.failing_since is not None, row.disabled_at) == (True, None)
    given.change(sqlite_database, endpoints.table, failing_since=row.failing_since - 6 * endpoint_health.DAY)
    tell(sqlite_database, hooks.url, 1, mine)
    send(sqlite_database, settings)
    assert given.rows(sqlite_database, endpoints.table)[0].disabled_at is not None


def test_a_test_is_tried_once(sqlite_database: Database, hooks: Receiver) -> None:
    """Whoever asked for it waits: it is not tried again, goes alone, and says nothing of the endpoint's health."""
    hooks.answer = lambda _: Reply(500)
    mine = endpoint(sqlite_database, hooks.url, coalesce=1.0)
    tell(sqlite_database, hooks.url, 2, mine, test=True)
    assert send(sqlite_database, settings_with()) == 2
    assert {row.state for row in given.rows(sqlite_database, deliveries.table)} == {"failed"}
    assert given.rows(sqlite_database, endpoints.table)[0].failing_since is None


def test_every_try_that_failed_is_kept(database: Database, hooks: Receiver) -> None:
    """By number, with status and reason; after a redelivery the numbers go on, and the schedule begins anew."""
    hooks.answer = lambda _: Reply(503)
    tell(database, hooks.url)
    send(database, settings_with())
    given.change(
        database, deliveries.table, state="pending", next_at=1.0, tries_before=deliveries.table.c["try"], group_id=None
    )
    send(database, settings_with())
    kept = given.rows(database, deliveries.tries)
    assert [(row._mapping["try"], row.status, row.error) for row in kept] == [
        (number, 503, "the receiver answered 503") for number in range(1, 7)
    ]


def test_one_of_ten_hosts_hangs(database: Database, hooks: Receiver) -> None:
    """With far more due there than may be on their way, the other nine get theirs at once; it has its places only."""
    most: list[int] = []

    def answer(got: Received) -> Reply:
        if got.path != "/hang":
            return Reply()
        most.append(sum(one.path == "/hang" for one in hooks.received))
        return hooks.hang(got)

    hooks.answer = answer
    tell(database, f"http://h0.example.com:{hooks.port}/hang", 600)
    for number in range(1, 10):
        tell(database, f"http://h{number}.example.com:{hooks.port}/ok", 10)
    stopping = threading.Event()
    settings = settings_with(webhook_per_host=4, webhook_at_once=16, webhook_timeout=60.0)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(send, database, settings, stopping=stopping)
        until(lambda: sum(one.path == "/ok" for one in hooks.received) == 90)
        arrived = Counter(one.path for one in hooks.received)
        stopping.set()
        hooks.released.set()
        running.result()
    assert arrived["/ok"] == 90
    assert max(most) == 4


def test_a_ring_is_heard_by_the_sender_that_runs(sqlite_database: Database, hooks: Receiver) -> None:
    """While its requests hang a sender learns of more at once, and there is no second one beside it."""
    hooks.answer = lambda got: hooks.hang(got) if got.path == "/hang" else Reply()
    bell = webhook.Bell()
    tell(sqlite_database, f"{hooks.url}/hang")
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(send, sqlite_database, settings_with(webhook_timeout=60.0), bell=bell)
        until(lambda: len(hooks.received) == 1)
        took = []
        for number in range(3):
            tell(sqlite_database, f"{hooks.url}/ok")
            began = time.monotonic()
            bell.ring()
            until(lambda: len(hooks.received) == number + 2)  # noqa: B023  # asked at once
            took.append(time.monotonic() - began)
        hooks.released.set()
        assert running.result() == 4
    assert min(took) < 0.5


def test_a_failed_job_of_a_group_is_told_as_it_was(sqlite_database: Database, hooks: Receiver) -> None:
    """A job that is not stored any more leaves the group; the others go on without it."""
    mine = endpoint(sqlite_database, hooks.url, coalesce=1.0)
    ids = tell(sqlite_database, hooks.url, 3, mine)
    with sqlite_database.transaction() as tx:
        tx.execute(sa.delete(jobs.table).where(jobs.table.c.id == ids[0]))
    send(sqlite_database, settings_with())
    (got,) = hooks.received
    assert [one["data"]["id"] for one in json.loads(got.body)["data"]] == ids[1:]
    states = {row.job_id: row.state for row in given.rows(sqlite_database, deliveries.table)}
    assert [states[one] for one in ids] == ["failed", "delivered", "delivered"]


@pytest.fixture
def far_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a look go through few hosts: fewer than there are."""
    monkeypatch.setattr(lineup, "MOST_SEEN", 20)
    monkeypatch.setattr(lineup, "HOSTS_AT_ONCE", 5)
    monkeypatch.setattr(lineup, "HOPS", 2)


def wait_for_days(database: Database, hosts: int) -> None:
    """Store so many deliveries of another owner, each to a host of its own, whose next try is far away."""
    urls = [f"http://a{number:03}.example.com:1/" for number in range(hosts)]
    with database.transaction() as tx:
        deliveries.enqueue(tx, [NewDelivery("m", new_id("job"), "job.failed", url, delay=9e4) for url in urls])


@pytest.mark.usefixtures("far_away")
def test_a_sender_ends_only_when_it_has_seen_all(database: Database, hooks: Receiver) -> None:
    """With many due behind more hosts than one look goes through, none of which has one due, all are sent."""
    wait_for_days(database, 45)
    tell(database, f"http://zzz.example.com:{hooks.port}/", 40)
    assert send(database, settings_with()) == 40
    assert len(hooks.received) == 40


@pytest.mark.usefixtures("far_away")
def test_the_next_run_goes_on_where_the_last_was(sqlite_database: Database, hooks: Receiver) -> None:
    """One that was cut off leaves its place among the hosts to the next run of its process."""
    wait_for_days(sqlite_database, 45)
    tell(sqlite_database, f"http://zzz.example.com:{hooks.port}/", 40)
    line = lineup.Lineup(per_host=8, at_once=16)
    for _ in range(4):
        with sqlite_database.reading() as tx:
            line.look(tx, lineup.Busy())
    asked: list[str | None] = []
    with pytest.MonkeyPatch.context() as patch:
        hosts = lineup.owed.due_hosts
        patch.setattr(lineup.owed, "due_hosts", lambda tx, after, most: asked.append(after) or hosts(tx, after, most))
        assert send(sqlite_database, settings_with(webhook_at_once=16), lineup=line) == 40
    assert asked[0] == "a039.example.com"


def test_an_owner_with_many_hosts_that_hang_holds_up_no_other(database: Database, hooks: Receiver) -> None:
    """It has half of the places, whatever its hosts; another's event is sent beside them."""
    hooks.answer = lambda got: hooks.hang(got) if got.path == "/hang" else Reply()
    for number in range(12):
        tell(database, f"http://h{number}.example.com:{hooks.port}/hang")
    given.change(database, deliveries.table, owner="mallory")
    tell(database, f"http://z.example.com:{hooks.port}/ok", 3)
    stopping = threading.Event()
    settings = settings_with(webhook_at_once=8, webhook_per_host=8, webhook_timeout=60.0)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(send, database, settings, stopping=stopping)
        until(lambda: Counter(one.path for one in hooks.received) == {"/ok": 3, "/hang": 4})
        time.sleep(0.3)
        arrived = Counter(one.path for one in hooks.received)
        stopping.set()
        hooks.released.set()
        running.result()
    assert arrived == {"/ok": 3, "/hang": 4}


def test_a_fault_leaves_nothing_counted_as_on_its_way(
    sqlite_database: Database, hooks: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though requests were on their way when it came."""
    hooks.answer = lambda got: hooks.hang(got) if got.path == "/hang" else Reply()
    tell(sqlite_database, f"{hooks.url}/hang", 3)
    tell(sqlite_database, f"{hooks.url}/ok")

    def fail(*_: object) -> set[str]:
        raise KeyError("fault")

    monkeypatch.setattr(webhook.sending, "record", lambda tx, told: fail() if told else set())
    before = REGISTRY.get_sample_value("stoker_webhook_requests_in_flight")
    with pytest.raises(KeyError):
        send(sqlite_database, settings_with())
    assert REGISTRY.get_sample_value("stoker_webhook_requests_in_flight") == before


def test_a_group_keeps_its_time_whoever_is_lost(sqlite_database: Database, hooks: Receiver) -> None:
    """Its first job is gone at the first try, its second at another: the rest is told under the same id and time."""
    mine = endpoint(sqlite_database, hooks.url, coalesce=1.0)
    ids = tell(sqlite_database, hooks.url, 4, mine)
    for nth, one in enumerate(ids):
        given.change(sqlite_database, deliveries.table, deliveries.table.c.job_id == one, created_at=1000.0 * nth)

    def answer(_got: Received) -> Reply:
        gone = len(hooks.received)
        with sqlite_database.transaction() as tx:
            tx.execute(sa.delete(jobs.table).where(jobs.table.c.id == ids[gone]))
        return Reply(500)

    hooks.answer = answer
    with sqlite_database.transaction() as tx:
        tx.execute(sa.delete(jobs.table).where(jobs.table.c.id == ids[0]))
    send(sqlite_database, settings_with())
    told = [json.loads(got.body) for got in hooks.received]
    assert [[one["data"]["id"] for one in each["data"]] for each in told] == [ids[1:], ids[2:], ids[3:]]
    (head,) = {(each["id"], each["created_at"], each["timestamp"]) for each in told}
    assert abs(head[1] - time.time()) < 60
