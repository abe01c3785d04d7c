"""What the tasks count and time, for Prometheus; the web server's /metrics gathers it from all processes."""

from __future__ import annotations

from typing import Literal

from prometheus_client import Counter, Gauge, Histogram

_RUNS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300)
_WAITS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600, 14400, 86400)
"""Seconds. A line of a bulk may wait for hours."""

batches_cut = Counter(
    "stoker_batches_cut_total", "Batches cut: `full`, `waited`, `room` or `cohort`.", ["model", "lane", "reason"]
)
batch_size = Histogram(
    "stoker_batch_size_jobs",
    "Jobs in a batch when it was cut.",
    ["model", "lane"],
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
)
cut_seconds = Histogram(
    "stoker_cut_seconds",
    "Time of one look at the queue.",
    buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 5),
)
batches_ended = Counter("stoker_batches_ended_total", "Batches that ended: `finished`, `returned`, `lost`.", ["state"])
jobs_settled = Counter(
    "stoker_jobs_settled_total",
    "Jobs settled by workers: `succeeded`, `failed`, `expired` (in the engine), or `delayed` (put off, not ended).",
    ["model", "lane", "state"],
)
job_wait = Histogram(
    "stoker_job_wait_seconds",
    "From submission to the first claim by an engine, by the database's clock.",
    ["model", "lane"],
    buckets=_WAITS,
)
job_latency = Histogram(
    "stoker_job_latency_seconds",
    "From submission to the last outcome: all attempts, all delays.",
    ["model", "lane"],
    buckets=_WAITS,
)
job_run = Histogram(
    "stoker_job_run_seconds",
    "From claim to outcome, the wait at the engine's gate included.",
    ["model", "lane"],
    buckets=_RUNS,
)
job_first_token = Histogram(
    "stoker_job_first_token_seconds",
    "From submission to the first event, of jobs with a stream.",
    ["model", "lane"],
    buckets=_RUNS,
)
engine_first_token = Histogram(
    "stoker_engine_first_token_seconds",
    "From claim to the first event, of jobs with a stream.",
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
    "What a static, padded batch would have wasted: 1 - tokens / (requests * the longest's tokens), prompt and answer. "
    "Nothing is padded here; it tells how alike a policy makes its batches.",
    ["model", "lane"],
    buckets=(0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
)
executions = Counter(
    "stoker_executions_total", "Jobs handed to an engine. Above the settled: work done again after crashes."
)
tokens = Counter(
    "stoker_tokens_total", "Tokens of stored results; `kind` is `prompt` or `completion`.", ["model", "lane", "kind"]
)
cached_tokens = Counter(
    "stoker_cached_tokens_total", "Of the prompts' tokens those that the engine's prefix cache had.", ["model", "lane"]
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
deliveries = Counter(
    "stoker_deliveries_total",
    "Tries of webhook deliveries: `delivered`, `retry`, `failed`, `gone` (410), `refused` (an internal address), "
    "`lost` (another sender has it).",
    ["outcome"],
)
webhook_events = Histogram(
    "stoker_webhook_request_events",
    "Events in one request of a webhook.",
    buckets=(1, 2, 5, 10, 20, 50, 100, 200, 500, 1000),
)
webhooks_in_flight = Gauge(
    "stoker_webhook_requests_in_flight", "Requests of webhooks under way.", multiprocess_mode="livesum"
)
endpoints_disabled = Counter(
    "stoker_webhook_endpoints_disabled_total", "Endpoints that were disabled since they only failed, or were gone."
)
rings_failed = Counter(
    "stoker_task_rings_failed_total", "Rings and announcements of the tasks that the broker did not take."
)
swept = Counter("stoker_swept_total", "What the sweeper found.", ["kind"])
retired = Counter("stoker_retired_total", "What was deleted since its time had passed.", ["kind"])

engine_open = Counter("stoker_engine_open_seconds_total", "Time that an engine was open.", ["engine"])
engine_busy = Counter(
    "stoker_engine_busy_seconds_total",
    "Time that an engine had a batch in flight; grows also in the middle of a long one.",
    ["engine"],
)

_UPSTREAM = ["engine", "upstream"]
upstream_requests = Counter("stoker_upstream_requests_total", "Requests that an upstream got.", _UPSTREAM)
upstream_errors = Counter("stoker_upstream_errors_total", "Requests that failed by an upstream's own fault.", _UPSTREAM)
# live: the page leaves out what a process that has ended said last.
_NEWEST: Literal["livemostrecent"] = "livemostrecent"
upstream_healthy = Gauge(
    "stoker_upstream_healthy", "1 while requests are sent to an upstream.", _UPSTREAM, multiprocess_mode=_NEWEST
)
upstream_limit = Gauge(
    "stoker_upstream_limit_requests",
    "Requests that an upstream may have at once: configured, or the knee that was found.",
    _UPSTREAM,
    multiprocess_mode=_NEWEST,
)
upstream_in_flight = Gauge(
    "stoker_upstream_in_flight_requests", "Requests that an upstream has.", _UPSTREAM, multiprocess_mode=_NEWEST
)
upstream_latency = Gauge(
    "stoker_upstream_latency_seconds",
    "Moving average of the time of an upstream's answers.",
    _UPSTREAM,
    multiprocess_mode=_NEWEST,
)
