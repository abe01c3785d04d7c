"""More than the service can take: it says so, stays well, and what it took it finishes."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import httpx
import pytest

from benchmarks.overload import crowd
from tests.journeys.test_faults import Run
from tests.tasks.inprocess import until

pytestmark = [pytest.mark.journey, pytest.mark.timeout(600)]

LIMIT = 200
PATIENCE = 60.0


def address_of(run: Run) -> str:
    """Return where the service answers."""
    return str(run.client._http.base_url).rstrip("/")


def test_a_bulk_that_is_larger_than_the_queue(data: Path) -> None:
    """It comes in as its lines end, never beyond the limit, and completes; single jobs get in beside it or hear 429."""
    with Run(data, STOKER_MAX_QUEUED_PER_OWNER=str(LIMIT), STOKER_FAKE_BASE_MS="100", STOKER_FAKE_SLOTS="64") as run:
        lines = b"".join(json.dumps({"prompt": f"line {n}"}).encode() + b"\n" for n in range(1000))
        with httpx.Client(base_url=address_of(run), timeout=PATIENCE) as client:
            sent = client.post("/v1/bulks", content=lines, headers={"Content-Type": "application/x-ndjson"})
            assert sent.status_code == 202
            bulk, taken, most = f"/v1/bulks/{sent.json()['id']}", [], 0
            while (document := client.get(bulk).json())["state"] in {"validating", "running", "finalizing"}:
                answer = client.post("/v1/jobs", json={"prompt": "single"})
                assert answer.status_code in {202, 429}
                if answer.status_code == 202:
                    taken.append(answer.json()["id"])
                else:
                    assert 1 <= int(answer.headers["Retry-After"]) <= 60
                most = max(most, run.count("queued"))
                time.sleep(0.02)
            assert (document["state"], document["counts"]["succeeded"]) == ("completed", 1000)
            assert taken
            until(lambda: all(client.get(f"/v1/jobs/{job}").json()["state"] == "succeeded" for job in taken))
        assert 0 < most <= LIMIT


def test_a_crowd_of_clients(data: Path) -> None:
    """Far more clients than can be served: health checks answer, the rest hear 202 or 503, and each 202 is a job."""
    with Run(data, STOKER_WEB_THREADS="1024") as run:
        address = address_of(run)
        health: list[int] = []
        ended = threading.Event()

        def look() -> None:
            with httpx.Client(base_url=address, timeout=PATIENCE) as client:
                while not ended.is_set():
                    health.extend(client.get(path).status_code for path in ("/livez", "/readyz"))
                    time.sleep(0.05)

        looking = threading.Thread(target=look)
        looking.start()
        try:
            came = crowd(address, 700, 8.0, polite=False)
        finally:
            ended.set()
            looking.join(PATIENCE)
        assert set(health) == {200}
        assert set(came.statuses) <= {"202", "503"}
        assert came.statuses["202"] > 0
        assert came.statuses["503"] > 0
        with run.database.reading() as tx:
            stored = tx.exec_driver_sql("SELECT count(*) FROM jobs").scalar_one()
        assert stored == came.statuses["202"]
