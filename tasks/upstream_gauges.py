"""How each upstream of an engine is doing, for Prometheus; engines without upstreams have nothing here."""

from __future__ import annotations

import json
from urllib.parse import urlsplit

from tasks import metrics
from tasks.engines.base import Engine
from tasks.engines.upstreams.member import Facts


class Upstreams:
    """The upstreams of one engine as they were last seen."""

    def __init__(self, engine: str) -> None:
        self._engine = engine
        self._seen: dict[str, Facts] = {}

    def look(self, engine: Engine) -> None:
        """Bring the metrics up to date."""
        ask = getattr(engine, "upstreams", None)
        if ask is None:
            return
        now: dict[str, Facts] = {facts.url: facts for facts in ask()}
        for facts in now.values():
            self._show(facts, self._seen.get(facts.url))
        for url in self._seen.keys() - now.keys():
            # A gauge of several processes cannot be taken back, only be set.
            names = (self._engine, bare(url))
            for gauge in (metrics.upstream_healthy, metrics.upstream_limit, metrics.upstream_in_flight):
                gauge.labels(*names).set(0)
        self._seen = now

    def detail(self) -> str | None:
        """Return how each is doing as JSON, None for an engine without upstreams."""
        if not self._seen:
            return None
        told = [
            {
                "url": bare(facts.url),
                "healthy": facts.healthy,
                "in_flight": facts.in_flight,
                "limit": facts.limit,
                "waiting": facts.waiting,
                "latency": facts.latency,
                "models": facts.models,
                "why_down": facts.why_down,
            }
            for facts in self._seen.values()
        ]
        return json.dumps({"upstreams": told})

    def _show(self, facts: Facts, before: Facts | None) -> None:
        names = (self._engine, bare(facts.url))
        metrics.upstream_healthy.labels(*names).set(facts.healthy)
        metrics.upstream_limit.labels(*names).set(facts.limit)
        metrics.upstream_in_flight.labels(*names).set(facts.in_flight)
        if facts.latency is not None:
            metrics.upstream_latency.labels(*names).set(facts.latency)
        requests, errors = (before.requests, before.errors) if before else (0, 0)
        metrics.upstream_requests.labels(*names).inc(_more(facts.requests, requests))
        metrics.upstream_errors.labels(*names).inc(_more(facts.errors, errors))


def _more(now: int, before: int) -> int:
    """Return by how much a count grew; one that was taken off the list and put back begins anew."""
    return now - before if now >= before else now


def bare(url: str) -> str:
    """Return a URL without the name and password that may stand in it."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()
