"""Deliveries: signed, retried from the database, fenced, and never sent twice for one try."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
import sqlalchemy as sa
import structlog
from prometheus_client import REGISTRY
from sqlalchemy.engine import Row
from standardwebhooks import Webhook as Standard

from models import deliveries, ends, jobs, owed, sending
from models.db import Database
from models.ends import Settled
from models.errors import DatabaseUnavailable
from models.jobs import NewJob, Webhook
from models.results import NewResult, storable
from models.secrets import secret_of
from stoker.settings import Settings, load
from tasks import parcels, payloads, webhook
from tests.receivers import Received, Receiver, Reply, receiver
from tests.tasks.inprocess import until

SECRET = secret_of(b"the secret of the service, 32 by")
OWN = secret_of(b"the secret of one job, 32 bytes.")


@pytest.fixture
def hooks() -> Iterator[Receiver]:
    """Run a receiver."""
    with receiver() as running:
        yield running


def settings_with(**more: Any) -> Settings:
    """Return settings that allow loopback, with a schedule that does not wait."""
    defaults = {
        "webhook_allow_cidrs": "127.0.0.0/8",
        "webhook_secret": SECRET,
        "webhook_schedule": "0,0,0",
        "webhook_timeout": 5.0,
        "engine": "fake",
    }
    return load(**{**defaults, **more})


def end_job(
    database: Database, url: str, result: NewResult | None = None, *, state: str = "succeeded", **hook: Any
) -> str:
    """End a job that asked for a webhook; return its id."""
    new = NewJob(
        owner="owner",
        model="fake",
        endpoint="/v1/chat/completions",
        body='{"prompt":"PROMPT"}',
        metadata={"k": "v"},
        webhook=Webhook(url=url, **hook),
    )
    with database.transaction() as tx:
        job_id = jobs.submit(tx, new).id
        if state == "cancelled":
            ends.cancel(tx, "owner", job_id)
            return job_id
        jobs.move(tx, "batched", jobs.table.c.id == job_id, batch_id="batch")
        jobs.move(tx, "running", jobs.table.c.id == job_id)
        ends.settle(tx, "engine", {"batch": [Settled(job_id, state, result or NewResult(200, '{"text":"ANSWER"}'))]})
    return job_id


def rows(database: Database) -> list[Row[Any]]:
    """Return every delivery, in the order they were written, and how long until it is due."""
    left = (deliveries.table.c.next_at - deliveries.now()).label("left")
    with database.reading() as tx:
        return list(tx.execute(sa.select(deliveries.table, left).order_by(deliveries.table.c.id)))


def counted(outcome: str) -> float:
    """Return the metric of an outcome."""
    return REGISTRY.get_sample_value("stoker_deliveries_total", {"outcome": outcome}) or 0.0


def test_an_event_arrives_signed(database: Database, hooks: Receiver) -> None:
    """A finished job is told once; the receivers' libraries verify it, and the log holds how it went."""
    before = counted("delivered")
    job_id = end_job(database, f"{hooks.url}/hook")
    assert webhook.deliver_due(database, settings_with()) == 1
    assert webhook.deliver_due(database, settings_with()) == 0
    (got,) = hooks.received
    (row,) = rows(database)
    event = Standard(SECRET).verify(got.body, dict(got.headers))
    assert event == {
        "type": "job.succeeded",
        "id": payloads.event_id(job_id, "job.succeeded"),
        "object": "event",
        "created_at": int(row.created_at),
        "timestamp": event["timestamp"],
        "data": {"id": job_id, "state": "succeeded", "model": "fake", "metadata": {"k": "v"}, "error": None},
    }
    assert event["timestamp"].endswith("Z")
    assert got.headers["webhook-id"] == row.id
    client = openai.OpenAI(api_key="none", webhook_secret=SECRET)
    unwrapped: Any = client.webhooks.unwrap(got.body, dict(got.headers))
    assert (unwrapped.type, unwrapped.data.id) == ("job.succeeded", job_id)
    assert (row.state, row.status, row.error, row.answer) == ("delivered", 200, None, "ok")
    assert row.delivered_at >= row.created_at
    assert 0 <= row.latency_ms < 5000
    assert counted("delivered") == before + 1


def test_a_job_may_have_a_secret_of_its_own(sqlite_database: Database, hooks: Receiver) -> None:
    """The job's secret signs instead of the service's; two of them sign twice."""
    end_job(sqlite_database, hooks.url, secret=f"{OWN} {SECRET}")
    webhook.deliver_due(sqlite_database, settings_with(webhook_secret=""))
    (got,) = hooks.received
    for secret in (OWN, SECRET):
        Standard(secret).verify(got.body, dict(got.headers))


def test_a_failed_job_tells_why(sqlite_database: Database, hooks: Receiver) -> None:
    """The error's code and message stand in the event; a cancelled job has no error and no result."""
    refused = NewResult(400, None, "context_length_exceeded", "too long: \x00\ud800")
    end_job(sqlite_database, f"{hooks.url}/failed", refused, state="failed")
    end_job(sqlite_database, f"{hooks.url}/cancelled", state="cancelled", include_result=True)
    webhook.deliver_due(sqlite_database, settings_with())
    events = {got.path: json.loads(got.body) for got in hooks.received}
    assert events["/failed"]["type"] == "job.failed"
    assert events["/failed"]["data"]["error"] == {
        "code": "context_length_exceeded",
        "message": "too long: \\u0000\\ud800",
    }
    assert events["/cancelled"]["data"]["error"] is None
    assert events["/cancelled"]["data"]["result"] is None


@pytest.mark.parametrize(
    "answer",
    [
        '{"text":"a\x00b\ud800c","n":1.0,"big":12345678901234567890}',
        json.dumps({"text": "x" * 5_000_000}),
        '{"text":"\u00fc\u4e2d\U0001f600"}',
    ],
    ids=["nul and surrogate", "5 MB", "unicode"],
)
def test_results_travel_whatever_they_hold(database: Database, hooks: Receiver, answer: str) -> None:
    """With include_result the stored answer is in the event as it is, and the signature holds."""
    job_id = end_job(database, hooks.url, NewResult(200, answer), include_result=True)
    webhook.deliver_due(database, settings_with())
    (got,) = hooks.received
    assert rows(database)[0].state == "delivered"
    assert Standard(SECRET).verify(got.body, dict(got.headers))["data"]["id"] == job_id
    stored = storable(answer)
    assert stored is not None
    assert json.loads(got.body)["data"]["result"] == json.loads(stored)
    assert stored.encode() in got.body


def test_tries_go_on_until_one_is_heard(database: Database, hooks: Receiver) -> None:
    """A receiver that fails first gets the same id and the same bytes again, signed anew."""
    replies = iter([Reply(500), Reply(503), Reply(204, body=b"")])
    hooks.answer = lambda _: next(replies)
    end_job(database, hooks.url, include_result=True)
    assert webhook.deliver_due(database, settings_with()) == 3
    assert len({(got.headers["webhook-id"], got.body) for got in hooks.received}) == 1
    (row,) = rows(database)
    assert (row.state, row.status, getattr(row, "try")) == ("delivered", 204, 3)


def test_the_next_try_follows_the_schedule(database: Database, hooks: Receiver) -> None:
    """After a failure it is due when the schedule says, and not sent before."""
    hooks.answer = lambda _: Reply(500, body=b"broken")
    end_job(database, hooks.url)
    settings = settings_with(webhook_schedule="0,100,2000")
    for tries, wait in ((1, 100), (2, 2000)):
        assert webhook.deliver_due(database, settings) == 1
        assert webhook.deliver_due(database, settings) == 0
        (row,) = rows(database)
        assert (row.state, row.error, row.answer) == ("pending", "the receiver answered 500", "broken")
        assert wait * 0.85 < row.left < wait * 1.15
        assert len(hooks.received) == tries
        make_due(database)
    assert webhook.deliver_due(database, settings) == 1
    assert rows(database)[0].state == "failed"


def make_due(database: Database) -> None:
    """Let the time of every delivery come."""
    with database.transaction() as tx:
        tx.execute(sa.update(deliveries.table).values(next_at=0.0))


def test_retry_after_is_honoured(sqlite_database: Database, hooks: Receiver) -> None:
    """A receiver that asks for a longer wait gets it."""
    hooks.answer = lambda _: Reply(429, {"retry-after": "500"})
    end_job(sqlite_database, hooks.url)
    webhook.deliver_due(sqlite_database, settings_with())
    assert 495 < rows(sqlite_database)[0].left < 560


@pytest.mark.parametrize(
    ("status", "error"),
    [(410, "the receiver answered 410"), (302, "the receiver answered 302: redirects are not followed")],
)
def test_gone_is_for_good_and_a_redirect_is_a_failure(
    sqlite_database: Database, hooks: Receiver, status: int, error: str
) -> None:
    """410 is not tried again; a redirect is, at the same URL, and where it points gets nothing."""
    hooks.answer = lambda _: Reply(status, {"location": f"{hooks.url}/elsewhere"})
    end_job(sqlite_database, f"{hooks.url}/hook")
    webhook.deliver_due(sqlite_database, settings_with())
    (row,) = rows(sqlite_database)
    assert (row.state, row.status, row.error) == ("failed", status, error)
    assert [got.path for got in hooks.received] == ["/hook"] * (1 if status == 410 else 3)


def test_one_that_hangs_holds_up_nobody(database: Database, hooks: Receiver) -> None:
    """While one receiver hangs, the others get theirs, and it is recorded as each ends."""
    recorded_early: list[int] = []

    def answer(received: Received) -> Reply:
        if received.path == "/hang":
            until(lambda: sum(row.state == "delivered" for row in rows(database)) == 50, 11.0)
            recorded_early.append(sum(row.state == "delivered" for row in rows(database)))
            hooks.released.wait(30)
        return Reply()

    hooks.answer = answer
    end_job(database, f"{hooks.url}/hang")
    for _ in range(50):
        end_job(database, f"{hooks.url}/hook")
    started = time.monotonic()
    assert webhook.deliver_due(database, settings_with(webhook_timeout=12.0, webhook_schedule="0,500")) == 51
    assert time.monotonic() - started < 24
    assert recorded_early == [50]
    hanging = rows(database)[0]
    assert (hanging.state, hanging.error) == ("pending", "no answer within 12 s")


def test_what_falls_due_meanwhile_is_sent_beside_one_that_hangs(sqlite_database: Database, hooks: Receiver) -> None:
    """A sender whose only request hangs looks again, and does not sleep until it ends."""
    hooks.answer = lambda received: hooks.hang(received) if received.path == "/hang" else Reply()
    end_job(sqlite_database, f"{hooks.url}/hang")
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(webhook.deliver_due, sqlite_database, settings_with(webhook_timeout=90.0))
        until(lambda: len(hooks.received) == 1)
        end_job(sqlite_database, f"{hooks.url}/hook")
        until(lambda: len(hooks.received) == 2)
        assert [got.path for got in hooks.received] == ["/hang", "/hook"]
        hooks.released.set()
        assert running.result() == 2


def test_only_the_start_of_an_answer_is_stored(database: Database, hooks: Receiver) -> None:
    """1 kB of it, cut anywhere, in a form that every database takes."""
    hooks.answer = lambda _: Reply(body=b"\x00\xff" + "\u4e2d".encode() * 500, endless=True)
    end_job(database, hooks.url)
    webhook.deliver_due(database, settings_with())
    (row,) = rows(database)
    assert row.state == "delivered"
    assert row.answer == "\ufffd\ufffd" + "\u4e2d" * 340 + "\ufffd"


def test_an_internal_url_is_refused_for_good(database: Database, hooks: Receiver) -> None:
    """What was accepted while a network was open is refused when it is not: no request, and the log says why."""
    before = counted("refused")
    end_job(database, f"{hooks.url}/trap")
    webhook.deliver_due(database, settings_with(webhook_allow_cidrs=""))
    (row,) = rows(database)
    assert (row.state, row.status) == ("failed", None)
    assert row.error == "the URL names an internal address, which webhooks may not reach"
    assert hooks.received == []
    assert counted("refused") == before + 1


def test_a_name_that_leads_inside_is_refused_at_the_try(sqlite_database: Database, hooks: Receiver) -> None:
    """The answer of DNS is judged at each try; an internal one ends the delivery without a request."""
    end_job(sqlite_database, f"http://rebind.example.com:{hooks.port}/")
    settings = settings_with(webhook_allow_cidrs="")
    webhook.deliver_due(
        sqlite_database, settings, look=lambda _host, _port: [(webhook.egress.socket.AF_INET, "127.0.0.1")]
    )
    (row,) = rows(sqlite_database)
    assert row.state == "failed"
    assert row.error == "rebind.example.com resolves to an internal address, which webhooks may not reach"
    assert hooks.received == []


@pytest.mark.parametrize(
    ("secret", "state", "error"),
    [
        ("", "pending", "there is no STOKER_WEBHOOK_SECRET"),
        ("whsec_short", "failed", "the signing secret is not valid"),
    ],
)
def test_without_a_secret_nothing_is_sent(
    sqlite_database: Database, hooks: Receiver, secret: str, state: str, error: str
) -> None:
    """What cannot be signed yet is tried again, what never can fails at once; the delivery says what is missing."""
    end_job(sqlite_database, hooks.url)
    webhook.deliver_due(
        sqlite_database, settings_with(webhook_schedule="0,100").model_copy(update={"webhook_secret": secret})
    )
    (row,) = rows(sqlite_database)
    assert row.state == state
    assert row.error.startswith(error)
    assert hooks.received == []


def test_a_sender_that_was_overtaken_writes_nothing(database: Database, hooks: Receiver) -> None:
    """While it sends, another claims the delivery: its own record is void."""
    before = counted("lost")

    def overtake(_received: Received) -> Reply:
        make_due(database)
        with database.transaction() as tx:
            assert len(sending.claim(tx, owed.due(tx, 1), 60.0)) == 1
        return Reply()

    hooks.answer = overtake
    end_job(database, hooks.url)
    assert webhook.deliver_due(database, settings_with()) == 1
    (row,) = rows(database)
    assert (row.state, row.status, getattr(row, "try")) == ("sending", None, 2)
    assert counted("lost") == before + 1


def test_a_sender_that_died_is_followed_by_another(database: Database, hooks: Receiver) -> None:
    """A claim without a record runs out; the delivery is then sent, with the id it always had."""
    end_job(database, hooks.url)
    with database.transaction() as tx:
        ((claimed,),) = sending.claim(tx, owed.due(tx, 1), 60.0)
    assert webhook.deliver_due(database, settings_with()) == 0
    with database.transaction() as tx:
        tx.execute(sa.update(deliveries.table).values(next_at=deliveries.table.c.next_at - 61.0))
    assert webhook.deliver_due(database, settings_with()) == 1
    assert [got.headers["webhook-id"] for got in hooks.received] == [claimed.id]


def test_a_delivery_that_kills_its_senders_is_given_up(sqlite_database: Database, hooks: Receiver) -> None:
    """After twice the schedule's tries, most of them without a record, it fails unsent."""
    end_job(sqlite_database, hooks.url)
    for _ in range(6):
        with sqlite_database.transaction() as tx:
            sending.claim(tx, owed.due(tx, 1), 0.0)
    webhook.deliver_due(sqlite_database, settings_with())
    (row,) = rows(sqlite_database)
    assert (row.state, row.error) == ("failed", "given up: 7 tries, most of which ended without a record")
    assert hooks.received == []


def test_a_sender_that_froze_after_its_claim_sends_nothing(
    sqlite_database: Database, hooks: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Woken up too late to end within its claim, it leaves the delivery to whoever claims it next."""
    monkeypatch.setattr(parcels, "SLACK", -1.0)
    end_job(sqlite_database, hooks.url)
    webhook.deliver_due(sqlite_database, settings_with())
    assert hooks.received == []
    assert rows(sqlite_database)[0].state == "sending"


def test_any_number_of_senders_send_each_delivery_once(database: Database, hooks: Receiver) -> None:
    """Four at once: every event arrives, none twice."""
    ended = {end_job(database, hooks.url) for _ in range(100)}
    with ThreadPoolExecutor(4) as pool:
        runs = [pool.submit(webhook.deliver_due, database, settings_with()) for _ in range(4)]
        assert sum(run.result() for run in runs) == 100
    assert Counter(json.loads(got.body)["data"]["id"] for got in hooks.received) == dict.fromkeys(ended, 1)
    assert {row.state for row in rows(database)} == {"delivered"}


def test_a_record_waits_for_a_database_that_is_away(
    sqlite_database: Database, hooks: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An outage between sending and recording is sat out, so that the event is not sent again."""
    retrying, calls = sqlite_database.retrying, iter(range(100))

    def flaky(work: Callable[[sa.Connection], Any], **more: Any) -> Any:
        if next(calls) in {1, 2}:
            raise DatabaseUnavailable("away")
        return retrying(work, **more)

    monkeypatch.setattr(sqlite_database, "retrying", flaky)
    end_job(sqlite_database, hooks.url)
    assert webhook.deliver_due(sqlite_database, settings_with()) == 1
    assert rows(sqlite_database)[0].state == "delivered"
    assert len(hooks.received) == 1


def test_a_fault_of_ours_costs_one_try(
    sqlite_database: Database, hooks: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is recorded, the others go on, and it is raised in the end."""
    payload = payloads.one
    bad = end_job(sqlite_database, f"{hooks.url}/bad")
    end_job(sqlite_database, f"{hooks.url}/good")

    def fail(delivery: Any, ending: Any) -> bytes:
        if ending.job_id == bad:
            raise KeyError("fault")
        return payload(delivery, ending)

    monkeypatch.setattr(payloads, "one", fail)
    with pytest.raises(KeyError):
        webhook.deliver_due(sqlite_database, settings_with())
    assert [(row.state, row.error) for row in rows(sqlite_database)] == [
        ("failed", "internal error: KeyError"),
        ("delivered", None),
    ]


def test_a_deleted_job_has_nothing_to_tell(sqlite_database: Database, hooks: Receiver) -> None:
    """A delivery whose job is gone ends, instead of coming back for ever."""
    end_job(sqlite_database, hooks.url)
    with sqlite_database.transaction() as tx:
        tx.execute(sa.delete(jobs.bodies))
        tx.execute(sa.delete(jobs.table))
    webhook.deliver_due(sqlite_database, settings_with())
    (row,) = rows(sqlite_database)
    assert (row.state, row.error) == ("failed", "the job is no longer stored")


def test_a_sender_that_is_to_stop_claims_no_more(sqlite_database: Database, hooks: Receiver) -> None:
    """At shutdown what is on its way ends and is recorded; the rest waits for the next process."""
    stopping = threading.Event()

    def answer(_received: Received) -> Reply:
        stopping.set()
        return Reply()

    hooks.answer = answer
    for _ in range(100):
        end_job(sqlite_database, hooks.url)
    tries = webhook.deliver_due(sqlite_database, settings_with(), stopping=stopping)
    assert tries == len(hooks.received) < 100
    assert Counter(row.state for row in rows(sqlite_database)) == {"delivered": tries, "pending": 100 - tries}


def test_the_logs_hold_no_secrets_and_no_contents(
    sqlite_database: Database, hooks: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither prompt, answer, secret nor the URL's query reach the logs."""
    hooks.answer = lambda _: Reply(500, body=b"RECEIVER SAYS")
    end_job(sqlite_database, f"{hooks.url}/?token=TOKEN", include_result=True, secret=OWN)
    with caplog.at_level("DEBUG"), structlog.testing.capture_logs() as logs:
        webhook.deliver_due(sqlite_database, settings_with())
    assert len(logs) == 3
    told = json.dumps(logs) + caplog.text
    for word in ("PROMPT", "ANSWER", "TOKEN", "RECEIVER SAYS", OWN, SECRET):
        assert word not in told
