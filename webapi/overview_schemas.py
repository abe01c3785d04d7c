"""What `/v1/overview` takes and tells."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from webapi.schemas import Parameters


class OverviewQuery(Parameters):
    """How long a time to look back on."""

    model_config = ConfigDict(extra="forbid")

    minutes: Literal["15", "60", "360", "1440", "10080"] = Field(
        "60", description="How far the series, sizes and errors go back."
    )


class QueueRow(BaseModel):
    """The open jobs of one model and lane, by state; `oldest_seconds`: the age of the first in line, if not paused."""

    model: str
    lane: str
    queued: int
    delayed: int
    batched: int
    running: int
    oldest_seconds: float | None


class OwnerRow(BaseModel):
    """The open jobs of one owner: those that wait (queued, delayed or batched), and those that run."""

    owner: str
    waiting: int
    running: int


class UpstreamRow(BaseModel):
    """One server behind an engine that routes."""

    url: str
    healthy: bool
    in_flight: int
    limit: int
    waiting: int
    latency: float | None
    models: list[str]
    why_down: str


class EngineRow(BaseModel):
    """An engine: starting, live, draining, silent (no sign of life) or gone; `busy`: its share of the last minute."""

    name: str
    kind: str
    state: str
    host: str
    slots: int
    running: int
    models: list[str]
    busy: float | None
    silent_seconds: float
    age_seconds: float
    upstreams: list[UpstreamRow]


class BatchRow(BaseModel):
    """A batch in an engine; `reason` says why it was cut."""

    id: str
    model: str
    lane: str
    engine: str
    jobs: int
    reason: str
    seconds: float


class Percentiles(BaseModel):
    """Seconds; null where nothing was measured."""

    p50: float | None
    p95: float | None


class PercentilesOfPoints(BaseModel):
    """The same of each point."""

    p50: list[float | None]
    p95: list[float | None]


class Series(BaseModel):
    """Points of `step` seconds; jobs and tokens are per second, `busy` is a share.

    The present stretch is the last point once it has lasted a minute; its rates are over the time that it has lasted.
    """

    step: int
    at: list[int]
    jobs: list[float]
    failed: list[float]
    prompt_tokens: list[float]
    completion_tokens: list[float]
    wait: PercentilesOfPoints
    latency: PercentilesOfPoints
    busy: list[float | None]


class Size(BaseModel):
    """How many batches had so many jobs."""

    jobs: int
    batches: int


class ErrorRow(BaseModel):
    """How many jobs failed in engines with a code; what ends without one (`expired`, `poison`) is not among them."""

    code: str
    jobs: int


class Rates(BaseModel):
    """What was done over the last minute: jobs and tokens a second, `busy` is a share."""

    jobs: float
    failed: float
    prompt_tokens: float
    completion_tokens: float
    wait: Percentiles
    latency: Percentiles
    busy: float | None


class Overview(BaseModel):
    """What goes on. What is null needs the scope admin."""

    object: str
    at: float
    minutes: int
    queue: list[QueueRow]
    owners: list[OwnerRow] | None
    engines: list[EngineRow] | None
    batches: list[BatchRow] | None
    batches_ready: int | None
    batches_running: int | None
    deliveries_pending: int | None
    rates: Rates | None
    series: Series | None
    sizes: list[Size] | None
    padding: float | None
    errors: list[ErrorRow] | None
