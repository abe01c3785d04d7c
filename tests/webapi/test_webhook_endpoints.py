"""`/v1/webhook_endpoints`: as OpenAI's API has it, with the stock client, real deliveries and real receivers."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest
from flask.testing import FlaskClient
from standardwebhooks import Webhook as Standard
from standardwebhooks import WebhookVerificationError

from models import endpoints, event_types, idempotency
from models.db import Database
from models.secrets import valid_secret
from stoker.settings import Settings
from tests.models import given
from tests.receivers import Receiver, Reply, receiver
from tests.tasks.inprocess import until
from tests.webapi.hook_kit import opened, sending, served
from tests.webapi.key_kit import key_of
from webapi import endpoint_tests
from webapi.context import Context
from webapi.webhook_endpoints import hint_of

PATH = "/v1/webhook_endpoints"
End = Callable[..., None]


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Return settings under which webhooks may go to loopback."""
    return opened(settings)


@pytest.fixture
def hooks() -> Iterator[Receiver]:
    """Run a receiver."""
    with receiver() as running:
        yield running


@pytest.fixture
def sender(database: Database, settings: Settings) -> Iterator[None]:
    """Send what is due."""
    with sending(database, settings):
        yield


@pytest.fixture
def stock(client: FlaskClient) -> Iterator[openai.OpenAI]:
    """Return OpenAI's own client of the served application."""
    with served(client.application) as url:
        yield openai.OpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0)


class Clock:
    """The clock of tests that are waited for: however slow the machine is, their time is up when `over` says so."""

    sleep = staticmethod(time.sleep)

    def __init__(self, over: Callable[[], bool]) -> None:
        self._over = over

    def monotonic(self) -> float:
        """Return the time."""
        return math.inf if self._over() else time.monotonic()


def create(client: FlaskClient, status: int = 200, **fields: Any) -> dict[str, Any]:
    """Make an endpoint."""
    body = {"name": "mine", "url": "http://127.0.0.1:1025/x", "event_types": ["job.failed"], **fields}
    answer = client.post(PATH, json=body)
    assert answer.status_code == status, answer.text
    found: dict[str, Any] = answer.get_json()
    return found


def submit(client: FlaskClient, **fields: Any) -> str:
    """Submit a job; return its id."""
    answer = client.post("/v1/jobs", json={"prompt": "hi", "model": "fake", **fields})
    assert answer.status_code == 202, answer.text
    return str(answer.get_json()["id"])


def test_the_stock_client_goes_the_whole_way(stock: openai.OpenAI) -> None:
    """Create, retrieve, list page by page, update, rotate, delete; the secret is answered twice and never else."""
    types = stock.webhooks.event_types.list().data
    assert types == list(event_types.ALL)
    made = [
        stock.webhooks.create(name=f"n{nth}", url=f"https://example.com/{nth}", event_types=["batch.completed"])
        for nth in range(3)
    ]
    assert valid_secret(made[0].signing_secret)
    assert made[0].signing_secret_hint == hint_of(made[0].signing_secret)
    assert [one.id for one in stock.webhooks.list(limit=2)] == [one.id for one in made[::-1]]
    one = stock.webhooks.retrieve(made[0].id)
    assert (one.object, one.name, one.url) == ("webhook_endpoint", "n0", "https://example.com/0")
    assert "signing_secret" not in one.to_dict()
    changed = stock.webhooks.update(one.id, name="other", event_types=["response.failed", "batch.failed"])
    assert (changed.name, changed.url) == ("other", one.url)
    assert changed.event_types == ["response.failed", "batch.failed"]
    rotated = stock.webhooks.rotate_secret(one.id, keep_old_secret_active_for_24_hours=True)
    assert rotated.signing_secret != made[0].signing_secret
    gone = stock.webhooks.delete(one.id)
    assert (gone.id, gone.deleted, gone.object) == (one.id, True, "webhook_endpoint.deleted")
    with pytest.raises(openai.NotFoundError):
        stock.webhooks.retrieve(one.id)


def test_a_rotation_loses_no_event(
    stock: openai.OpenAI, client: FlaskClient, hooks: Receiver, sender: None, end: End
) -> None:
    """Both verifiers accept events by the old secret before, by both during, and by the new one after a rotation."""
    made = stock.webhooks.create(
        name="n",
        url=f"{hooks.url}/hook",
        event_types=["job.succeeded"],  # type: ignore[list-item]  # one of ours
        extra_body={"include_result": True},
    )
    first = made.signing_secret

    def receive() -> tuple[bytes, dict[str, str]]:
        hooks.received.clear()
        end(submit(client))
        until(lambda: hooks.received)
        return hooks.received[0].body, dict(hooks.received[0].headers)

    def verified(secret: str, body: bytes, headers: dict[str, str]) -> bool:
        try:
            Standard(secret).verify(body, headers)
        except WebhookVerificationError:
            with pytest.raises(openai.InvalidWebhookSignatureError):
                stock.webhooks.unwrap(body, headers, secret=secret)
            return False
        event: Any = stock.webhooks.unwrap(body, headers, secret=secret)
        return bool(event.type == "job.succeeded" and event.id.startswith("evt_"))

    body, headers = receive()
    assert verified(first, body, headers)
    assert json.loads(body)["data"]["result"]["object"] == "chat.completion"
    second = stock.webhooks.rotate_secret(made.id, keep_old_secret_active_for_24_hours=True).signing_secret
    body, headers = receive()
    assert verified(first, body, headers)
    assert verified(second, body, headers)
    third = stock.webhooks.rotate_secret(made.id).signing_secret
    body, headers = receive()
    assert not verified(first, body, headers)
    assert not verified(second, body, headers)
    assert verified(third, body, headers)


def test_a_test_tells_what_the_receiver_answered(stock: openai.OpenAI, hooks: Receiver, sender: None) -> None:
    """Of any event, signed, once; also an answer that is no success, and also while it is disabled."""
    made = stock.webhooks.create(name="n", url=f"{hooks.url}/hook", event_types=["batch.completed"])
    result = stock.webhooks.test(made.id, event_type="response.incomplete")
    assert result.status_code == 200
    assert (result.success, result.event_type, result.webhook_endpoint_id) == (True, "response.incomplete", made.id)
    (came,) = hooks.received
    event: Any = stock.webhooks.unwrap(came.body, dict(came.headers), secret=made.signing_secret)
    assert (event.type, event.object) == ("response.incomplete", "event")
    hooks.answer = lambda _: Reply(503)
    stock.webhooks.update(made.id, extra_body={"enabled": False})
    assert stock.webhooks.test(made.id, event_type="batch.failed").status_code == 503
    assert len(hooks.received) == 2


def test_a_test_without_an_answer_says_why(client: FlaskClient, hooks: Receiver, sender: None) -> None:
    """502, in OpenAI's envelope, without an address; the client does not try it again."""
    hooks.answer = lambda _: Reply(cut=True)
    made = create(client, url=f"{hooks.url}/hook")
    answer = client.post(f"{PATH}/{made['id']}/test", json={"event_type": "job.failed"})
    error = answer.get_json()["error"]
    assert (answer.status_code, error["code"]) == (502, "webhook_test_failed")
    assert "did not answer" in error["message"]
    assert "127.0.0.1" not in error["message"]
    assert answer.headers["X-Should-Retry"] == "false"
    assert len(hooks.received) == 1


def test_a_test_that_no_worker_takes_is_given_up(
    client: FlaskClient, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not sent hours later, when a worker comes."""
    monkeypatch.setattr("webapi.endpoint_tests.SLACK", -29.5)
    made = create(client)
    answer = client.post(f"{PATH}/{made['id']}/test", json={"event_type": "job.failed"})
    assert answer.status_code == 502
    assert "No worker" in answer.get_json()["error"]["message"]
    (row,) = client.get("/v1/deliveries").get_json()["data"]
    assert (row["state"], row["attempts"]) == ("failed", 0)


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"event_types": ["job.failed", "video.completed"]}, "event_types.1", "job.succeeded, job.failed"),
        ({"event_types": []}, "event_types", "at least 1"),
        ({"event_types": "job.failed"}, "event_types", "list"),
        ({"name": ""}, "name", "at least 1"),
        ({"url": "http://10.0.0.1/"}, "url", "internal"),
        ({"url": "http://[::1]/"}, "url", "internal"),
        ({"url": "ftp://example.com/"}, "url", "http"),
        ({"url": "http://example.com:22/"}, "url", "port"),
        ({"coalesce": 0.01}, "coalesce", "0.05"),
        ({"coalesce": 61}, "coalesce", "60"),
        ({"include_result": "yes"}, "include_result", "boolean"),
        ({"secret": "whsec_x"}, "secret", "not permitted"),
    ],
)
def test_what_is_wrong_is_named(client: FlaskClient, fields: dict[str, Any], param: str, says: str) -> None:
    """400 in OpenAI's envelope, at create and at update; nothing is stored or changed."""
    error = create(client, 400, **fields)["error"]
    assert error["param"] == param
    assert says in error["message"]
    made = create(client)
    answer = client.post(f"{PATH}/{made['id']}", json=fields)
    assert (answer.status_code, answer.get_json()["error"]["param"]) == (400, param)
    (listed,) = client.get(PATH).get_json()["data"]
    assert listed == {name: value for name, value in made.items() if name != "signing_secret"}


def test_the_secret_is_nowhere_in_the_clear(client: FlaskClient, database: Database) -> None:
    """Neither in the row nor in the answer that is kept for an Idempotency-Key, which can be had again."""
    body = {"name": "n", "url": "http://127.0.0.1:1025/", "event_types": ["job.failed"]}
    first = client.post(PATH, json=body, headers={"Idempotency-Key": "k"})
    again = client.post(PATH, json=body, headers={"Idempotency-Key": "k"})
    assert first.get_json() == again.get_json()
    assert again.headers["Idempotency-Replayed"] == "true"
    other = client.post(PATH, json={**body, "name": "m"}, headers={"Idempotency-Key": "k"})
    assert other.status_code == 409
    (row,) = given.rows(database, endpoints.table)
    (kept,) = given.rows(database, idempotency.table)
    secret = first.get_json()["signing_secret"].removeprefix("whsec_")
    assert secret not in row.secret + kept.answer
    assert row.secret.startswith("sealed:")


def test_without_a_key_to_keep_secrets_nothing_is_made(client: FlaskClient, context: Context) -> None:
    """503 that says what its operator has to do."""
    context.seal._fernet = None
    error = create(client, 503)["error"]
    assert error["code"] == "no_secret_key"
    assert "STOKER_SECRET_KEY" in error["message"]
    assert client.get(PATH).get_json()["data"] == []


def test_an_endpoint_can_be_disabled_and_enabled(client: FlaskClient) -> None:
    """The answers say since when and why."""
    made = create(client, enabled=False)
    assert (made["enabled"], made["disabled_reason"]) == (False, "disabled by its owner")
    assert isinstance(made["disabled_at"], int)
    enabled = client.post(f"{PATH}/{made['id']}", json={"enabled": True}).get_json()
    assert (enabled["enabled"], enabled["disabled_at"], enabled["disabled_reason"]) == (True, None, None)


@pytest.mark.parametrize("endpoint_id", ["whe_0", "whe_" + "0" * 32, "x" * 300])
def test_what_is_not_there_is_not_found(client: FlaskClient, endpoint_id: str) -> None:
    """By any method."""
    one = f"{PATH}/{endpoint_id}"
    answers = [
        client.get(one),
        client.delete(one),
        client.post(one, json={"name": "n"}),
        client.post(f"{one}/rotate_secret", json={}),
        client.post(f"{one}/test", json={"event_type": "job.failed"}),
    ]
    assert [answer.status_code for answer in answers] == [404] * 5
    assert all(answer.get_json()["error"]["type"] == "invalid_request_error" for answer in answers)


def test_batches_and_responses_are_told_of_as_openai_does(
    stock: openai.OpenAI, client: FlaskClient, hooks: Receiver, sender: None, end: End
) -> None:
    """`data.id` is the id that the client knows; the event has one id, whoever is told of it."""
    for name in ("a", "b"):
        stock.webhooks.create(name=name, url=f"{hooks.url}/{name}", event_types=["response.completed"])
    response = stock.responses.create(model="fake", input="hi", background=True)
    end(response.id.replace("resp_", "job_"))
    until(lambda: len(hooks.received) == 2)
    one, two = (json.loads(came.body) for came in hooks.received)
    assert one["data"]["id"] == two["data"]["id"] == response.id
    assert one["id"] == two["id"]
    assert len({came.headers["webhook-id"] for came in hooks.received}) == 2


def test_a_receiver_that_is_slower_than_the_test_is_said_to_be(
    client: FlaskClient, hooks: Receiver, sender: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a sender has is not given up, and not said to be: it is on its way."""
    monkeypatch.setattr("webapi.endpoint_tests.time", Clock(lambda: bool(hooks.received)))
    hooks.answer = hooks.hang
    made = create(client, url=f"{hooks.url}/hook")
    answer = client.post(f"{PATH}/{made['id']}/test", json={"event_type": "job.failed"})
    assert answer.status_code == 502
    assert "has not answered in time" in answer.get_json()["error"]["message"]
    hooks.released.set()


def test_few_may_ask_for_events_of_jobs(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made or changed: it says what the limit is, and of what; what is answered again for its key is not counted."""
    monkeypatch.setattr("models.endpoints.MOST_OF_JOBS", 1)
    other = create(client, event_types=["batch.failed"])
    body = {"name": "n", "url": "http://127.0.0.1:1025/", "event_types": ["job.failed"]}
    first, again = (client.post(PATH, json=body, headers={"Idempotency-Key": "k"}) for _ in range(2))
    assert first.get_json() == again.get_json()
    changed = client.post(f"{PATH}/{other['id']}", json={"event_types": ["response.failed"]})
    for answer in (changed, client.post(PATH, json=body)):
        error = answer.get_json()["error"]
        assert (answer.status_code, error["code"]) == (400, "too_many_endpoints")
        assert "1 webhook endpoints that ask for job.* or response.* events" in error["message"]
    assert client.get(f"{PATH}/{other['id']}").get_json()["event_types"] == ["batch.failed"]


@pytest.mark.usefixtures("unhurried")
def test_so_many_tests_are_waited_for(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """One more is told to come again, since each keeps a thread."""
    refused: list[int] = []
    monkeypatch.setattr("webapi.endpoint_tests.AT_ONCE", 1)
    monkeypatch.setattr("webapi.endpoint_tests.time", Clock(lambda: len(refused) == 2))
    made = create(client)

    def work() -> int:
        sent = client.application.test_client().post(f"{PATH}/{made['id']}/test", json={"event_type": "job.failed"})
        refused.extend([503] * (sent.status_code == 503))
        return int(sent.status_code)

    assert sorted(given.together([work] * 3)) == [502, 503, 503]
    assert work() == 502


@pytest.mark.usefixtures("unhurried")
def test_an_owner_waits_for_two_tests(client: FlaskClient, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """One whose receivers hang leaves the places to the others."""
    refused: list[str] = []
    over = threading.Event()

    def all_came() -> bool:
        if len(refused) == 2 and endpoint_tests._tests["bob"] == 2:
            over.set()
        return over.is_set()

    monkeypatch.setattr("webapi.endpoint_tests.time", Clock(all_came))
    body = {"name": "n", "url": "http://127.0.0.1:1025/", "event_types": ["job.failed"]}

    def tester(owner: str) -> Callable[[], tuple[str, int]]:
        headers = key_of(database, owner)
        made = client.post(PATH, json=body, headers=headers).get_json()

        def work() -> tuple[str, int]:
            asking, event = client.application.test_client(), {"event_type": "job.failed"}
            status = asking.post(f"{PATH}/{made['id']}/test", json=event, headers=headers).status_code
            refused.extend([owner] * (status == 503))
            return owner, status

        return work

    ada, bob = tester("ada"), tester("bob")
    found = sorted(given.together([ada] * 4 + [bob] * 2))
    assert found == [("ada", 502)] * 2 + [("ada", 503)] * 2 + [("bob", 502)] * 2
    assert ada() == ("ada", 502)


@pytest.mark.usefixtures("unhurried")
def test_many_at_once_with_one_key_make_one(client: FlaskClient) -> None:
    """Each gets the same answer, or is told that it is still being made."""
    body = {"name": "n", "url": "http://127.0.0.1:1025/", "event_types": ["job.failed"]}

    def work() -> tuple[int, str | None]:
        answer = client.application.test_client().post(PATH, json=body, headers={"Idempotency-Key": "k"})
        return answer.status_code, answer.get_json().get("signing_secret")

    found = given.together([work] * 20)
    assert {status for status, _ in found} <= {200, 409}
    assert len({secret for status, secret in found if status == 200}) == 1
    assert len(client.get(PATH).get_json()["data"]) == 1


def test_what_was_made_once_is_answered_again_whatever_is_allowed_now(client: FlaskClient, context: Context) -> None:
    """The operator has closed the network in between."""
    body = {"name": "n", "url": "http://127.0.0.1:1025/", "event_types": ["job.failed"]}
    first = client.post(PATH, json=body, headers={"Idempotency-Key": "k"})
    closed = context.settings.model_copy(update={"webhook_networks": ()})
    object.__setattr__(context, "settings", closed)
    assert client.post(PATH, json=body).status_code == 400
    assert client.post(PATH, json=body, headers={"Idempotency-Key": "k"}).get_json() == first.get_json()
