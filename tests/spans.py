"""The spans that reached a collector (`tests.receivers` takes them), decoded as the protocol has them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.receivers import Receiver


@dataclass(frozen=True, slots=True)
class Seen:
    """A span as it arrived; ids in hexadecimal, times in seconds."""

    service: str
    name: str
    trace: str
    id: str
    parent: str
    began: float
    ended: float
    attributes: dict[str, Any]
    events: dict[str, float]
    failed: bool


def arrived(collector: Receiver) -> list[Seen]:
    """Return every span that a collector has got."""
    found = []
    for request in list(collector.received):
        assert request.path == "/v1/traces"
        for group in ExportTraceServiceRequest.FromString(request.body).resource_spans:
            service = _values(group.resource.attributes)["service.name"]
            found += [_seen(service, span) for scope in group.scope_spans for span in scope.spans]
    return found


def _seen(service: str, span: Any) -> Seen:
    return Seen(
        service,
        span.name,
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        span.start_time_unix_nano / 1e9,
        span.end_time_unix_nano / 1e9,
        _values(span.attributes),
        {event.name: event.time_unix_nano / 1e9 for event in span.events},
        span.status.code == span.status.STATUS_CODE_ERROR,
    )


def _values(attributes: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}
