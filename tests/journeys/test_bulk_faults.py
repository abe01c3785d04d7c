"""A bulk through kills of whatever tends it: every line has one result, and nothing waits for a person."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.journeys.running import Up

LINES = 20_000
CHAT = "/v1/chat/completions"

pytestmark = pytest.mark.journey


def lines(count: int) -> bytes:
    """Return so many lines of a batch."""
    made = []
    for number in range(count):
        body = {"model": "fake", "messages": [{"role": "user", "content": f"word {number}"}]}
        made.append(json.dumps({"custom_id": f"id-{number}", "method": "POST", "url": CHAT, "body": body}))
    return ("\n".join(made) + "\n").encode()


class Watch:
    """Looks at one batch over HTTP."""

    def __init__(self, http: httpx.Client, batch_id: str) -> None:
        self.http = http
        self.id = batch_id

    def now(self) -> dict[str, Any]:
        """Return the batch as a bulk, which tells more."""
        answer = self.http.get(f"/v1/bulks/{self.id}")
        answer.raise_for_status()
        found: dict[str, Any] = answer.json()
        return found

    def until(self, true: Callable[[dict[str, Any]], bool], seconds: float = 240.0) -> dict[str, Any]:
        """Return the batch as soon as something is true of it."""
        end = time.monotonic() + seconds
        while not true(found := self.now()):
            assert time.monotonic() < end, found
            time.sleep(0.01)
        return found


@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_every_line_has_one_result_whatever_is_killed(
    data: Path, kind: str, request: pytest.FixtureRequest, record_property: Callable[[str, object], None]
) -> None:
    """Ingest, collector, engine and export are killed in turn: 20,000 lines, as many distinct results, one file."""
    options = ["--engine", "fake"]
    if kind == "postgres":
        options += ["--database-url", str(request.getfixturevalue("postgres_url"))]
    up = Up(data, *options, STOKER_FAKE_LOG=str(data.parent / "starts"))
    with httpx.Client(base_url=up.url(), timeout=120.0, transport=httpx.HTTPTransport()) as http:
        content = lines(LINES)
        uploaded = http.post("/v1/files", data={"purpose": "batch"}, files={"file": ("in.jsonl", content)})
        assert uploaded.status_code == 200, uploaded.text
        asked = {"input_file_id": uploaded.json()["id"], "endpoint": CHAT, "completion_window": "24h"}
        created = http.post("/v1/batches", json=asked)
        assert created.status_code == 200, created.text
        watch = Watch(http, created.json()["id"])

        def killed(
            part: str, when: Callable[[dict[str, Any]], bool], count: Callable[[dict[str, Any]], int], most: int = LINES
        ) -> float:
            """Kill a process at a moment; return the seconds until a count that it keeps going gets on.

            On a busy machine the moment may be seen too late: then the count has got to its end.
            """
            pid = up.pids()[part]
            watch.until(when)
            os.kill(pid, signal.SIGKILL)
            at = time.monotonic()
            settled = -1
            while settled != (settled := count(watch.now())):
                time.sleep(0.2)  # what was under way elsewhere still arrives
            watch.until(lambda batch: count(batch) > settled or count(batch) == most)
            return round(time.monotonic() - at, 2)

        def total(batch: dict[str, Any]) -> int:
            return int(batch["counts"]["total"])

        def done(batch: dict[str, Any]) -> int:
            return int(batch["counts"]["succeeded"])

        def ended(batch: dict[str, Any]) -> int:
            return int(batch["state"] == "completed")

        recovery = {
            "ingest": killed("bulk", lambda batch: total(batch) > 0, total),
            "collector": killed("collector", lambda batch: done(batch) > LINES * 0.2, done),
            "engine": killed("engine", lambda batch: done(batch) > LINES * 0.5, done),
            "export": killed("bulk", lambda batch: batch["state"] in {"finalizing", "completed"}, ended, 1),
        }
        batch = http.get(f"/v1/batches/{watch.id}").json()
        assert batch["request_counts"] == {"total": LINES, "completed": LINES, "failed": 0}
        output = http.get(f"/v1/files/{batch['output_file_id']}/content").text.splitlines()
        names = [json.loads(line)["custom_id"] for line in output]
        assert len(names) == LINES
        assert set(names) == {f"id-{number}" for number in range(LINES)}
        files = http.get("/v1/files", params={"purpose": "batch_output"}).json()["data"]
        assert [file["id"] for file in files] == [batch["output_file_id"]]
    assert up.end() == 0
    starts = (data.parent / "starts").read_text().splitlines()
    record_property("recovery", recovery)
    print(f"{kind}: recovery in seconds {recovery}; {len(starts)} starts of {LINES} jobs")  # noqa: T201  # with -s
