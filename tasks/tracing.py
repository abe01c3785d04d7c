"""The spans of a job behind its request: `queue`, `engine` and `settle` by its engine, `deliver` by a worker.

All hang below the request's span, which is stored with the job. No prompt and no answer is in them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from models import traces
from models.sending import Delivery, Try

if TYPE_CHECKING:
    from opentelemetry.trace import Span

Value = str | int | float | bool


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a job's way that is over. Times by `time.monotonic()`, `events` by name; `error` is a code."""

    name: str
    began: float
    ended: float
    attributes: Mapping[str, Value] = field(default_factory=dict)
    events: Mapping[str, float] = field(default_factory=dict)
    error: str = ""


def tell(process: str, trace: str, *parts: Part) -> None:
    """Make a span of each part, below the span that `trace` names."""
    tracer = traces.tracer(process)
    if tracer is None:
        return
    parent = traces.context_of(trace)
    ahead = time.time_ns() - time.monotonic_ns()
    for part in parts:
        span = tracer.start_span(part.name, parent, attributes=part.attributes, start_time=_at(part.began, ahead))
        for name, at in part.events.items():
            span.add_event(name, timestamp=_at(at, ahead))
        if part.error:
            _failed(span, part.error)
        span.end(_at(part.ended, ahead))


def _at(moment: float, ahead: int) -> int:
    return int(moment * 1e9) + ahead


def _failed(span: Span, code: str) -> None:
    from opentelemetry.trace import Status, StatusCode

    span.set_attribute("error.type", code)
    # Not the message: it may quote the prompt.
    span.set_status(Status(StatusCode.ERROR, code))


def wanted() -> bool:
    """Tell whether deliveries are to be traced."""
    return traces.tracer("worker") is not None


@dataclass(frozen=True, slots=True)
class Delivering:
    """A try of a delivery, under way; without a `span` its job is not traced. A receiver may continue by `header`."""

    span: Span | None = None
    header: Mapping[str, str] = field(default_factory=dict)

    def tried(self, ended: Try) -> None:
        """Say how it ended."""
        if self.span is None:
            return
        if ended.status is not None:
            self.span.set_attribute("http.response.status_code", ended.status)
        if not ended.ok:
            _failed(self.span, str(ended.status or "unreachable"))


@contextmanager
def delivering(trace: str | None, delivery: Delivery) -> Iterator[Delivering]:
    """Make a span of the try that is made inside."""
    tracer = traces.tracer("worker")
    if tracer is None or not trace:
        yield Delivering()
        return
    from opentelemetry.trace import SpanKind

    attributes: dict[str, Value] = {
        "stoker.job.id": delivery.job_id,
        "stoker.delivery.id": delivery.id,
        "stoker.delivery.try": delivery.attempt,
        # Not the URL: its path may be a secret.
        "server.address": urlsplit(delivery.url).hostname or "",
    }
    span = tracer.start_span("deliver", traces.context_of(trace), SpanKind.CLIENT, attributes)
    try:
        text = traces.text_of(span)
        yield Delivering(span, {"traceparent": text} if text else {})
    finally:
        span.end()
