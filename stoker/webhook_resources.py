"""What the service tells of webhooks: endpoints, and deliveries on their way to them. Times are unix seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class WebhookEndpoint:
    """Where an owner is told of events. `signing_secret` is there once: at create and rotate."""

    id: str
    name: str
    url: str
    event_types: Sequence[str] = ()
    signing_secret: str | None = field(default=None, repr=False)
    signing_secret_hint: str = ""
    include_result: bool = False
    coalesce: float | None = None
    enabled: bool = True
    disabled_at: float | None = None
    disabled_reason: str | None = None
    created_at: float | None = None
    updated_at: float | None = None


@dataclass(frozen=True, slots=True)
class Delivery:
    """One event on its way to one URL. `tries` are there when it is looked at by itself."""

    id: str
    state: str
    event: str
    job_id: str
    url: str = field(default="", repr=False)
    endpoint_id: str | None = None
    group_id: str | None = None
    attempts: int = 0
    created_at: float | None = None
    delivered_at: float | None = None
    next_attempt_at: float | None = None
    status_code: int | None = None
    latency_ms: int | None = None
    error: str | None = None
    answer: str | None = field(default=None, repr=False)
    tries: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True, slots=True)
class Redelivered:
    """How many deliveries are sent once more; with `has_more`, go on with `after=next_after`."""

    redelivered: int
    has_more: bool = False
    next_after: str | None = None
