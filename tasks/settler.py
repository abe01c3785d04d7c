"""The settler: one thread that stores outcomes, as many in a commit as gathered while the last commit ran.

What it holds is lost with the process, and then runs again; what it has committed is final. It goes on trying while the
database is away, also after the lease was lost: the guard in `models.jobs.settle` decides whether a write counts.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence

import sqlalchemy as sa
import structlog

from models import ends
from models.db import Database
from models.ends import Settled
from models.failpoints import failpoint
from models.results import NewResult
from tasks import metrics
from tasks.outage import sit_out

log = structlog.get_logger(__name__)

_MOST = 200
"""Outcomes in one commit: on SQLite a longer one would hold up every POST."""


class Settler:
    """Stores outcomes of any number of batches from one thread."""

    def __init__(
        self,
        database: Database,
        engine_id: str,
        stored: Callable[[Sequence[Settled]], None],
        failed: Callable[[str], object],
    ) -> None:
        """Start the thread.

        `stored` is told, after each commit, which outcomes took effect; `failed` why no more can be stored, ever.
        """
        self._database = database
        self._engine_id = engine_id
        self._stored = stored
        self._failed = failed
        self._queue: list[tuple[str, Settled]] = []
        self._waiting: Counter[str] = Counter()
        self._change = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="settler", daemon=True)
        self._thread.start()

    def put(self, batch_id: str, outcome: Settled) -> None:
        """Hand over what became of a job."""
        with self._change:
            self._queue.append((batch_id, outcome))
            self._waiting[batch_id] += 1
            self._change.notify_all()

    def wait(self, batch_id: str | None = None, timeout: float | None = None) -> bool:
        """Wait until everything that was put for a batch (or for all) is committed; False when time ran out first."""
        with self._change:
            return self._change.wait_for(
                lambda: not (self._waiting.total() if batch_id is None else self._waiting[batch_id]), timeout
            )

    def _work(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._queue)
                chunk, self._queue = self._queue[:_MOST], self._queue[_MOST:]
            try:
                self._store(chunk)
            except Exception as error:  # the thread's edge: without it all batches would wait for ever, leased
                log.exception("results cannot be stored", error=type(error).__name__)
                self._failed(f"results cannot be stored: {type(error).__name__}")
                return
            with self._change:
                self._waiting.subtract(batch_id for batch_id, _ in chunk)
                self._waiting += Counter()  # drops the zeros, so that ended batches are forgotten
                self._change.notify_all()

    def _store(self, chunk: Sequence[tuple[str, Settled]]) -> None:
        by_batch: dict[str, list[Settled]] = defaultdict(list)
        for batch_id, outcome in chunk:
            by_batch[batch_id].append(outcome)
        # Twice is harmless: the guard in `jobs.settle` lets an outcome count once.
        took = sit_out(
            lambda: self._commit_or_one_by_one(by_batch), "results wait for the database", outcomes=len(chunk)
        )
        self._stored([outcome for outcome in took if outcome is not None])

    def _commit_or_one_by_one(self, by_batch: Mapping[str, Sequence[Settled]]) -> list[Settled | None]:
        try:
            return self._commit(by_batch)
        except sa.exc.DBAPIError as error:
            log.warning("results are stored one by one", error=type(error.orig).__name__)
            return [self._store_alone(batch_id, outcome) for batch_id in by_batch for outcome in by_batch[batch_id]]

    def _commit(self, by_batch: Mapping[str, Sequence[Settled]]) -> list[Settled | None]:
        started = time.perf_counter()

        stored = self._database.retrying(lambda tx: ends.settle(tx, self._engine_id, by_batch))
        failpoint("settle.committed")
        outcomes = [outcome for batch in by_batch.values() for outcome in batch]
        metrics.flush_seconds.observe(time.perf_counter() - started)
        metrics.flush_size.observe(len(outcomes))
        return [outcome for outcome in outcomes if outcome.job_id in stored]

    def _store_alone(self, batch_id: str, outcome: Settled) -> Settled | None:
        """Store one outcome; if the database refuses its data, that the job failed for this reason."""
        try:
            return next(iter(self._commit({batch_id: [outcome]})), None)
        except sa.exc.DBAPIError as error:
            message = f"The engine's answer could not be stored ({type(error.orig).__name__})."
            refused = Settled(outcome.job_id, "failed", NewResult(500, code="unstorable", message=message))
            return next(iter(self._commit({batch_id: [refused]})), None)
