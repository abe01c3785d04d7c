"""What an operator sees of a real service: metrics of all its processes, and a trace through them."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import httpx
import pytest

from stoker.client import Client
from tests.journeys.running import Up, finished
from tests.receivers import receiver
from tests.spans import Seen, arrived
from tests.tasks.inprocess import until

pytestmark = [pytest.mark.journey, pytest.mark.timeout(600)]

TRACE, SPAN = "ab" * 16, "cd" * 8


def test_a_trace_follows_a_job_through_all_processes(data: Path) -> None:
    """Request, queue, engine, settle and webhook: one trace, all below the request's span, which is the client's."""
    with receiver() as collector, receiver() as hooks:
        up = Up(
            data,
            OTEL_EXPORTER_OTLP_ENDPOINT=collector.url,
            OTEL_BSP_SCHEDULE_DELAY="200",
            STOKER_WEBHOOK_ALLOW_CIDRS="127.0.0.0/8",
        )
        url = up.url()
        posted = httpx.post(
            f"{url}/v1/jobs",
            json={"prompt": "c4n4ry", "webhook_url": f"{hooks.url}/hook/s3cret"},
            headers={"traceparent": f"00-{TRACE}-{SPAN}-01"},
            timeout=60,
        )
        posted.raise_for_status()
        until(lambda: len(arrived(collector)) >= 5, 60)
        streamed = {"model": "fake", "messages": [{"role": "user", "content": "a"}], "stream": True}
        httpx.post(f"{url}/v1/chat/completions", json=streamed, timeout=60).raise_for_status()
        until(lambda: len(arrived(collector)) >= 9, 60)
        assert up.end() == 0
        spans, raw = arrived(collector), b"".join(request.body for request in collector.received)
        (hook,) = hooks.received
    way = _of(spans, TRACE)
    assert {name: span.service for name, span in way.items()} == {
        "POST /v1/jobs": "stoker-web",
        "queue": "stoker-engine",
        "engine": "stoker-engine",
        "settle": "stoker-engine",
        "deliver": "stoker-worker",
    }
    request = way["POST /v1/jobs"]
    assert request.parent == SPAN
    assert {span.parent for name, span in way.items() if span is not request} == {request.id}
    begins = [way[name].began for name in ("POST /v1/jobs", "queue", "engine", "settle", "deliver")]
    assert begins == sorted(begins)
    assert way["engine"].attributes["stoker.job.id"] == posted.json()["id"]
    assert hook.headers["traceparent"] == f"00-{TRACE}-{way['deliver'].id}-01"
    assert b"c4n4ry" not in raw
    assert b"s3cret" not in raw
    # The stream's own trace: its request's span holds all the others, the first token among them.
    (other,) = {span.trace for span in spans} - {TRACE}
    stream = _of(spans, other)
    whole, engine = stream["POST /v1/chat/completions"], stream["engine"]
    assert whole.parent == ""
    assert whole.began <= engine.began <= engine.events["first token"] <= engine.ended <= whole.ended


def _of(spans: list[Seen], trace: str) -> dict[str, Seen]:
    mine = [span for span in spans if span.trace == trace]
    assert len({span.name for span in mine}) == len(mine)
    return {span.name: span for span in mine}


def test_the_page_has_what_every_process_counts(data: Path) -> None:
    """Web server, collector, engine and worker, though only the first is asked; an engine that is idle is not busy."""
    kind = 'lane="standard",model="fake"'
    settled, running = f'stoker_jobs_settled_total{{{kind},state="succeeded"}}', f"stoker_jobs_open{{{kind},state="
    busy, share = (f'stoker_engine_{what}_seconds_total{{engine="engine"}}' for what in ("busy", "open"))
    with receiver() as hooks:
        up = Up(data, STOKER_WEBHOOK_ALLOW_CIDRS="127.0.0.0/8")
        url = up.url()
        with closing(Client(url)) as client:
            finished(client, prompt="one two", webhook_url=f"{hooks.url}/hook")
            slow = client.submit(prompt="[[slow:8]]")
            # The page's counts may be kept for long on a slow machine: the first are to have it already.
            until(lambda: client.get(slow.id).state == "running")
            during = _page_with(url, {f'{running}"running"}}': 1, busy: 1})
            client.wait(slow.id, timeout=120)
        page = _page_with(url, {'stoker_deliveries_total{outcome="delivered"}': 1, settled: 2, busy: 8})
        assert len(hooks.received) == 1
        assert up.end() == 0
    assert page[settled] == 2
    assert page[f"stoker_job_latency_seconds_count{{{kind}}}"] == 2
    assert page[f"stoker_batch_size_jobs_count{{{kind}}}"] == 2
    assert page['stoker_http_requests_total{method="POST",route="/v1/jobs",status="202"}'] == 2
    assert page['stoker_engine_slots{engine="engine"}'] > 0
    assert during[f'{running}"running"}}'] == 1
    assert during[busy] < page[busy] < page[share]


def _page_with(url: str, least: dict[str, float]) -> dict[str, float]:
    """Return the page as soon as these figures are at least so high."""
    pages: list[dict[str, float]] = []

    def look() -> bool:
        pages.append(_page(url))
        return all(pages[-1].get(name, 0) >= value for name, value in least.items())

    until(look, 60)
    return pages[-1]


def _page(url: str) -> dict[str, float]:
    lines = httpx.get(f"{url}/metrics", timeout=60).raise_for_status().text.splitlines()
    pairs = (line.rpartition(" ") for line in lines if not line.startswith("#"))
    return {name: float(value) for name, _, value in pairs}
