"""What the tasks count and time, for Prometheus; the web server's /metrics gathers it from all processes."""

from __future__ import annotations

from typing import Literal

from prometheus_client import Counter, Gauge, Histogram

_RUNS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300)
_WAITS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600, 14400, 86400)
"""Seconds. A line of a bulk may wait for hours."""

batches_cut = Counter("stoker_batches_cut_total", "Batches cut by the collector.", ["model", "lane", "reason"])
batch_size = Histogram(
    "stoker_batch_size_jobs",
    "Jobs in a batch when it was cut.",
    ["model", "lane"],
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
)
cut_seconds = Histogram(
    "stoker_cut_seconds",
    "Time of one look at the queue, in seconds.",
    buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 5),
)
batches_ended = Counter("stoker_batches_ended_total", "Batches that ended, by how.", ["state"])
jobs_settled = Counter("stoker_jobs_settled_total", "Jobs settled by workers.", ["model", "lane", "state"])
job_wait = Histogram(
    "stoker_job_wait_seconds", "Time from a job's submission to its first claim.", ["model", "lane"], buckets=_WAITS
)
job_latency = Histogram(
    "stoker_job_latency_seconds", "Time from a job's submission to its last outcome.", ["model", "lane"], buckets=_WAITS
)
job_run = Histogram("stoker_job_run_seconds", "Time from claim to outcome.", ["model", "lane"], buckets=_RUNS)
job_first_token = Histogram(
    "stoker_job_first_token_seconds",
    "Time from a job's submission to the first event of its stream.",
    ["model", "lane"],
    buckets=_RUNS,
)
engine_first_token = Histogram(
    "stoker_engine_first_token_seconds",
    "Time from claim to the first event of a stream.",
    ["model", "lane"],
    buckets=_RUNS,
)
output_tokens = Histogram(
    "stoker_job_output_tokens",
    "Tokens of an answer.",
    ["model", "lane"],
    buckets=(1, 4, 16, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 32768),
)
padding = Histogram(
    "stoker_batch_padding_ratio",
    "Part of a batch that would be padding if each request were as long as the longest; nothing is padded here.",
    ["model", "lane"],
    buckets=(0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
)
executions = Counter("stoker_executions_total", "Jobs handed to an engine; above the jobs settled: repeated work.")
tokens = Counter("stoker_tokens_total", "Tokens of stored results.", ["model", "lane", "kind"])
cached_tokens = Counter(
    "stoker_cached_tokens_total", "Prompt tokens that came from the engine's prefix cache.", ["model", "lane"]
)
flush_size = Histogram(
    "stoker_flush_outcomes", "Outcomes stored in one commit.", buckets=(1, 2, 4, 8, 16, 32, 64, 128, 200)
)
flush_seconds = Histogram(
    "stoker_flush_seconds",
    "Time of one commit of outcomes.",
    buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1, 5),
)
lines_ingested = Counter(
    "stoker_lines_ingested_total", "Lines of bulks that were read, by what became of them.", ["as"]
)
deliveries = Counter("stoker_deliveries_total", "Tries of webhook deliveries, by how they ended.", ["outcome"])
webhook_events = Histogram(
    "stoker_webhook_request_events",
    "Events in one request of a webhook.",
    buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500, 1000),
)
webhooks_in_flight = Gauge(
    "stoker_webhook_requests_in_flight", "Requests of webhooks under way.", multiprocess_mode="livesum"
)
endpoints_disabled = Counter(
    "stoker_webhook_endpoints_disabled_total", "Webhook endpoints that were disabled since they only failed."
)
rings_failed = Counter("stoker_task_rings_failed_total", "Doorbells and announcements that could not be sent.")
swept = Counter("stoker_swept_total", "What the sweeper found, by kind.", ["kind"])
retired = Counter("stoker_retired_total", "What was deleted since its time had passed, by kind.", ["kind"])

engine_open = Counter("stoker_engine_open_seconds_total", "Time that an engine was open.", ["engine"])
engine_busy = Counter("stoker_engine_busy_seconds_total", "Time that an engine had a batch in flight.", ["engine"])

_UPSTREAM = ["engine", "upstream"]
upstream_requests = Counter("stoker_upstream_requests_total", "Requests sent to an upstream.", _UPSTREAM)
upstream_errors = Counter("stoker_upstream_errors_total", "Requests that failed by an upstream's fault.", _UPSTREAM)
# live: the page leaves out what a process that has ended said last.
_NEWEST: Literal["livemostrecent"] = "livemostrecent"
upstream_healthy = Gauge("stoker_upstream_healthy", "Whether an upstream is up.", _UPSTREAM, multiprocess_mode=_NEWEST)
upstream_limit = Gauge(
    "stoker_upstream_limit_requests", "Requests that it may have at once.", _UPSTREAM, multiprocess_mode=_NEWEST
)
upstream_in_flight = Gauge(
    "stoker_upstream_in_flight_requests", "Requests that it has.", _UPSTREAM, multiprocess_mode=_NEWEST
)
upstream_latency = Gauge(
    "stoker_upstream_latency_seconds", "Moving average of its answers' times.", _UPSTREAM, multiprocess_mode=_NEWEST
)
