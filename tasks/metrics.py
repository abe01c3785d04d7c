"""What the tasks count and time, for Prometheus; the web server's /metrics gathers it from all processes."""

from __future__ import annotations

from prometheus_client import Counter, Histogram

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
jobs_settled = Counter("stoker_jobs_settled_total", "Jobs settled by workers.", ["state"])
executions = Counter("stoker_executions_total", "Jobs handed to an engine; above the jobs settled: repeated work.")
tokens = Counter("stoker_tokens_total", "Tokens of stored results.", ["kind"])
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
rings_failed = Counter("stoker_task_rings_failed_total", "Doorbells and announcements that could not be sent.")
swept = Counter("stoker_swept_total", "What the sweeper found, by kind.", ["kind"])
retired = Counter("stoker_retired_total", "What was deleted since its time had passed, by kind.", ["kind"])
