"""Traces: where the spans of a process go, and what of a trace is stored with its job (`bodies.trace`).

Configured by OpenTelemetry's own variables (OTEL_EXPORTER_OTLP_ENDPOINT and its siblings). Without them nothing of
OpenTelemetry is imported here. Spans leave from a thread of their own; when their collector is away they are dropped.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span, Tracer

log = logging.getLogger("stoker.traces")

CLOSE_WITHIN = 2.0
"""Seconds that the last spans of a process get at its end: a collector that hangs must not hold that up."""
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


def wanted(given: Mapping[str, str]) -> bool:
    """Tell whether an environment asks for traces: it names a collector, or `otlp` as the exporter."""
    if given.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    if exporters := given.get("OTEL_TRACES_EXPORTER", "").strip():
        return "otlp" in [name.strip() for name in exporters.split(",")]
    return any(given.get(name, "").strip() for name in _ENDPOINTS)


@cache
def tracer(process: str) -> Tracer | None:
    """Return what makes spans in this process (`web`, `engine`, `worker`); None when no traces are wanted.

    To be called in the process itself, not before it is forked off: it starts a thread.
    """
    if not wanted(os.environ):
        return None
    try:
        return _provider(process).get_tracer("stoker")
    except ImportError:
        log.warning("traces need OpenTelemetry, which is not installed: pip install '.[otel]' in stoker's folder")
    except ValueError as error:
        # Raised at each job, it would count as the engine's failure, and the jobs as poison.
        log.warning("no traces: OpenTelemetry does not take its settings: %s", error)
    return None


def _provider(process: str) -> TracerProvider:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    # Its own end would wait for as long as a collector hangs. Not the global one: that is vLLM's, or the operator's.
    made = TracerProvider(resource=_resource(process), shutdown_on_exit=False)
    made.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    asked = threading.Event()

    def close() -> None:
        asked.wait()
        made.shutdown()

    # Started now: at the end of a process no thread can be started any more.
    closer = threading.Thread(target=close, name="traces-end", daemon=True)
    closer.start()

    def end() -> None:
        asked.set()
        closer.join(CLOSE_WITHIN)

    atexit.register(end)
    return made


def _resource(process: str) -> Resource:
    from opentelemetry.sdk.resources import Resource

    made = Resource.create({"stoker.process": process})
    if str(made.attributes.get("service.name", "")).startswith("unknown_service"):
        return made.merge(Resource({"service.name": f"stoker-{process}"}))
    return made


def context_of(trace: str) -> Context:
    """Return the context that a `traceparent` names; an empty one where it is not valid."""
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract({"traceparent": trace})


def text_of(span: Span) -> str:
    """Return a span as the `traceparent` of those below it; "" when it is not sampled, and so nothing below it is."""
    context = span.get_span_context()
    if not context.trace_flags.sampled:
        return ""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-01"
