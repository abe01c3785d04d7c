"""An engine and a tender in a thread: whatever is asked is answered at once, so that nothing waits."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, cast

import redis
import sqlalchemy as sa

from models import bulks, ends, jobs, streams
from models.calls import CHAT, COMPLETIONS, EMBEDDINGS, RESPONSES
from models.db import AnyRow, Database, new_id
from models.ends import Settled
from models.errors import DatabaseUnavailable
from models.results import NewResult
from models.states import BULK
from models.storage import Storage
from stoker.settings import Settings
from tasks.bulks import tend_bulk
from tasks.doorbell import Doorbell
from tests.tasks.inprocess import Bell, alive

USAGE = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
ANSWERS: dict[str, dict[str, Any]] = {
    CHAT: {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "fake",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "one two"}, "finish_reason": "stop"}],
        "usage": USAGE,
    },
    COMPLETIONS: {
        "id": "cmpl-1",
        "object": "text_completion",
        "created": 1,
        "model": "fake",
        "choices": [{"index": 0, "text": "one two", "finish_reason": "stop"}],
        "usage": USAGE,
    },
    EMBEDDINGS: {
        "object": "list",
        "model": "fake",
        "data": [{"object": "embedding", "index": 0, "embedding": [0.5, 1.5]}],
        "usage": {"prompt_tokens": 1, "total_tokens": 1},
    },
    RESPONSES: {
        "id": "resp_1",
        "object": "response",
        "created_at": 1,
        "model": "fake",
        "status": "completed",
        "output": [
            {
                "type": "message",
                "id": "msg_1",
                "role": "assistant",
                "status": "completed",
                "content": [{"type": "output_text", "text": "one two", "annotations": []}],
            }
        ],
    },
}


class _Answering:
    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._settings = settings
        self._storage = Storage(settings.storage)
        self._redis = redis.Redis.from_url(settings.redis_client_url)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Begin to answer."""
        alive(self._database)
        self._thread.start()

    def stop(self) -> None:
        """End it."""
        self._stopping.set()
        self._thread.join()
        self._redis.close()

    def _run(self) -> None:
        while not self._stopping.wait(0.005):
            # Busy at the moment: what waits is answered at the next turn.
            with suppress(DatabaseUnavailable):
                for bulk_id in self._open_bulks():
                    tend_bulk(self._database, self._settings, self._storage, cast("Doorbell", Bell()), bulk_id)
                self._answer(self._waiting())

    def _open_bulks(self) -> list[str]:
        with self._database.reading() as tx:
            return list(tx.execute(sa.select(bulks.table.c.id).where(bulks.table.c.state.in_(BULK.open))).scalars())

    def _waiting(self) -> list[AnyRow]:
        chosen = sa.select(jobs.table.c.id, jobs.table.c.endpoint).where(jobs.table.c.state == "queued").limit(100)
        with self._database.reading() as tx:
            return list(tx.execute(chosen).all())

    def _answer(self, waiting: list[AnyRow]) -> None:
        if not waiting:
            return
        batch_id = new_id("batch")
        these = jobs.table.c.id.in_([job.id for job in waiting])
        with self._database.transaction() as tx:
            jobs.move(tx, "batched", these, sources=["queued"], batch_id=batch_id)
            jobs.move(tx, "running", these, sources=["batched"], attempts=1)
            found = [
                Settled(job.id, "succeeded", NewResult(200, json.dumps(ANSWERS[job.endpoint]), prompt_tokens=1))
                for job in waiting
            ]
            ended = ends.settle(tx, "engine", {batch_id: found})
        for job_id in ended:
            self._redis.publish(streams.ENDED, job_id)


@contextmanager
def answering(database: Database, settings: Settings) -> Iterator[None]:
    """Answer every job in the database while this lasts."""
    engine = _Answering(database, settings)
    engine.start()
    try:
        yield
    finally:
        engine.stop()
