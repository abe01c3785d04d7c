"""The span of a request: it continues the client's trace, and what its job goes through hangs below it."""

from __future__ import annotations

from flask import Flask, Response, g, has_request_context, request

from models import traces
from webapi.metrics import METHODS

_ERROR = 500


def install(app: Flask) -> None:
    """Make spans of the requests of an application, if traces are wanted."""
    if traces.tracer("web") is not None:
        app.before_request(_begin)
        app.after_request(_answered)


def current() -> str:
    """Return the `traceparent` for a job that this request makes; "" when it is not traced."""
    return str(g.get("trace", "")) if has_request_context() else ""


def _is_traced() -> bool:
    """Tell whether a request gets a span: it may make a job, or its client asks for it."""
    # Polls without a trace of their own would each be one: thousands of traces of a single span.
    return request.path.startswith("/v1/") and (request.method == "POST" or "traceparent" in request.headers)


def _begin() -> None:
    tracer = traces.tracer("web")
    if tracer is None or not _is_traced():
        return
    from opentelemetry.trace import SpanKind

    method = request.method if request.method in METHODS else "other"
    route = request.url_rule.rule if request.url_rule else "none"
    g.span = tracer.start_span(
        f"{method} {route}",
        context=traces.context_of(request.headers.get("traceparent", "")),
        kind=SpanKind.SERVER,
        attributes={"http.request.method": method, "http.route": route},
    )
    g.trace = traces.text_of(g.span)


def _answered(response: Response) -> Response:
    if (span := g.pop("span", None)) is not None:
        _describe(span, response)
        # A stream goes on after this: its span lasts until the last event is sent, or the client has gone.
        response.call_on_close(span.end)
    return response


def _describe(span: object, response: Response) -> None:
    from opentelemetry.trace import Span, StatusCode

    assert isinstance(span, Span)  # noqa: S101  # for mypy: what g holds is Any
    span.set_attribute("http.response.status_code", response.status_code)
    if g.get("request_id"):
        span.set_attribute("stoker.request.id", g.request_id)
    if job := response.headers.get("X-Stoker-Job"):
        span.set_attribute("stoker.job.id", job)
    if response.status_code >= _ERROR:
        span.set_status(StatusCode.ERROR)
