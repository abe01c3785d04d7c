"""What the service tells of: jobs, bulks and their results, and OpenAI's batches and files. Times are unix seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

T = TypeVar("T")

ENDED = frozenset({"succeeded", "failed", "cancelled", "expired"})
BULK_ENDED = frozenset({"completed", "failed", "cancelled", "expired"})


@dataclass(frozen=True, slots=True)
class Job:
    """A job as the service last told of it."""

    id: str
    state: str
    lane: str
    model: str
    endpoint: str
    attempts: int
    created_at: float
    started_at: float | None = None
    finished_at: float | None = None
    expires_at: float | None = None
    queue_position: int | None = None
    usage: Mapping[str, int] | None = None
    result: Any = field(default=None, repr=False)
    error: Mapping[str, Any] | None = None
    metadata: Mapping[str, str] = field(default_factory=dict, repr=False)
    webhook_url: str | None = None

    @property
    def ended(self) -> bool:
        """Tell whether the job has reached an end state."""
        return self.state in ENDED

    @property
    def text(self) -> str:
        """Return the text of the first answer of a chat or completion, empty when there is none."""
        return text_of(self.result)


@dataclass(frozen=True, slots=True)
class Counts:
    """How many lines of a bulk are where. `invalid` lines could not be read, and are among the failed ones."""

    total: int = 0
    queued: int = 0
    running: int = 0
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    expired: int = 0
    invalid: int = 0

    @property
    def done(self) -> int:
        """Return how many have ended, however."""
        return self.succeeded + self.failed + self.cancelled + self.expired


@dataclass(frozen=True, slots=True)
class Bulk:
    """A bulk as the service last told of it. `counted`: all lines are read, the total is final."""

    id: str
    state: str
    lane: str = ""
    paused: bool = False
    model: str | None = None
    endpoint: str | None = None
    counts: Counts = field(default_factory=Counts)
    counted: bool = False
    rate: float | None = None
    tokens_per_second: float | None = None
    eta: float | None = None
    usage: Mapping[str, int] | None = None
    errors: Sequence[Mapping[str, Any]] = ()
    report: Mapping[str, Any] | None = None
    created_at: float | None = None
    started_at: float | None = None
    finished_at: float | None = None
    expires_at: float | None = None
    metadata: Mapping[str, str] = field(default_factory=dict, repr=False)
    kind: str = "bulk"
    retry_of: str | None = None
    dry_run: bool = False
    stop_after_failed: float | None = None
    webhook_url: str | None = None

    @property
    def ended(self) -> bool:
        """Tell whether the bulk has reached an end state."""
        return self.state in BULK_ENDED


@dataclass(frozen=True, slots=True)
class Result:
    """How one line of a bulk ended. `seq` counts a bulk's ended lines: read on behind it with `after=seq`."""

    seq: int
    line: int
    state: str
    custom_id: str | None = None
    job_id: str | None = None
    model: str | None = None
    engine: str | None = None
    attempts: int | None = None
    params: Mapping[str, Any] | None = field(default=None, repr=False)
    result: Any = field(default=None, repr=False)
    error: Mapping[str, Any] | None = None
    usage: Mapping[str, int] | None = None
    finished_at: float | None = None

    @property
    def ok(self) -> bool:
        """Tell whether the line succeeded."""
        return self.state == "succeeded"

    @property
    def text(self) -> str:
        """Return the text of the first answer of a chat or completion, empty when there is none."""
        return text_of(self.result)


@dataclass(frozen=True, slots=True)
class File:
    """A file of OpenAI's API."""

    id: str
    filename: str = ""
    purpose: str = ""
    bytes: int = 0
    status: str = ""
    created_at: float | None = None
    expires_at: float | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch of OpenAI's API."""

    id: str
    status: str
    endpoint: str = ""
    input_file_id: str = ""
    completion_window: str = ""
    model: str | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    request_counts: Mapping[str, int] = field(default_factory=dict)
    usage: Mapping[str, Any] | None = None
    errors: Mapping[str, Any] | None = None
    created_at: float | None = None
    in_progress_at: float | None = None
    finalizing_at: float | None = None
    completed_at: float | None = None
    failed_at: float | None = None
    expired_at: float | None = None
    cancelling_at: float | None = None
    cancelled_at: float | None = None
    expires_at: float | None = None
    metadata: Mapping[str, str] | None = field(default=None, repr=False)

    @property
    def ended(self) -> bool:
        """Tell whether the batch has reached an end state."""
        return self.status in BULK_ENDED


@dataclass(frozen=True, slots=True)
class Usage:
    """What an owner used of a model on a day (UTC): jobs by how they ended, tokens by kind."""

    date: str
    owner: str
    model: str
    jobs: Mapping[str, int] = field(default_factory=dict)
    tokens: Mapping[str, int] = field(default_factory=dict)


def made(kind: type[T], document: Mapping[str, Any]) -> T:
    """Return a resource of what the service told; what a newer service tells besides is no reason to fail."""
    known = {item.name for item in fields(kind)}  # type: ignore[arg-type]  # the kinds above are dataclasses
    given = {name: value for name, value in document.items() if name in known}
    if isinstance(given.get("counts"), dict):
        given["counts"] = made(Counts, given["counts"])
    return kind(**given)


def text_of(answer: Any) -> str:
    """Return the text of an engine's answer: a chat's, a completion's or a response's first; empty without one."""
    if not isinstance(answer, dict):
        return ""
    choices = answer.get("choices")
    first = choices[0] if choices else {}
    text = (first.get("message") or {}).get("content") or first.get("text")
    return str(text or _response_text(answer.get("output")))


def piece_of(event: Any) -> str:
    """Return what an event of an endpoint's stream adds to the text of the first answer, empty when nothing."""
    if not isinstance(event, dict):
        return ""
    first: Any = next((choice for choice in event.get("choices") or () if not choice.get("index")), {})
    text = (first.get("delta") or {}).get("content") or first.get("text")
    if event.get("type") == "response.output_text.delta":
        text = event.get("delta")
    return str(text or "")


def _response_text(output: Any) -> str:
    items = output if isinstance(output, list) else []
    parts = [part for item in items if item.get("type") == "message" for part in item.get("content") or ()]
    return "".join(str(part.get("text") or "") for part in parts)
