"""What an operator sees of a real service: metrics of all its processes, and a trace through them."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from stoker.client import Client
from tests.journeys.running import Up, finished
from tests.receivers import receiver
from tests.spans import Seen, arrived

pytestmark = [pytest.mark.journey, pytest.mark.timeout(300)]

TRACE, SPAN = "ab" * 16, "cd" * 8


def until(true: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait until something is true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not become true in time"
        time.sleep(0.1)


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
        )
        posted.raise_for_status()
        until(lambda: len(arrived(collector)) >= 5)
        streamed = {"model": "fake", "messages": [{"role": "user", "content": "a"}], "stream": True}
        httpx.post(f"{url}/v1/chat/completions", json=streamed).raise_for_status()
        until(lambda: len(arrived(collector)) >= 9)
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
    with receiver() as hooks:
        up = Up(data, STOKER_WEBHOOK_ALLOW_CIDRS="127.0.0.0/8")
        url = up.url()
        with closing(Client(url)) as client:
            finished(client, prompt="one two", webhook_url=f"{hooks.url}/hook")
            slow = client.submit(prompt="[[slow:4]]")
            until(lambda: client.get(slow.id).state == "running")
            time.sleep(2.5)
            during = _page(url)
            client.wait(slow.id, timeout=60)
        until(lambda: bool(hooks.received) and _page(url).get('stoker_deliveries_total{outcome="delivered"}') == 1)
        page = _page(url)
        assert up.end() == 0
    kind = 'lane="standard",model="fake"'
    assert page[f'stoker_jobs_settled_total{{{kind},state="succeeded"}}'] == 2
    assert page[f"stoker_job_latency_seconds_count{{{kind}}}"] == 2
    assert page[f"stoker_batch_size_jobs_count{{{kind}}}"] == 2
    assert page['stoker_http_requests_total{method="POST",route="/v1/jobs",status="202"}'] == 2
    assert page['stoker_engine_slots{engine="engine"}'] > 0
    busy, share = (
        'stoker_engine_busy_seconds_total{engine="engine"}',
        'stoker_engine_open_seconds_total{engine="engine"}',
    )
    assert 1 < during[busy] < page[busy] < page[share]
    assert page[busy] >= 4
    assert during['stoker_jobs_open{lane="standard",model="fake",state="running"}'] == 1


def _page(url: str) -> dict[str, float]:
    lines = httpx.get(f"{url}/metrics").raise_for_status().text.splitlines()
    pairs = (line.rpartition(" ") for line in lines if not line.startswith("#"))
    return {name: float(value) for name, _, value in pairs}
