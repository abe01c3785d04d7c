"""Bulks and batches through the web application, tended and run in process."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from typing import Any, cast

import sqlalchemy as sa
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from models import bulks, ends, files, jobs
from models.db import AnyRow, new_id
from models.ends import Settled
from models.results import NewResult
from tasks.bulks import tend_bulk
from tasks.doorbell import Doorbell
from tests.models import given
from tests.tasks.inprocess import Bell
from webapi.context import Context

LINES = "application/x-ndjson"
CHAT = "/v1/chat/completions"
FEW = 50
Answer = Callable[[AnyRow], Settled]


def jsonl(*lines: Any) -> bytes:
    """Return JSON Lines; bytes are taken as they are."""
    return b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines)


def prompts(count: int, **more: Any) -> bytes:
    """Return so many lines, `say 1` named `line-1` and so on."""
    return jsonl(*({"prompt": f"say {n}", "custom_id": f"line-{n}", **more} for n in range(1, count + 1)))


def requests(count: int, **more: Any) -> bytes:
    """Return so many lines of an OpenAI batch."""
    body = {"model": "fake", "messages": [{"role": "user", "content": "hi"}], **more}
    lines = ({"custom_id": f"line-{n}", "method": "POST", "url": CHAT, "body": body} for n in range(1, count + 1))
    return jsonl(*lines)


def good(job: AnyRow) -> Settled:
    """Answer a job with its own name."""
    text = f"answer to {job.custom_id}"
    body = {"object": "chat.completion", "choices": [{"index": 0, "message": {"role": "assistant", "content": text}}]}
    return Settled(job.id, "succeeded", NewResult(200, json.dumps(body), prompt_tokens=2, completion_tokens=3))


def bad(job: AnyRow) -> Settled:
    """Refuse a job as an engine does."""
    return Settled(job.id, "failed", NewResult(400, '{"error":{}}', "bad_request", "too long"))


def good_but(*numbers: int) -> Answer:
    """Answer all jobs but those of some lines, which are refused."""
    return lambda job: bad(job) if job.line_no in numbers else good(job)


class Service:
    """The application, with a tender and an engine that act when they are told to."""

    def __init__(self, client: FlaskClient, context: Context) -> None:
        self.client = client
        self.context = context
        self.database = context.database

    def post(
        self, data: bytes, content_type: str = LINES, *, headers: Mapping[str, str] | None = None, **query: Any
    ) -> TestResponse:
        """Upload the lines of a bulk."""
        return self.client.post(
            "/v1/bulks", data=data, content_type=content_type, query_string=query, headers=dict(headers or {})
        )

    def form(self, name: str, data: bytes, **fields: Any) -> TestResponse:
        """Upload the lines of a bulk as a file of a form."""
        return self.client.post("/v1/bulks", data={**fields, "file": (io.BytesIO(data), name)})

    def submit(self, data: bytes, content_type: str = LINES, **query: Any) -> str:
        """Upload the lines of a bulk that must be taken; return its id."""
        return taken(self.post(data, content_type, **query))["id"]

    def tend(self, bulk_id: str) -> dict[str, Any]:
        """Do what is due for a bulk; return its document."""
        bell = cast("Doorbell", Bell())
        tend_bulk(self.database, self.context.settings, self.context.storage, bell, bulk_id)
        return self.get(bulk_id)

    def begin(self, data: bytes, content_type: str = LINES, **query: Any) -> str:
        """Upload the lines of a bulk, and make jobs of them; return its id."""
        bulk_id = self.submit(data, content_type, **query)
        self.tend(bulk_id)
        return bulk_id

    def run(self, bulk_id: str, answer: Answer = good, most: int | None = None) -> dict[str, Any]:
        """End the jobs of a bulk that wait (the first `most`), as an engine would; return the bulk's document."""
        waiting = [job for job in self.jobs(bulk_id) if job.state == "queued"][:most]
        if waiting:
            batch_id = new_id("batch")
            mine = jobs.table.c.id.in_([job.id for job in waiting])
            with self.database.transaction() as tx:
                jobs.move(tx, "batched", mine, batch_id=batch_id)
                jobs.move(tx, "running", mine, attempts=1)
            self._settle(batch_id, [answer(job) for job in waiting])
        return self.tend(bulk_id)

    def _settle(self, batch_id: str, outcomes: list[Settled]) -> None:
        """Settle a few one by one, so that they end in the order of their lines, and many at once."""
        at_once = 1 if len(outcomes) <= FEW else len(outcomes)
        for start in range(0, len(outcomes), at_once):
            with self.database.transaction() as tx:
                ends.settle(tx, "engine", {batch_id: outcomes[start : start + at_once]})

    def ended(self, data: bytes, answer: Answer = good, **query: Any) -> str:
        """Upload the lines of a bulk and run it to its end; return its id."""
        bulk_id = self.begin(data, **query)
        assert self.run(bulk_id, answer)["state"] in {"completed", "failed"}
        return bulk_id

    def get(self, bulk_id: str) -> dict[str, Any]:
        """Return a bulk's document."""
        answer = self.client.get(f"/v1/bulks/{bulk_id}")
        assert answer.status_code == 200, answer.text
        return dict(answer.json)

    def do(self, bulk_id: str, verb: str, **options: Any) -> TestResponse:
        """Ask for something to be done with a bulk."""
        return self.client.post(f"/v1/bulks/{bulk_id}/{verb}", **options)

    def read(self, bulk_id: str, which: str = "results", **query: Any) -> TestResponse:
        """Read a bulk's results or errors."""
        return self.client.get(f"/v1/bulks/{bulk_id}/{which}", query_string=query)

    def lines(self, bulk_id: str, which: str = "results", **query: Any) -> list[dict[str, Any]]:
        """Return a bulk's results or errors, read from JSON Lines."""
        return [json.loads(line) for line in self.read(bulk_id, which, **query).data.splitlines()]

    def jobs(self, bulk_id: str) -> list[AnyRow]:
        """Return a bulk's jobs by line, with what they ask of the engine."""
        chosen = sa.select(jobs.table, jobs.bodies.c.body, jobs.bodies.c.columns)
        chosen = chosen.join(jobs.bodies, jobs.bodies.c.job_id == jobs.table.c.id)
        with self.database.reading() as tx:
            found = tx.execute(chosen.where(jobs.table.c.bulk_id == bulk_id).order_by(jobs.table.c.line_no))
            return list(found.all())

    def asked(self, bulk_id: str) -> list[dict[str, Any]]:
        """Return what a bulk's jobs ask of the engine, by line."""
        return [json.loads(job.body) for job in self.jobs(bulk_id)]

    def rows(self) -> list[AnyRow]:
        """Return every bulk's row."""
        return list(given.rows(self.database, bulks.table))

    def stored(self) -> list[AnyRow]:
        """Return the rows of the files that are there."""
        return [row for row in given.rows(self.database, files.table) if row.state == "ready"]

    def upload(self, data: bytes, purpose: str = "batch", name: str = "in.jsonl") -> str:
        """Upload a file; return its id."""
        form = {"purpose": purpose, "file": (io.BytesIO(data), name)}
        answer = self.client.post("/v1/files", data=form)
        assert answer.status_code == 200, answer.text
        return str(answer.json["id"])

    def batch(self, file_id: str, *, headers: Mapping[str, str] | None = None, **fields: Any) -> TestResponse:
        """Make a batch of a file; `fields` replace the usual ones."""
        body = {"input_file_id": file_id, "endpoint": CHAT, "completion_window": "24h", **fields}
        return self.client.post("/v1/batches", json=body, headers=dict(headers or {}))


def taken(answer: TestResponse) -> dict[str, Any]:
    """Return the document of a bulk that must have been taken."""
    assert answer.status_code == 202, answer.text
    return dict(answer.json)
