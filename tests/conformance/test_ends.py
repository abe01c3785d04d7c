"""Batches that end early: cancelled, or out of time."""

from __future__ import annotations

import pytest

from .conftest import Server
from .kit import Api, Ended, answered, every_once, in_order, moments, refused

row = pytest.mark.row

NAMES = [*(f"quick-{n}" for n in range(4)), *(f"slow-{n}" for n in range(4))]


@row("batches.cancel")
def test_what_was_done_is_kept(cancelled: Ended) -> None:
    """A cancelled batch keeps what was done: every line is in one of its files, and the counts agree."""
    assert cancelled.batch["status"] == "cancelled"
    every_once(cancelled, NAMES)
    assert cancelled.output
    counts = cancelled.batch["request_counts"]
    assert counts["total"] == 8
    assert counts["completed"] == len(cancelled.output)


@row("batches.cancel")
def test_its_times(cancelled: Ended) -> None:
    """A cancelled batch says when it was asked to stop and when it had stopped."""
    assert cancelled.batch["cancelling_at"] is not None
    assert cancelled.batch["cancelled_at"] >= cancelled.batch["cancelling_at"]
    assert cancelled.batch["completed_at"] is None


@row("batches.cancel")
def test_cancelled_at_once(api: Api) -> None:
    """A batch that is cancelled right after it was made is `cancelling`, then `cancelled`."""
    batch = api.start(*(api.slow_line(f"{n}") for n in range(50)))
    answer = answered(api.ask("POST", f"/batches/{batch['id']}/cancel"))
    assert answer["id"] == batch["id"]
    assert answer["status"] in {"cancelling", "cancelled"}
    assert answer["cancelling_at"] is not None
    ended = api.end(answer)
    assert ended.batch["status"] == "cancelled"
    assert in_order(ended.seen)
    assert len(ended.custom_ids) == len(set(ended.custom_ids))


@row("batches.cancel")
def test_cancelling_twice(api: Api) -> None:
    """To cancel again is fine, while it is cancelling and when it is cancelled."""
    batch = api.start(*(api.slow_line(f"{n}") for n in range(20)))
    for _ in range(3):
        answer = answered(api.ask("POST", f"/batches/{batch['id']}/cancel"))
        assert answer["status"] in {"cancelling", "cancelled"}
    ended = api.end(answer)
    again = answered(api.ask("POST", f"/batches/{batch['id']}/cancel"))
    assert again == ended.batch


@row("batches.cancel")
@pytest.mark.parametrize(("which", "status"), [("good", "completed"), ("failed", "failed")])
def test_too_late_to_cancel(api: Api, request: pytest.FixtureRequest, which: str, status: str) -> None:
    """A batch that has completed or failed cannot be cancelled: 409, which says so, and it stays as it is."""
    batch = request.getfixturevalue(which).batch
    error = refused(api.ask("POST", f"/batches/{batch['id']}/cancel"), 409)
    assert error["message"] == f"Cannot cancel a batch with status '{status}'."
    assert api.get(f"/batches/{batch['id']}") == batch


@row("retries")
def test_not_to_be_tried_again(api: Api, good: Ended) -> None:
    """The 409 of a batch that cannot be cancelled says `x-should-retry: false`: the openai package retries 409."""
    response = api.ask("POST", f"/batches/{good.batch['id']}/cancel")
    assert response.headers["x-should-retry"] == "false"


@pytest.fixture(scope="module")
def expired(api: Api, server: Server) -> Ended:
    """Run quick lines and lines that take far longer than the batch has time."""
    window = server.needs("short_window")
    quick, slow = [api.line(f"quick-{n}") for n in range(4)], [api.slow_line(f"slow-{n}") for n in range(4)]
    return api.run(*quick, *slow, completion_window=window)


@row("batches.states")
def test_a_batch_that_runs_out_of_time(expired: Ended) -> None:
    """A batch whose window has passed is `expired`, and says when."""
    assert expired.batch["status"] == "expired"
    assert in_order(expired.seen)
    assert moments(expired.batch) == sorted(moments(expired.batch))
    assert expired.batch["expired_at"] >= expired.batch["expires_at"]
    assert expired.batch["completed_at"] is None


@row("lines.ends")
def test_what_was_done_in_time_is_kept(expired: Ended) -> None:
    """What was done before the window passed is in the output file; the rest is not counted as failed."""
    every_once(expired, NAMES)
    assert {line["custom_id"] for line in expired.output} >= set(NAMES[:4])
    counts = expired.batch["request_counts"]
    assert (counts["total"], counts["completed"], counts["failed"]) == (8, len(expired.output), 0)


@row("lines.errors")
def test_the_shape_of_what_came_too_late(expired: Ended) -> None:
    """A line for which there was no time has no response, and the error `batch_expired`."""
    assert expired.errors
    for line in expired.errors:
        assert line["response"] is None
        assert line["error"]["code"] == "batch_expired"
        assert line["error"]["message"]


@row("batches.cancel")
def test_an_expired_batch(api: Api, expired: Ended) -> None:
    """A batch that has expired cannot be cancelled."""
    refused(api.ask("POST", f"/batches/{expired.batch['id']}/cancel"), 409)
