"""What becomes of each job in a worker, as metrics and as spans: claimed, first heard of, answered, stored.

A worker sees thousands of jobs a second, so what belongs to a model and lane is looked up once (`Series`).
"""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import structlog

from models.batches import ClaimedJob
from models.db import Database
from models.ends import Settled
from models.engines import Incarnation
from models.measures import Measures, step
from tasks import metrics, tracing
from tasks.engines.base import Completion, Deferred, Engine, Outcome, Rejection
from tasks.flights import Flight
from tasks.sampling import Sampler
from tasks.tracing import Part, Value
from tasks.upstream_gauges import Upstreams

log = structlog.get_logger(__name__)


class Series:
    """The metrics of one model and lane: finding one by its labels costs more than to count with it."""

    def __init__(self, model: str, lane: str) -> None:
        self.model = model
        self.lane = lane
        self.wait = metrics.job_wait.labels(model, lane)
        self.latency = metrics.job_latency.labels(model, lane)
        self.run = metrics.job_run.labels(model, lane)
        self.output = metrics.output_tokens.labels(model, lane)
        self.padding = metrics.padding.labels(model, lane)
        self.prompt = metrics.tokens.labels(model, lane, "prompt")
        self.completion = metrics.tokens.labels(model, lane, "completion")
        self.cached = metrics.cached_tokens.labels(model, lane)

    def count(self, measured: Measures) -> None:
        """Count jobs that were settled."""
        for state, count in measured.ended.items():
            metrics.jobs_settled.labels(self.model, self.lane, state).inc(count)
        self.prompt.inc(measured.tokens["prompt"])
        self.completion.inc(measured.tokens["completion"])
        self.cached.inc(measured.tokens["cached"])


series = cache(Series)
"""Models are those that an engine of ours has served: not what a client makes up."""


@dataclass(slots=True, eq=False)
class Run:
    """A job in the engine. Times by `time.monotonic()`, 0.0 while it has not come so far; `tokens` in and out."""

    job: ClaimedJob
    flight: Flight
    series: Series
    claimed: float
    answered: float = 0.0
    tokens: int = 0


class Recorder:
    """Records for one worker. Every method may be called from any thread."""

    def __init__(self, mine: Incarnation) -> None:
        self._engine = mine.engine
        self._runs: dict[str, Run] = {}
        self._sampler = Sampler(mine)
        self._share = Share(mine.engine, self._sampler)
        self._upstreams = Upstreams(mine.engine)

    def claimed(self, flight: Flight) -> None:
        """Record that the jobs of a batch are handed to the engine."""
        batch, now = flight.batch, time.monotonic()
        metrics.executions.inc(len(batch.jobs))
        self._share.begin(now)
        its = series(batch.model, batch.lane)
        for job in batch.jobs:
            self._runs[job.id] = Run(job, flight, its, now)
            if job.attempts <= 1:
                # What a crash or an upstream's refusal adds is no waiting for an engine; the latency has it.
                its.wait.observe(max(0.0, job.waited))
        waits = Counter(step(job.waited) for job in batch.jobs if job.attempts <= 1)
        self._sampler.add(batch.model, batch.lane, Measures(wait=waits))

    def answered(self, outcome: Outcome) -> None:
        """Record that the engine is done with a job, for now or for good."""
        run = self._runs[outcome.id]
        run.answered = time.monotonic()
        if isinstance(outcome, Completion):
            run.tokens = outcome.usage.prompt_tokens + outcome.usage.completion_tokens
            if outcome.usage.completion_tokens:
                run.series.output.observe(outcome.usage.completion_tokens)
        if not isinstance(outcome, Deferred):
            took = run.answered - run.claimed
            run.series.run.observe(took)
            run.series.latency.observe(max(0.0, run.job.waited) + took)
            if first := _first_event(run):
                _record_first_token(run, first - run.claimed)
        if run.job.trace:
            tracing.tell("engine", run.job.trace, _queue(run), self._attempt(run, outcome))

    def stored(self, stored: Sequence[Settled]) -> None:
        """Record what was committed."""
        now = time.monotonic()
        by_series: dict[Series, list[tuple[Run, Settled]]] = defaultdict(list)
        for outcome in stored:
            run = self._runs.get(outcome.job_id)
            if run is None:
                continue  # put off, and by now through in another batch
            by_series[run.series].append((run, outcome))
            if run.job.trace:
                settle = Part("settle", run.answered, now, {"stoker.state": outcome.state})
                tracing.tell("engine", run.job.trace, settle)
        for its, outcomes in by_series.items():
            measured = _measured(outcomes)
            self._sampler.add(its.model, its.lane, measured)
            its.count(measured)

    def ended(self, flight: Flight, how: str) -> None:
        """Record that a batch has ended; whatever of it has no outcome was cancelled, or goes back."""
        metrics.batches_ended.labels(how).inc()
        self._share.end(time.monotonic())
        sizes: list[int] = []
        for job in flight.batch.jobs:
            run = self._runs.get(job.id)
            if run is None or run.flight is not flight:
                continue  # put off, and back in another batch already
            del self._runs[job.id]
            if run.tokens:
                sizes.append(run.tokens)
            if job.trace and not run.answered:
                run.answered = time.monotonic()
                tracing.tell("engine", job.trace, _queue(run), self._attempt(run, None))
        batch, measured = flight.batch, Measures(sizes=Counter([len(flight.batch.jobs)]))
        if sizes:
            measured.padding, measured.batches = padding(sizes), 1
            series(batch.model, batch.lane).padding.observe(measured.padding)
        self._sampler.add(batch.model, batch.lane, measured)

    def look(self, engine: Engine) -> None:
        """Bring up to date what is not recorded as it happens; the heartbeat calls it."""
        self._share.tick(time.monotonic())
        self._upstreams.look(engine)

    def store(self, database: Database) -> None:
        """Store what was measured since the last time, and how the upstreams are: what the overview shows.

        These are statistics: whatever goes wrong, no engine ends by it.
        """
        try:
            self._sampler.store(database, self._upstreams.detail())
        except Exception as error:  # noqa: BLE001  # a table that may not be written, for example
            log.warning("what was measured is not stored", error=str(error)[:300], kind=type(error).__name__)

    def _attempt(self, run: Run, outcome: Outcome | None) -> Part:
        batch, job = run.flight.batch, run.job
        attributes: dict[str, Value] = {
            "stoker.job.id": job.id,
            "stoker.attempt": job.attempts,
            "stoker.lane": batch.lane,
            "stoker.batch.id": batch.id,
            "stoker.batch.jobs": len(batch.jobs),
            "stoker.engine": self._engine,
            "stoker.outcome": "none" if outcome is None else type(outcome).__name__.lower(),
            "gen_ai.request.model": batch.model,
        }
        if isinstance(outcome, Completion):
            attributes["gen_ai.usage.input_tokens"] = outcome.usage.prompt_tokens
            attributes["gen_ai.usage.output_tokens"] = outcome.usage.completion_tokens
        first = _first_event(run)
        error = outcome.code if isinstance(outcome, Rejection) else ""
        return Part("engine", run.claimed, run.answered, attributes, {"first token": first} if first else {}, error)


def padding(sizes: Sequence[int]) -> float:
    """Return which part of a batch would be padding if each of its requests were as long as the longest."""
    return 1.0 - sum(sizes) / (len(sizes) * max(sizes))


def _first_event(run: Run) -> float:
    stream = run.flight.streams.get(run.job.id)
    return stream.first_at if stream is not None else 0.0


def _record_first_token(run: Run, after: float) -> None:
    # Not in `Series`: most lanes have no streams, and a histogram that was looked up once is shown for ever.
    names = (run.series.model, run.series.lane)
    metrics.engine_first_token.labels(*names).observe(after)
    metrics.job_first_token.labels(*names).observe(max(0.0, run.job.waited) + after)


def _measured(outcomes: Sequence[tuple[Run, Settled]]) -> Measures:
    measured = Measures(ended=Counter(outcome.state for _, outcome in outcomes))
    for run, outcome in outcomes:
        result = outcome.result
        if outcome.state == "delayed" or result is None:
            continue
        measured.latency[step(run.job.waited + run.answered - run.claimed)] += 1
        if first := _first_event(run):
            measured.first[step(run.job.waited + first - run.claimed)] += 1
        if result.code:
            measured.errors[result.code] += 1
        measured.tokens["prompt"] += result.prompt_tokens
        measured.tokens["completion"] += result.completion_tokens
        measured.tokens["cached"] += result.cached_tokens
    return measured


def _queue(run: Run) -> Part:
    # By the database's clock until the claim, by ours from then on: where they differ, what is longer is this part.
    return Part("queue", run.claimed - max(0.0, run.job.waited), run.claimed, {"stoker.attempt": run.job.attempts})


class Share:
    """How long an engine was open, and how long of that it had a batch."""

    def __init__(self, engine: str, sampler: Sampler) -> None:
        self._sampler = sampler
        self._open = metrics.engine_open.labels(engine)
        self._busy = metrics.engine_busy.labels(engine)
        self._lock = threading.Lock()
        self._at = time.monotonic()
        self._batches = 0

    def begin(self, now: float) -> None:
        """Note that a batch begins."""
        self._count(now, 1)

    def end(self, now: float) -> None:
        """Note that a batch has ended."""
        self._count(now, -1)

    def tick(self, now: float) -> None:
        """Count up to now: a long batch is to be seen while it runs."""
        self._count(now, 0)

    def _count(self, now: float, more: int) -> None:
        with self._lock:
            since = max(0.0, now - self._at)
            busy = since if self._batches else 0.0
            self._open.inc(since)
            self._busy.inc(busy)
            self._sampler.add("", "", Measures(open=since, busy=busy))
            self._at = max(now, self._at)
            self._batches += more
