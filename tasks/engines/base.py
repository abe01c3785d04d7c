"""The contract between a worker and what runs its batches.

A worker hands a batch's requests to `Engine.generate` and stores each outcome as it is yielded. An engine knows
nothing of the database, of leases or of Celery.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from threading import Event
from typing import Protocol


class EngineFailure(Exception):
    """The engine is broken: what it had not answered goes back to the queue and the process ends.

    The text is one line that a person can act on.
    """


class EngineStartError(EngineFailure):
    """The engine cannot start with these settings (no such model, out of memory): starting again will not help."""


@dataclass(frozen=True, slots=True)
class Request:
    """One job as an engine sees it.

    `body` is the JSON text that the client sent (or that was made of its prompt), unchanged. `timeout` is in seconds
    from the moment the request has a slot in the engine; after that the engine aborts it and answers `Rejection` 408.

    `emit` is there when the body asks for a stream: it gets each event of the endpoint's own stream, the JSON text
    that stands behind `data: ` (no `[DONE]`), in order, from any thread; it never blocks and never raises. The outcome
    is the same as without a stream: a `Completion` with the whole answer. After the first event a request is never
    silently begun anew: what cannot go on is `Deferred`.

    `trace` is the `traceparent` of the client's request, where it is traced: for engines that are servers themselves.
    """

    id: str
    endpoint: str
    body: str = field(repr=False)
    lane: str
    timeout: float
    model: str = ""
    emit: Callable[[str], None] | None = field(default=None, repr=False)
    trace: str | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens that one request cost: how many of the prompt's came from a cache, of the answer's went into reasoning."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Completion:
    """The engine's answer: `body` is the JSON text of the endpoint's own answer object."""

    id: str
    body: str
    usage: Usage = field(default_factory=Usage)
    status: int = 200


@dataclass(frozen=True, slots=True)
class Rejection:
    """This request cannot succeed (bad body, too long, timed out). `body` is the endpoint's own error body or ''."""

    id: str
    code: str
    message: str
    status: int = 400
    body: str = ""


@dataclass(frozen=True, slots=True)
class Deferred:
    """Not now (an upstream's 429, a cut connection): try again after `retry_after` seconds or by backoff."""

    id: str
    reason: str
    retry_after: float | None = None


Outcome = Completion | Rejection | Deferred


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model that an engine answers for. `max_model_len` is in tokens; `tokenizer` a folder or Hugging Face id.

    `slots` is how many of its requests run at once, None when that is as many as of any other.
    """

    name: str
    max_model_len: int | None = None
    tokenizer: str | None = None
    slots: int | None = None


def reserved(slots: int, share: float) -> int:
    """Return how many of an engine's slots only realtime requests may use: at least one, and none of a single slot.

    `share` is `Settings.realtime_reserve`, 0 to 0.9; 0 reserves nothing.
    """
    if slots <= 1 or share <= 0:
        return 0
    return min(slots - 1, max(1, math.ceil(round(slots * share, 6))))


class Engine(Protocol):
    """What runs a batch. All methods may be called from any thread; several `generate` run at once."""

    @property
    def slots(self) -> int:
        """Return how many requests run at once inside the engine (vLLM: `max_num_seqs`).

        Known after `start`; an engine of upstreams that come and go may change it, and its models, at any time.
        """
        ...

    @property
    def models(self) -> tuple[ServedModel, ...]:
        """Return what the engine serves. Known after `start`."""
        ...

    def start(self) -> None:
        """Load whatever is to be loaded; return when requests can be served, or raise `EngineStartError`."""
        ...

    def generate(self, requests: Sequence[Request], stop: Event) -> Iterator[Completion | Rejection | Deferred]:
        """Yield one outcome per request, in any order, each as soon as it is done.

        When `stop` is set the engine aborts what is unfinished within a second and the iterator ends without outcomes
        for it. A broken engine raises `EngineFailure`.
        """
        ...

    def abort(self, ids: Sequence[str]) -> None:
        """Abort these requests inside the engine; no outcome is yielded for them. Unknown ids are ignored."""
        ...

    def last_progress(self) -> float:
        """Return the `time.monotonic()` of the newest token or outcome: how a hung engine is told from a slow one."""
        ...

    def close(self) -> None:
        """End the engine and its child processes; safe to call twice and after a failure."""
        ...
