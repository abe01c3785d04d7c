"""The bodies of webhook requests: what receivers parse, and the same bytes at every try."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models import event_types
from models.events import Ending
from models.sending import Delivery
from tasks import payloads

DELIVERY = Delivery("msg_1", "job_1", "job.succeeded", "http://x.org/", False, 1767225600.1239, 1)
ENDING = Ending("job_1", "succeeded", "m", {"k": "v"}, None, None, '{"n": 1.00}')
DEEP = '{"a":' + "[" * 100_000 + "]" * 100_000 + "}"
COUNTS = {"total": 3, "succeeded": 2, "failed": 1, "cancelled": 0, "expired": 0}


def read(delivery: Delivery, ending: Ending = ENDING) -> dict[str, Any]:
    """Return the event that is sent."""
    found: dict[str, Any] = json.loads(payloads.one(delivery, ending))
    return found


def test_an_event_says_what_happened_to_what_and_when() -> None:
    """As OpenAI's events and Standard Webhooks have it; thin unless results were asked for."""
    event = read(DELIVERY)
    assert event == {
        "type": "job.succeeded",
        "id": payloads.event_id("job_1", "job.succeeded"),
        "object": "event",
        "created_at": 1767225600,
        "timestamp": "2026-01-01T00:00:00.123Z",
        "data": {"id": "job_1", "state": "succeeded", "model": "m", "metadata": {"k": "v"}, "error": None},
    }


def test_the_event_has_one_id_whoever_is_told() -> None:
    """`webhook-id` is the delivery's; the event's is the same for each endpoint and try, and another for another."""
    ids = {
        read(replace(DELIVERY, id=msg, endpoint_id=whe, attempt=nth))["id"]
        for msg, whe, nth in (("msg_1", "", 1), ("msg_2", "whe_1", 4), ("msg_3", "whe_2", 1))
    }
    assert len(ids) == 1
    assert read(replace(DELIVERY, event="job.failed"))["id"] not in ids
    (one,) = ids
    assert one.startswith("evt_")
    assert len(one) == len("evt_") + 32


def test_a_result_goes_out_as_it_came() -> None:
    """Byte by byte; null when there is none; bulks have none."""
    body = payloads.one(replace(DELIVERY, include_result=True), ENDING)
    assert body.endswith(b',"result":{"n": 1.00}}}')
    assert read(replace(DELIVERY, include_result=True), replace(ENDING, answer=None))["data"]["result"] is None
    bulk = replace(DELIVERY, include_result=True, event="bulk.completed")
    data = read(bulk, replace(ENDING, counts=COUNTS))["data"]
    assert "result" not in data
    assert data["counts"] == COUNTS


@pytest.mark.parametrize("event", event_types.RESPONSES)
def test_a_response_is_told_of_by_its_own_id(event: str) -> None:
    """The id that `client.responses.retrieve` takes."""
    assert read(replace(DELIVERY, event=event))["data"]["id"] == "resp_1"


@pytest.mark.parametrize(
    ("answer", "sent"),
    [
        ('{"id":"resp_engine", "n": 1.00, "é":"\\u00e9"}', '{"id":"resp_1","n":1.00,"é":"\\u00e9"}'),
        ('{"n":123456789012345678901234567890}', '{"n":123456789012345678901234567890,"id":"resp_1"}'),
        ('{"id":"chatcmpl-1","text":"\\ud800"}', '{"id":"resp_1","text":"\\ud800"}'),
        ('{"id":"x","id":"y"}', '{"id":"resp_1"}'),
        ("[1]", "[1]"),
        (DEEP, DEEP),
    ],
    ids=["engine", "none", "half a character", "twice", "no object", "deep"],
)
def test_the_result_of_a_response_has_its_id(answer: str, sent: str) -> None:
    """The engine's own is known to no call. Whatever else is in it stays as it came; always the same bytes."""
    delivery = replace(DELIVERY, include_result=True, event="response.completed")
    ending = replace(ENDING, answer=answer)
    assert payloads.one(delivery, ending).endswith(f',"result":{sent}}}}}'.encode())
    assert payloads.one(delivery, ending) == payloads.one(delivery, ending)
    of_job = payloads.one(replace(delivery, event="job.succeeded"), ending)
    assert of_job.endswith(f',"result":{answer}}}}}'.encode())


def test_a_response_that_failed_has_the_answer_as_it_came() -> None:
    """An upstream's error is no response."""
    delivery = replace(DELIVERY, include_result=True, event="response.failed")
    body = payloads.one(delivery, replace(ENDING, state="failed", answer='{"error": 1}'))
    assert body.endswith(b',"result":{"error": 1}}}')


@given(st.lists(st.text(max_size=20), max_size=20))
def test_several_events_make_one_body(messages: list[str]) -> None:
    """Each as it would be sent alone, in their order."""
    events = [payloads.one(DELIVERY, replace(ENDING, message=text)) for text in messages]
    together = json.loads(payloads.many("msg_g", 1767225600.5, events))
    assert together["data"] == [json.loads(event) for event in events]
    assert (together["type"], together["object"], together["id"]) == ("events", "events", "msg_g")
    assert together["timestamp"] == "2026-01-01T00:00:00.500Z"
