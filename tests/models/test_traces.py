"""Traces cost nothing where nobody asks for them, and never hold a process up."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from models import traces
from tests.receivers import receiver
from tests.spans import arrived

ROOT = Path(__file__).parents[2]
AT_LEISURE = "traces.CLOSE_WITHIN = 60.0"
"""For what is not about the time that the last spans get: a busy machine takes longer to send them."""
TRACE = f"00-{'ab' * 16}-{'cd' * 8}-01"
MAKE_SPANS = f"""
import sys, time
from models import traces
tracer = traces.tracer("web")
started = time.monotonic()
for number in range(int(sys.argv[1])):
    tracer.start_span("one", traces.context_of("{TRACE}")).end()
print(time.monotonic() - started)
"""


def ran(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own."""
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=True)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/v1/traces"}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, False),
        ({"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": " "}, False),
    ],
)
def test_the_standard_variables_say_whether(given: dict[str, str], wanted: bool) -> None:
    """A collector's address or `otlp` as the exporter turns traces on; `none` and the switch turn them off."""
    assert traces.wanted(given) is wanted


def test_the_service_needs_nothing_of_opentelemetry() -> None:
    """Web server and tasks run without the packages, and there are no traces."""
    modules = "webapi.app, webapi.tracing, tasks.worker, tasks.webhook, tasks.recording"
    code = f"import sys; sys.modules['opentelemetry'] = None; import {modules}; from models import traces; "
    assert ran(f"{code}print(traces.tracer('web'))").stdout == "None\n"


def test_who_asks_without_the_packages_is_told() -> None:
    """The process starts all the same; the log says what to install."""
    code = "import sys; sys.modules['opentelemetry.sdk.trace'] = None; from models import traces; "
    said = ran(f"{code}print(traces.tracer('web'))", OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:1")
    assert said.stdout == "None\n"
    assert "pip install '.[otel]'" in said.stderr


def test_settings_that_opentelemetry_refuses_cost_the_traces_only() -> None:
    """Raised at each job they would count as failures of the engine."""
    endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}
    said = ran("from models import traces; print(traces.tracer('engine'))", OTEL_BSP_MAX_QUEUE_SIZE="-1", **endpoint)
    assert said.stdout == "None\n"
    assert "no traces: OpenTelemetry does not take its settings" in said.stderr


def test_spans_go_to_the_collector_under_the_process_name() -> None:
    """Also those of a process that ends at once; a parent that is no `traceparent` begins a new trace."""
    code = f"{MAKE_SPANS}\ntracer.start_span('alone', traces.context_of('garbage')).end()\n{AT_LEISURE}"
    with receiver() as collector:
        ran(code, "1", OTEL_EXPORTER_OTLP_ENDPOINT=collector.url)
        one, alone = sorted(arrived(collector), key=lambda span: span.name, reverse=True)
    assert (one.service, one.name, one.trace, one.parent) == ("stoker-web", "one", "ab" * 16, "cd" * 8)
    assert alone.trace != one.trace
    assert alone.parent == ""


def test_the_operators_service_name_stands() -> None:
    """OTEL_SERVICE_NAME is not overwritten."""
    with receiver() as collector:
        code = f"{MAKE_SPANS}\n{AT_LEISURE}"
        ran(code, "1", OTEL_EXPORTER_OTLP_ENDPOINT=collector.url, OTEL_SERVICE_NAME="mine")
        assert [span.service for span in arrived(collector)] == ["mine"]


def test_a_hung_collector_holds_nothing_up() -> None:
    """Spans are made as fast as ever, more than fit are dropped, and the process ends within seconds."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        started = time.monotonic()
        said = ran(MAKE_SPANS, "5000", OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{server.getsockname()[1]}")
    assert float(said.stdout) < 5
    assert time.monotonic() - started < 45
