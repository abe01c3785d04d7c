"""An engine that the test plays by hand, and clients that listen in threads of their own."""

from __future__ import annotations

import json
import threading
from typing import Any, NamedTuple

import redis
import sqlalchemy as sa
from flask import Flask

from models import ends, jobs, streams
from models.db import AnyRow, Database, new_id
from models.ends import Settled
from models.results import NewResult
from stoker.settings import Settings
from tasks.tokens import Stream, Tokens
from tests.tasks.inprocess import until

CHAT = {"model": "fake", "messages": [{"role": "user", "content": "hi"}]}
ANSWER = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "model": "fake",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "one two"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
}


class Event(NamedTuple):
    """An event as a client gets it."""

    data: Any
    kind: str = ""
    ident: str = ""


def chunk(text: str) -> str:
    """Return one event of a chat's stream."""
    return json.dumps({"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": {"content": text}}]})


class Played:
    """An engine that does what the test says."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self.database = database
        self.tokens = Tokens(settings)
        self._redis = redis.Redis.from_url(settings.redis_client_url)
        self._batches: dict[str, str] = {}

    def job(self, job_id: str) -> AnyRow:
        """Return a job as it is."""
        with self.database.reading() as tx:
            return tx.execute(sa.select(jobs.table).where(jobs.table.c.id == job_id)).one()

    def queued(self) -> str:
        """Wait for a job in the queue and return its id."""
        found: list[str] = []

        def look() -> bool:
            with self.database.reading() as tx:
                queued = sa.select(jobs.table.c.id).where(jobs.table.c.state == "queued")
                found[:] = tx.execute(queued).scalars()
            return bool(found)

        until(look, 60)
        return found[0]

    def start(self, job_id: str = "") -> Stream:
        """Begin a job, the one that is queued by itself; return its stream."""
        job_id = job_id or self.queued()
        batch_id = self._batches[job_id] = new_id("batch")
        this = jobs.table.c.id == job_id
        attempt = self.job(job_id).attempts + 1
        with self.database.transaction() as tx:
            jobs.move(tx, "batched", this, batch_id=batch_id)
            jobs.move(tx, "running", this, attempts=attempt)
        return self.tokens.open(job_id, attempt, lambda: True)

    def lose(self, job_id: str) -> None:
        """Give a running job back to the queue."""
        with self.database.transaction() as tx:
            jobs.move(tx, "queued", jobs.table.c.id == job_id, sources=["running"], batch_id=None)

    def end(self, job_id: str, answer: Any = ANSWER, state: str = "succeeded", **more: Any) -> None:
        """Store how a running job ended, and tell of it, when what it said is out."""
        until(lambda: not self.tokens._waiting, 60)
        body = None if answer is None else json.dumps(answer)
        result = NewResult(more.pop("status", 200), body, prompt_tokens=1, completion_tokens=2, **more)
        batch_id = self._batches[job_id]
        with self.database.transaction() as tx:
            assert ends.settle(tx, "engine", {batch_id: [Settled(job_id, state, result)]}) == {job_id}
        self.tell(job_id)

    def cancel(self, job_id: str) -> None:
        """Cancel a job by other hands, and tell of it."""
        with self.database.transaction() as tx:
            ends.cancel(tx, self.job(job_id).owner, job_id)
        self.tell(job_id)

    def tell(self, job_id: str) -> None:
        """Say that a job has ended."""
        self._redis.publish(streams.ENDED, job_id)


class Asked:
    """A client that asks and listens in a thread of its own."""

    def __init__(self, app: Flask, path: str, body: Any = None, **more: Any) -> None:
        self.status = 0
        self.headers: Any = {}
        self.raw = b""
        self.cut = False
        self.leave = threading.Event()
        self._begun = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(app, path, body, more), daemon=True)
        self._thread.start()

    def _work(self, app: Flask, path: str, body: Any, more: dict[str, Any]) -> None:
        client = app.test_client()
        answer = client.get(path, **more) if body is None else client.post(path, json=body, **more)
        self.status, self.headers = answer.status_code, answer.headers
        self._begun.set()
        try:
            for part in answer.response:
                self.raw += part if isinstance(part, bytes) else part.encode()
                if self.leave.is_set():
                    break
        except BrokenPipeError:  # with which the server closes a connection
            self.cut = True
        finally:
            answer.close()

    def begun(self, seconds: float = 60.0) -> int:
        """Wait for the status and return it."""
        assert self._begun.wait(seconds)
        return self.status

    def done(self, seconds: float = 60.0) -> int:
        """Wait for the end of the answer and return its status."""
        self._thread.join(seconds)
        assert not self._thread.is_alive()
        return self.status

    @property
    def json(self) -> Any:
        """Return the answer as one document."""
        return json.loads(self.raw)

    @property
    def events(self) -> list[Event]:
        """Return the events that came up to now."""
        return [read(part) for part in self.raw.decode().split("\n\n") if part and not part.startswith(":")]

    @property
    def text(self) -> str:
        """Return the text of a chat's stream up to now."""
        chunks = [event.data for event in self.events if isinstance(event.data, dict)]
        return "".join(
            choice["delta"].get("content") or ""
            for one in chunks
            for choice in one.get("choices", [])
            if "delta" in choice
        )

    @property
    def error(self) -> Any:
        """Return the error with which the stream ended."""
        return self.events[-1].data["error"]

    def has(self, count: int) -> None:
        """Wait until so many events have come."""
        until(lambda: len(self.events) >= count, 60)


def read(part: str) -> Event:
    """Read one event."""
    fields = dict(line.split(": ", 1) for line in part.splitlines())
    data = fields["data"]
    return Event(data if data == "[DONE]" else json.loads(data), fields.get("event", ""), fields.get("id", ""))
