"""`/v1/deliveries`: what became of each webhook event, and how it is sent once more."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from flask.testing import FlaskClient

from models import deliveries
from models.db import Database, new_id
from models.deliveries import NewDelivery
from stoker.settings import Settings
from tests.receivers import Receiver, Reply, receiver
from tests.tasks.inprocess import until
from tests.webapi.hook_kit import opened, sending

PATH = "/v1/deliveries"


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Return settings under which webhooks may go to loopback."""
    return opened(settings, webhook_secret="whsec_" + "QUJD" * 10)


@pytest.fixture
def hooks() -> Iterator[Receiver]:
    """Run a receiver."""
    with receiver() as running:
        yield running


def cancelled(client: FlaskClient, url: str) -> str:
    """Cancel a job that has a webhook; return its id."""
    job_id = client.post("/v1/jobs", json={"prompt": "hi", "model": "fake", "webhook_url": url}).get_json()["id"]
    assert client.post(f"/v1/jobs/{job_id}/cancel").status_code == 200
    return str(job_id)


def the_one(client: FlaskClient) -> dict[str, Any]:
    """Return the only delivery, with its tries."""
    (row,) = client.get(PATH).get_json()["data"]
    found: dict[str, Any] = client.get(f"{PATH}/{row['id']}").get_json()
    return found


def test_a_delivery_can_be_followed_and_sent_once_more(
    client: FlaskClient, database: Database, settings: Settings, hooks: Receiver
) -> None:
    """Each try is in the log; redelivered it goes out with the same id and bytes, and its tries are counted on."""
    hooks.answer = lambda _: Reply(500, body=b"no")
    with sending(database, settings):
        job_id = cancelled(client, f"{hooks.url}/hook")
        until(lambda: the_one(client)["state"] == "failed")
        failed = the_one(client)
        assert (failed["event"], failed["job_id"], failed["endpoint_id"]) == ("job.cancelled", job_id, None)
        assert (failed["status_code"], failed["answer"], failed["attempts"]) == (500, "no", 3)
        assert [(one["attempt"], one["status_code"]) for one in failed["tries"]] == [(1, 500), (2, 500), (3, 500)]
        hooks.answer = lambda _: Reply(204, body=b"")
        answer = client.post(f"{PATH}/{failed['id']}/redeliver")
        assert (answer.status_code, answer.get_json()["state"]) == (202, "pending")
        until(lambda: the_one(client)["state"] == "delivered")
    done = the_one(client)
    assert [(one["attempt"], one["status_code"]) for one in done["tries"]] == [(1, 500), (2, 500), (3, 500), (4, 204)]
    assert done["tries"][-1]["at"] == done["delivered_at"]
    assert len({(came.headers["webhook-id"], came.body) for came in hooks.received}) == 1
    assert len(hooks.received) == 4


def test_what_is_on_its_way_is_not_sent_once_more(client: FlaskClient) -> None:
    """409, and it says what it is; what is not there is 404."""
    cancelled(client, "http://127.0.0.1:1025/")
    row = the_one(client)
    answer = client.post(f"{PATH}/{row['id']}/redeliver")
    assert (answer.status_code, answer.get_json()["code"]) == (409, "not_ended")
    assert row["next_attempt_at"] is not None
    for gone in ("msg_0", new_id("msg"), "x" * 200):
        assert client.get(f"{PATH}/{gone}").status_code == 404
        assert client.post(f"{PATH}/{gone}/redeliver").status_code == 404


def test_what_is_never_sent_once_more(client: FlaskClient, database: Database) -> None:
    """409, each with a code of its own and what to do: a test, and what was tried too often."""
    test, often = _stock(database, 2)
    for ident, values in ((test, {"job_id": "test_1"}), (often, {"try": 1000})):
        with database.transaction() as tx:
            tx.execute(sa.update(deliveries.table).where(deliveries.table.c.id == ident).values(values))
    for ident, code in ((test, "test_only"), (often, "tried_too_often")):
        answer = client.post(f"{PATH}/{ident}/redeliver")
        assert (answer.status_code, answer.get_json()["code"]) == (409, code)
        assert "not sent again" in answer.get_json()["detail"]
    assert client.post(f"{PATH}/redeliver", json={}).get_json()["redelivered"] == 0


def _stock(database: Database, count: int) -> list[str]:
    with database.transaction() as tx:
        ids = deliveries.enqueue(
            tx,
            [
                NewDelivery("local", f"job_{nth}", "job.failed", "http://127.0.0.1:1025/", endpoint_id=f"whe_{nth % 2}")
                for nth in range(count)
            ],
        )
        tx.execute(sa.update(deliveries.table).values(state="failed"))
    return ids


def test_the_log_is_paged_and_filtered(client: FlaskClient, database: Database) -> None:
    """Newest first; `after` is the last id of the page before; filters narrow it down."""
    ids = _stock(database, 5)
    first = client.get(PATH, query_string={"limit": 3}).get_json()
    rest = client.get(PATH, query_string={"limit": 3, "after": first["next_after"]}).get_json()
    assert [row["id"] for row in first["data"] + rest["data"]] == ids[::-1]
    assert (first["has_more"], rest["has_more"], rest["next_after"]) == (True, False, None)
    for query, expected in (
        ({"endpoint_id": "whe_1"}, [ids[3], ids[1]]),
        ({"job_id": "job_2"}, [ids[2]]),
        ({"state": "pending"}, []),
        ({"event": "job.failed", "limit": 1}, [ids[4]]),
    ):
        assert [row["id"] for row in client.get(PATH, query_string=query).get_json()["data"]] == expected
    for bad in ("state=lost", "limit=0", "after=job_1", "other=x", "event=a%00"):
        assert client.get(f"{PATH}?{bad}").status_code == 422


def test_a_range_is_sent_once_more(client: FlaskClient, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most so many a call, from where the call before ended; only what was meant."""
    monkeypatch.setattr("webapi.deliveries.MOST_AGAIN", 4)
    monkeypatch.setattr("webapi.deliveries.SLICE", 2)
    ids = _stock(database, 13)
    asked = {"endpoint_id": "whe_0"}
    first = client.post(f"{PATH}/redeliver", json=asked)
    assert first.status_code == 202
    assert first.get_json() == {
        "object": "deliveries.redelivered",
        "redelivered": 4,
        "has_more": True,
        "next_after": ids[6],
    }
    second = client.post(f"{PATH}/redeliver", json={**asked, "after": ids[6]}).get_json()
    assert (second["redelivered"], second["has_more"], second["next_after"]) == (3, False, None)
    pending = client.get(PATH, query_string={"state": "pending", "limit": 100}).get_json()["data"]
    assert {row["id"] for row in pending} == set(ids[::2])
    late = client.post(f"{PATH}/redeliver", json={"created_after": 4e9}).get_json()
    assert (late["redelivered"], late["has_more"]) == (0, False)
    for bad in ({"state": "pending"}, {"event": "x"}, {"created_after": -1}, {"after": "x"}, {"other": 1}):
        assert client.post(f"{PATH}/redeliver", json=bad).status_code == 422
