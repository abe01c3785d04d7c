"""Webhooks from the client and the command line: against the real application, a sender and a receiver on loopback."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator

import pytest
from typer.testing import CliRunner, Result

from models.db import Database
from stoker import AsyncClient, Client
from stoker.api_errors import StokerAPIError
from stoker.cli import app as command
from stoker.settings import Settings
from tests.receivers import Receiver, Reply, receiver
from tests.tasks.inprocess import until
from tests.webapi.hook_kit import opened, sending, served
from webapi.app import create_app
from webapi.context import EXTENSION


@pytest.fixture
def hooks() -> Iterator[Receiver]:
    """Run a receiver."""
    with receiver() as running:
        yield running


@pytest.fixture
def url(settings: Settings, database: Database) -> Iterator[str]:
    """Serve the application, with a sender behind it."""
    allowed = opened(settings)
    app = create_app(allowed)
    with sending(database, allowed), served(app) as address:
        yield address
    app.extensions[EXTENSION].close()


def stoker(url: str, *arguments: str, status: int = 0) -> Result:
    """Run a command; the status is as expected."""
    found = CliRunner().invoke(command, ["webhooks", *arguments], env={"STOKER_URL": url})
    assert found.exit_code == status, found.output
    return found


def test_an_endpoint_from_python(url: str, hooks: Receiver) -> None:
    """Made, tested, changed, rotated, followed in the log, redelivered, deleted."""
    with Client(url) as client:
        made = client.webhook_endpoints.create(f"{hooks.url}/hook", ["job.cancelled"], idempotency_key="k")
        again = client.webhook_endpoints.create(f"{hooks.url}/hook", ["job.cancelled"], idempotency_key="k")
        assert again == made
        assert made.signing_secret is not None
        assert made.signing_secret not in repr(made)
        assert "job.cancelled" in client.webhook_endpoints.event_types()
        assert client.webhook_endpoints.test(made.id, "job.cancelled") == 200
        came = hooks.received[0]
        assert client.verify_webhook(came.body, came.headers, made.signing_secret)["type"] == "job.cancelled"
        job = client.submit(prompt="hi", model="fake")
        client.cancel(job.id)
        until(lambda: [one.state for one in client.deliveries.list(job_id=job.id)] == ["delivered"])
        (delivery,) = client.deliveries.list(job_id=job.id)
        with pytest.raises(StokerAPIError):
            client.deliveries.get("msg_0")
        assert client.deliveries.redeliver(delivery.id).state == "pending"
        until(lambda: client.deliveries.get(delivery.id).state == "delivered")
        assert [one["status_code"] for one in client.deliveries.get(delivery.id).tries] == [200, 200]
        assert client.deliveries.redeliver_many(endpoint_id=made.id, state="failed").redelivered == 0
        assert not client.webhook_endpoints.update(made.id, enabled=False, coalesce=None).enabled
        assert client.webhook_endpoints.rotate(made.id, keep_old=True).signing_secret != made.signing_secret
        client.webhook_endpoints.delete(made.id)
        assert list(client.webhook_endpoints.list()) == []


def test_the_same_awaited(url: str, hooks: Receiver) -> None:
    """AsyncClient has the same parts."""

    async def work() -> None:
        async with AsyncClient(url) as client:
            made = await client.webhook_endpoints.create(hooks.url, ["job.failed"], name="n", include_result=True)
            assert (await client.webhook_endpoints.get(made.id)).include_result
            assert await client.webhook_endpoints.test(made.id, "job.failed") == 200
            assert [one.event for one in await client.deliveries.list()] == ["job.failed"]
            await client.webhook_endpoints.delete(made.id)

    asyncio.run(work())


def test_an_endpoint_from_the_command_line(url: str, hooks: Receiver) -> None:
    """The same by commands, for people and as JSON; a test that is not answered with 2xx has the status 1."""
    made = json.loads(stoker(url, "create", f"{hooks.url}/hook", "--event", "job.cancelled", "--json").stdout)
    assert made["signing_secret"].startswith("whsec_")
    assert made["id"] in stoker(url, "list").stdout
    assert "the receiver answered 200" in stoker(url, "test", made["id"]).stdout
    hooks.answer = lambda _: Reply(500)
    stoker(url, "test", made["id"], "--event", "batch.failed", status=1)
    hooks.answer = lambda _: Reply(200)
    (failed,) = json.loads(stoker(url, "deliveries", "--state", "failed", "--json").stdout)
    assert "500" in stoker(url, "deliveries", failed["id"]).stdout
    assert "0 deliveries" in stoker(url, "redeliver", "--endpoint", made["id"]).stdout  # a test is not sent again
    with Client(url) as client:
        client.cancel(client.submit(prompt="hi", model="fake").id)
        until(lambda: client.deliveries.list(state="delivered", event="job.cancelled"))
    delivered = ("--endpoint", made["id"], "--state", "delivered")
    assert "1 deliveries" in stoker(url, "redeliver", *delivered).stdout
    stoker(url, "redeliver", status=2)
    stoker(url, "redeliver", "msg_0", status=1)
    assert "shown this once" in stoker(url, "rotate", made["id"], "--keep-old").stdout
    assert "enabled" in stoker(url, "enable", made["id"]).stdout
    stoker(url, "delete", made["id"])
    assert stoker(url, "list").stdout.strip() == ""
