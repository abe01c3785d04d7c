"""What a worker records of its jobs: metrics by model and lane, and spans."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import sqlalchemy as sa
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import REGISTRY

from models import ends, engines, samples, traces
from models.db import Database
from models.engines import Incarnation
from models.jobs import NewJob, submit
from models.measures import total
from stoker.settings import Settings, load
from tasks import collector
from tasks.engines.fake import FakeEngine
from tasks.engines.upstreams.member import Facts
from tasks.recording import Recorder, Share, padding
from tasks.sampling import Sampler
from tasks.upstream_gauges import Upstreams, bare
from tests.tasks.inprocess import Bell, chat, end, states, until, worker

TRACE, SPAN = "ab" * 16, "cd" * 8
MINE = Incarnation("engine", "run_1", "fake", "host", 1, 1, "boot:1")
FACTS = Facts("http://user:secret@gpu1:8000", True, 8, 3, 0, 10, 1, 0.5, ("m",), "")


@pytest.fixture(autouse=True)
def bell(monkeypatch: pytest.MonkeyPatch) -> Bell:
    """Record all doorbells."""
    made = Bell()
    monkeypatch.setattr(collector, "doorbell", lambda: made)
    return made


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """Turn traces on; return what holds the spans that have ended."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("test")
    monkeypatch.setattr(traces, "tracer", lambda _process: tracer)
    return exporter


class Counts:
    """Metrics of one model and lane, as they grew since this was made."""

    def __init__(self, lane: str, **labels: str) -> None:
        self._labels = {"model": "fake", "lane": lane, **labels}
        self._start = self._all()

    def _all(self) -> dict[tuple[str, str], float]:
        return {
            (sample.name, json.dumps(sample.labels, sort_keys=True)): sample.value
            for family in REGISTRY.collect()
            for sample in family.samples
        }

    def grew(self, name: str, **labels: str) -> float:
        """Return by how much a sample grew."""
        key = (f"stoker_{name}", json.dumps({**self._labels, **labels}, sort_keys=True))
        return self._all().get(key, 0.0) - self._start.get(key, 0.0)


def run(database: Database, settings: Settings, *new: NewJob, ended: int, **more: Any) -> None:
    """Run jobs in a worker until so many have ended; end the worker."""
    chosen = load(**{**settings.model_dump(), "cancel_poll": 0.05, "drain_timeout": 0.2, **more})
    one = worker(database, chosen, Bell())
    with database.transaction() as tx:
        for job in new:
            submit(tx, job)

    def step() -> bool:
        collector.cut_all(database, chosen, "fake")
        one.run()
        return sum(count for state, count in states(database).items() if state in {"succeeded", "failed"}) == ended

    until(step)
    end(one)


def job(prompt: str, lane: str = "bulk", trace: str = "", **body: Any) -> NewJob:
    """Return a job that is not stored."""
    text = json.dumps({**json.loads(chat(prompt)), **body})
    return NewJob("owner", "fake", "/v1/chat/completions", text, lane, trace=trace)


def test_jobs_are_measured_by_model_and_lane(database: Database, settings: Settings) -> None:
    """Wait, run, latency, tokens and end states: each job once, under its own lane; a refused one has no tokens."""
    bulk, standard = Counts("bulk"), Counts("standard")
    run(database, settings, job("one two"), job("a b c d"), job("[[reject]]"), job("x", "standard"), ended=4)
    assert bulk.grew("jobs_settled_total", state="succeeded") == 2
    assert bulk.grew("jobs_settled_total", state="failed") == 1
    assert standard.grew("jobs_settled_total", state="succeeded") == 1
    for name in ("job_wait_seconds", "job_run_seconds", "job_latency_seconds"):
        assert (bulk.grew(f"{name}_count"), standard.grew(f"{name}_count")) == (3, 1)
    assert bulk.grew("job_latency_seconds_sum") >= bulk.grew("job_run_seconds_sum") >= 0
    assert bulk.grew("tokens_total", kind="completion") == 3 + 5  # `echo:` and the prompt
    assert bulk.grew("tokens_total", kind="prompt") > 0
    assert bulk.grew("job_output_tokens_sum") == 3 + 5
    assert bulk.grew("job_first_token_seconds_count") == 0
    assert bulk.grew("batch_padding_ratio_count") >= 1


def test_what_is_measured_is_stored(database: Database, settings: Settings) -> None:
    """At the end at the latest: in stretches of both widths the same jobs, tokens, waits, sizes and errors."""
    run(database, settings, job("one two"), job("a b c d"), job("[[reject]]"), ended=3)
    with database.reading() as tx:
        stored = {width: list(samples.read(tx, width, 0)) for width in samples.WIDTHS}
    for found in stored.values():
        added = total(sample.measures for sample in found if sample.model)
        assert added.ended == {"succeeded": 2, "failed": 1}
        assert list(added.errors.values()) == [1]
        assert added.tokens["completion"] == 3 + 5
        assert added.wait.total() == added.latency.total() == 3
        assert sum(size * count for size, count in added.sizes.items()) == 3
        (own,) = [total(sample.measures for sample in found if not sample.model)]
        assert own.open >= own.busy > 0


def test_statistics_that_cannot_be_stored_end_no_engine(
    database: Database, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table that may not be written, for example: the jobs are run all the same, and the engine leaves in order."""

    def refused(*_: object) -> None:
        raise sa.exc.ProgrammingError("INSERT INTO samples", {}, Exception("permission denied"))

    monkeypatch.setattr(samples, "write", refused)
    run(database, settings, job("one two"), ended=1)
    with database.reading() as tx:
        assert tx.execute(sa.select(engines.table.c.state)).scalar_one() == "gone"


def test_a_job_that_comes_back_waits_once(database: Database, settings: Settings) -> None:
    """What an upstream put off is claimed again: its wait and its end are counted once."""
    counts = Counts("bulk")
    chosen = settings.model_copy(update={"max_deferrals": 1})
    run(database, chosen, job("[[defer:0]]"), ended=1)
    assert counts.grew("job_wait_seconds_count") == 1
    assert counts.grew("jobs_settled_total", state="failed") == 1


def test_the_first_token_of_a_stream_is_timed(database: Database, settings: Settings) -> None:
    """From the submission and from the claim; before the job's end when its words take time."""
    counts = Counts("realtime")
    run(database, settings, job("a b c d e f", "realtime", stream=True), ended=1, fake_base_ms=30, fake_token_ms=20)
    assert counts.grew("job_first_token_seconds_count") == counts.grew("engine_first_token_seconds_count") == 1
    first = counts.grew("engine_first_token_seconds_sum")
    assert 0.02 < first < counts.grew("job_run_seconds_sum")
    assert counts.grew("job_first_token_seconds_sum") >= first


def test_what_is_stored_of_a_job_that_is_not_here_any_more_is_passed_over() -> None:
    """It was put off, and went through another batch before this was told."""
    Recorder(MINE).stored([ends.Settled("job_gone", "delayed")])


def test_padding_is_what_the_longest_would_cost_the_others() -> None:
    """None for equals or one alone; one long among short ones wastes nearly all."""
    assert padding([7]) == padding([5, 5, 5]) == 0
    assert padding([10, 30]) == pytest.approx(1 / 3)
    assert padding([1] * 9 + [1000]) > 0.89


def test_an_engines_busy_share_grows_while_a_batch_runs() -> None:
    """Time in which two batches overlap counts once; an idle engine's counts as open only."""
    share = Share("test_share", Sampler(MINE))

    def counted() -> tuple[float, float]:
        values = [REGISTRY.get_sample_value(f"stoker_engine_{name}_seconds_total", {"engine": "test_share"})
                  for name in ("open", "busy")]  # fmt: skip
        return values[0] or 0.0, values[1] or 0.0

    start = share._at
    share.begin(start + 10)
    share.tick(start + 13)
    assert counted() == pytest.approx((13, 3))
    share.begin(start + 12)  # another thread's, late
    share.end(start + 14)
    share.end(start + 15)
    share.tick(start + 20)
    assert counted() == pytest.approx((20, 5))


class Pool(FakeEngine):
    """An engine that tells of upstreams."""

    facts: list[Facts]

    def upstreams(self) -> list[Facts]:
        """Return what the test says."""
        return self.facts


def shown(name: str) -> float | None:
    """Return a metric of the upstream."""
    return REGISTRY.get_sample_value(f"stoker_upstream_{name}", {"engine": "pool", "upstream": "http://gpu1:8000"})


def test_upstreams_are_shown_without_their_credentials() -> None:
    """Gauges as they are, counts by what they grew; one that is taken off the list is down and has nothing."""
    engine, seen = Pool(load()), Upstreams("pool")
    engine.facts = [FACTS]
    seen.look(engine)
    engine.facts = [replace(FACTS, requests=14, errors=2, healthy=False, latency=None)]
    seen.look(engine)
    assert (shown("requests_total"), shown("errors_total")) == (14, 2)
    assert (shown("healthy"), shown("limit_requests"), shown("in_flight_requests")) == (0, 8, 3)
    assert shown("latency_seconds") == 0.5
    engine.facts = []
    seen.look(engine)
    assert (shown("healthy"), shown("limit_requests"), shown("in_flight_requests")) == (0, 0, 0)
    engine.facts = [replace(FACTS, requests=2, errors=0)]
    seen.look(engine)
    assert (shown("requests_total"), shown("errors_total")) == (16, 2)
    seen.look(FakeEngine(load()))
    assert bare("https://a:b@[::1]:80/v1?key=x") == "https://[::1]:80/v1"


def by_name(spans: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    """Return the spans by their names."""
    return {span.name: span for span in spans.get_finished_spans()}


def test_a_traced_job_leaves_its_way(database: Database, settings: Settings, spans: InMemorySpanExporter) -> None:
    """Queue, engine and settle follow each other below the request's span; of the others there is nothing."""
    trace = f"00-{TRACE}-{SPAN}-01"
    run(database, settings, job("c4n4ry", "realtime", trace, stream=True), job("other"), ended=2)
    found = by_name(spans)
    assert sorted(span.name for span in spans.get_finished_spans()) == ["engine", "queue", "settle"]
    for span in found.values():
        assert f"{span.get_span_context().trace_id:032x}" == TRACE
        assert span.parent is not None
        assert f"{span.parent.span_id:016x}" == SPAN
        assert "c4n4ry" not in span.to_json()
    times = [at for name in ("queue", "engine", "settle") for at in (found[name].start_time, found[name].end_time)]
    # To a millisecond: a part's times are of two clocks, which are read one after the other.
    assert all((later or 0) - (sooner or 0) > -1e6 for sooner, later in pairwise(times))
    engine = found["engine"]
    assert engine.attributes is not None
    assert engine.attributes["gen_ai.request.model"] == "fake"
    assert engine.attributes["gen_ai.usage.output_tokens"] == 2
    assert (engine.attributes["stoker.lane"], engine.attributes["stoker.attempt"]) == ("realtime", 1)
    assert [event.name for event in engine.events] == ["first token"]


def test_a_failed_job_says_its_code_only(database: Database, settings: Settings, spans: InMemorySpanExporter) -> None:
    """Its message may quote the prompt."""
    run(database, settings, job("[[reject]]", trace=f"00-{TRACE}-{SPAN}-01"), ended=1)
    engine = by_name(spans)["engine"]
    assert not engine.status.is_ok
    assert engine.attributes is not None
    assert engine.attributes["error.type"] == "invalid_request"
    assert "rejected" not in engine.to_json()


def test_a_cancelled_job_leaves_its_time_in_the_engine(
    database: Database, settings: Settings, spans: InMemorySpanExporter
) -> None:
    """Its attempt had no outcome, and says so."""
    one = worker(database, load(**{**settings.model_dump(), "cancel_poll": 0.05, "drain_timeout": 0.2}), Bell())
    with database.transaction() as tx:
        held = submit(tx, job("[[hang]]", "realtime", f"00-{TRACE}-{SPAN}-01"))
    one.serve("fake")
    until(lambda: states(database) == {"running": 1})
    with database.transaction() as tx:
        ends.cancel(tx, "owner", held.id)
    until(lambda: not one.in_flight() and len(spans.get_finished_spans()) == 2)
    assert (by_name(spans)["engine"].attributes or {})["stoker.outcome"] == "none"
    end(one)
