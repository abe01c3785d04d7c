"""What webhooks tell of: the names of the events, and which one an end is. Pure."""

from __future__ import annotations

from models.states import BULK, JOB

JOBS = tuple(f"job.{state}" for state in ("succeeded", "failed", "cancelled", "expired"))
BULKS = tuple(
    f"{kind}.{state}" for kind in ("bulk", "batch") for state in ("completed", "failed", "expired", "cancelled")
)
RESPONSES = tuple(f"response.{state}" for state in ("completed", "failed", "cancelled", "incomplete"))
ALL = JOBS + BULKS + RESPONSES
"""Every event that an endpoint can ask for. A line of a bulk is a job, and has the events of one."""
OF_EACH_JOB = frozenset(JOBS + RESPONSES)
"""Those of which each job has one."""

_OF_RESPONSE = {"failed": "failed", "expired": "failed", "cancelled": "cancelled"}


def of_job(state: str) -> str:
    """Return the event of a job that ended in this state."""
    return f"job.{state}"


def of_bulk(kind: str, state: str) -> str:
    """Return the event of a bulk, or of an OpenAI batch, that ended in this state."""
    return f"{kind}.{state}"


def of_response(state: str, status: str | None) -> str:
    """Return the event of a response whose job ended in this state; `status` is that of its answer, if it has one."""
    if state == "succeeded":
        return f"response.{'incomplete' if status == 'incomplete' else 'completed'}"
    return f"response.{_OF_RESPONSE[state]}"


def state_of(event: str) -> str:
    """Return the state of a job or bulk whose end an event may tell of."""
    kind, _, state = event.partition(".")
    known = BULK if kind in {"bulk", "batch"} else JOB
    return state if state in known.final else "succeeded"
