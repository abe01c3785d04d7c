"""One job on an idle service, realtime lane: from POST to stored result, less the engine's own time, which is zero.

The fake engine answers at once, so all that is measured is the path. A client posts a job, waits for it by `?wait=`,
and pauses; where the time goes comes from the times that the database has of the job and its batch. Client and
database run on one machine and read one clock. "Stored" is told by the client: the answer that it waited for comes
after the COMMIT.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from benchmarks import service
from benchmarks.report import Report, parser, percentile
from benchmarks.service import BenchmarkError, Service

PHASES = (
    ("POST sent to job stored", "posted", "created"),
    ("job stored to batch cut", "created", "cut"),
    ("batch cut to claimed", "cut", "claimed"),
    ("claimed to result written", "claimed", "finished"),
    ("result written to answer received", "finished", "answered"),
    ("POST sent to 202 received", "posted", "accepted"),
    ("POST sent to result written", "posted", "finished"),
    ("POST sent to answer received (all of it)", "posted", "answered"),
)


@dataclass(slots=True)
class Sample:
    """The times of one job, in unix seconds."""

    job: str
    posted: float
    accepted: float
    answered: float
    created: float = 0.0
    cut: float = 0.0
    claimed: float = 0.0
    finished: float = 0.0


def main(argv: Sequence[str]) -> None:
    """Take the samples and write what they took."""
    options = _options(argv)
    report = Report("latency", options)
    with service.running({"engine": "fake", "log_level": "warning"}) as up:
        take(up, 20)
        samples = take(up, options.samples)
        report.machine["postgresql"] = up.value("SHOW server_version")
    rows = []
    for title, begin, end in PHASES:
        took = [1000 * (getattr(sample, end) - getattr(sample, begin)) for sample in samples]
        report.figures[title] = {share: percentile(took, float(share)) for share in ("0.5", "0.9", "0.99")}
        rows.append([title, *report.figures[title].values(), max(took)])
    head = ["milliseconds", "p50", "p90", "p99", "max"]
    report.table(f"One realtime job on an idle service, {len(samples)} samples", head, rows)
    report.write()


def take(up: Service, count: int) -> list[Sample]:
    """Post jobs one at a time, with pauses of different lengths, and wait for each."""
    chance = random.Random(20)
    address = urlsplit(up.url)
    samples = []
    connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=30)
    for number in range(count):
        # No pause of a fixed length: it could beat with the clocks of the service.
        time.sleep(chance.uniform(0.05, 0.25))
        samples.append(_one(connection, up.model, number))
    connection.close()
    for sample in samples:
        _look(up, sample)
    return samples


def _one(connection: http.client.HTTPConnection, model: str, number: int) -> Sample:
    body = json.dumps({"model": model, "prompt": f"hello {number}", "lane": "realtime"})
    posted = time.time()
    connection.request("POST", "/v1/jobs", body, {"Content-Type": "application/json"})
    job = json.load(connection.getresponse())
    accepted = time.time()
    connection.request("GET", f"/v1/jobs/{job['id']}?wait=20")
    ended = json.load(connection.getresponse())
    answered = time.time()
    if ended["state"] != "succeeded":
        raise BenchmarkError(f"a job ended as {ended['state']}")
    return Sample(job["id"], posted, accepted, answered)


def _look(up: Service, sample: Sample) -> None:
    found = up.rows(
        "SELECT jobs.created_at, batches.created_at, batches.claimed_at, jobs.finished_at "
        "FROM jobs JOIN batches ON batches.id = jobs.batch_id WHERE jobs.id = :id",
        id=sample.job,
    )
    sample.created, sample.cut, sample.claimed, sample.finished = found[0]


def _options(argv: Sequence[str]) -> argparse.Namespace:
    wanted = parser("latency", __doc__)
    wanted.add_argument("--samples", type=int, default=200)
    return wanted.parse_args(argv)
