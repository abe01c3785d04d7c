"""The span of a request, and what of it is stored with its job."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import sqlalchemy as sa
from flask.testing import FlaskClient
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased

from models import jobs, traces
from models.db import Database
from stoker.settings import Settings
from webapi.app import create_app
from webapi.context import EXTENSION

TRACE, SPAN = "ab" * 16, "cd" * 8


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> InMemorySpanExporter:
    """Turn traces on; return what holds the spans that have ended."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider(sampler=ParentBased(ALWAYS_ON), shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("test")
    monkeypatch.setattr(traces, "tracer", lambda _process: tracer)
    return exporter


@pytest.fixture
def traced(settings: Settings, made: InMemorySpanExporter) -> Iterator[FlaskClient]:
    """Return a client of an application that makes traces."""
    app = create_app(settings)
    yield app.test_client()
    app.extensions[EXTENSION].close()


def stored(database: Database) -> list[str | None]:
    """Return the traces that are stored with jobs."""
    with database.reading() as tx:
        return list(tx.execute(sa.select(jobs.bodies.c.trace)).scalars())


def test_a_job_belongs_to_the_trace_of_its_request(
    traced: FlaskClient, made: InMemorySpanExporter, database: Database
) -> None:
    """The span continues the client's trace, and the job is stored with that span as its parent; no prompt is in it."""
    headers = {"traceparent": f"00-{TRACE}-{SPAN}-01"}
    traced.post("/v1/jobs", json={"prompt": "c4n4ry"}, headers=headers).close()
    (span,) = made.get_finished_spans()
    context = span.get_span_context()
    assert (span.name, f"{context.trace_id:032x}") == ("POST /v1/jobs", TRACE)
    assert span.parent is not None
    assert f"{span.parent.span_id:016x}" == SPAN
    assert span.attributes is not None
    assert span.attributes["http.response.status_code"] == 202
    assert stored(database) == [f"00-{TRACE}-{context.span_id:016x}-01"]
    assert "c4n4ry" not in span.to_json()


def test_a_client_without_a_trace_begins_one(
    traced: FlaskClient, made: InMemorySpanExporter, database: Database
) -> None:
    """Each such request is a trace of its own."""
    traced.post("/v1/jobs", json={"prompt": "a"})
    traced.post("/v1/jobs", json={"prompt": "b"})
    first, second = stored(database)
    assert first is not None
    assert second is not None
    assert first.split("-")[1] != second.split("-")[1]


def test_what_the_client_does_not_sample_is_not_traced(
    traced: FlaskClient, made: InMemorySpanExporter, database: Database
) -> None:
    """Its flag holds for all that follows: nothing is stored, nothing is sent."""
    traced.post("/v1/jobs", json={"prompt": "a"}, headers={"traceparent": f"00-{TRACE}-{SPAN}-00"})
    assert stored(database) == [None]
    assert made.get_finished_spans() == ()


def test_who_only_looks_is_traced_when_asked(traced: FlaskClient, made: InMemorySpanExporter) -> None:
    """Polls, probes and the metrics page make no traces of their own; a poll within a trace is part of it."""
    headers = {"traceparent": f"00-{TRACE}-{SPAN}-01"}
    with traced.post("/v1/jobs", json={"prompt": "a"}) as posted:
        path = f"/v1/jobs/{posted.json['id']}"
    for asked, more in ((path, {}), ("/metrics", {}), ("/livez", headers), (path, headers)):
        traced.get(asked, headers=more).close()
    assert [span.name for span in made.get_finished_spans()] == ["POST /v1/jobs", "GET /v1/jobs/<job_id>"]


def test_a_refused_request_ends_its_span(traced: FlaskClient, made: InMemorySpanExporter) -> None:
    """A body that is not valid has a span with its status, and no job."""
    traced.post("/v1/jobs", json={"prompt": "a", "n": 0}).close()
    (span,) = made.get_finished_spans()
    assert span.attributes is not None
    assert span.attributes["http.response.status_code"] == 422
    assert span.status.is_unset


def test_without_traces_a_job_has_none(client: FlaskClient, database: Database) -> None:
    """Nothing is stored of a `traceparent` that nobody continues."""
    client.post("/v1/jobs", json={"prompt": "a"}, headers={"traceparent": f"00-{TRACE}-{SPAN}-01"})
    assert stored(database) == [None]
