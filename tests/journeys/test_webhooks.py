"""Webhook endpoints of a real service, with OpenAI's stock client and a receiver on loopback."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import openai
import pytest
from standardwebhooks import Webhook as Standard

from stoker.client import Client
from tests.journeys.running import Up, left_of
from tests.receivers import Received, receiver
from tests.tasks.inprocess import until

pytestmark = [pytest.mark.journey, pytest.mark.timeout(300)]
LINES = 300


def events(received: list[Received], path: str) -> list[dict[str, Any]]:
    """Return the events that came at a path, those that came together too."""
    bodies = [json.loads(came.body) for came in received if came.path == path]
    return [event for body in bodies for event in (body["data"] if body["type"] == "events" else [body])]


def test_events_reach_endpoints(data: Path) -> None:
    """A test is answered; a bulk's lines come together, its end alone, each once; a response by its own id."""
    with receiver() as hooks:
        up = Up(data, STOKER_WEBHOOK_ALLOW_CIDRS="127.0.0.0/8")
        url = up.url()
        stock = openai.OpenAI(base_url=f"{url}/v1", api_key="unused")
        lines = stock.webhooks.create(
            name="lines",
            url=f"{hooks.url}/lines",
            event_types=["job.succeeded"],  # type: ignore[list-item]  # one of ours
            extra_body={"coalesce": 2.0},
        )
        ends = stock.webhooks.create(
            name="ends",
            url=f"{hooks.url}/ends",
            event_types=["bulk.completed", "response.completed"],  # type: ignore[list-item]
        )
        assert stock.webhooks.test(ends.id, event_type="batch.expired").status_code == 200
        hooks.received.clear()
        response = stock.responses.create(model="fake", input="hi", background=True)
        with Client(url) as client:
            bulk = client.bulk([f"prompt {nth}" for nth in range(LINES)])
            client.wait_bulk(bulk.id, 60)
        until(lambda: len(events(hooks.received, "/lines")) == LINES + 1, 60)
        until(lambda: len(events(hooks.received, "/ends")) == 2)
        assert {event["data"]["id"] for event in events(hooks.received, "/ends")} == {bulk.id, response.id}
        assert len({event["id"] for event in events(hooks.received, "/lines")}) == LINES + 1
        requests = [came for came in hooks.received if came.path == "/lines"]
        assert len(requests) < LINES / 10
        for came in requests:
            Standard(lines.signing_secret).verify(came.body, dict(came.headers))
        assert up.end() == 0
    assert left_of(data) == []
