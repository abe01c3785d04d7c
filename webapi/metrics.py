"""Prometheus metrics of the web side, and the page that shows everybody's.

With PROMETHEUS_MULTIPROC_DIR set (prometheus-client reads it) the page adds up all processes that share that folder.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path

from flask import Flask, Response, g, request
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

REQUESTS = Counter("stoker_http_requests", "HTTP requests answered.", ["route", "method", "status"])
SECONDS = Histogram(
    "stoker_http_request_seconds",
    "Time to answer, waits included; of a stream to its first event.",
    ["route", "method"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
)
DOORBELL_FAILURES = Counter("stoker_doorbell_failures", "Rings of the web server that the broker did not take.")

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def install(app: Flask) -> None:
    """Count and time every request of an application."""
    app.before_request(_started)
    app.after_request(_ended)


def _started() -> None:
    g.started = time.perf_counter()


def _ended(response: Response) -> Response:
    # The rule, not the path: paths hold ids, and every new label value stays in memory for ever.
    route = request.url_rule.rule if request.url_rule else "none"
    method = request.method if request.method in METHODS else "other"
    REQUESTS.labels(route, method, str(response.status_code)).inc()
    if (started := g.get("started")) is not None:
        SECONDS.labels(route, method).observe(time.perf_counter() - started)
    return response


class Gauges(Collector):
    """Metrics that are made when the page is asked for."""

    def __init__(self, made: Iterable[Metric]) -> None:
        self._made = list(made)

    def collect(self) -> Iterable[Metric]:
        """Return them."""
        return self._made


def forget_dead(folder: Path) -> None:
    """Take away the gauges of processes that have ended: nobody else does for one that was killed."""
    for file in folder.glob("gauge_live*_*.db"):
        pid = file.stem.rpartition("_")[2]
        if pid.isdecimal() and not Path("/proc", pid).exists():
            file.unlink(missing_ok=True)


def page(gauges: Iterable[Metric]) -> tuple[bytes, str]:
    """Return the page of metrics, with these gauges on it, and its content type."""
    registry = CollectorRegistry()
    if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        forget_dead(Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]))
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    else:
        registry.register(REGISTRY)
    registry.register(Gauges(gauges))
    return generate_latest(registry), CONTENT_TYPE_LATEST
