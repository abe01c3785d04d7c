"""What can be expected to fail in the database layer.

StokerError
├── NotFound             no such thing, or it belongs to another owner
├── AlreadyFinished      the job or bulk has reached an end state, which never changes
├── NotEnded             the delivery is still on its way, and cannot be sent once more
├── StillRunning         the bulk has not ended, and cannot be deleted or retried yet
├── KeyReused            the Idempotency-Key was used with another body
├── KeyBusy              a request with this Idempotency-Key is still running
├── QueueFull            as many jobs wait as may wait
├── TooManyEndpoints     the owner has as many webhook endpoints as one may have
└── DatabaseUnavailable  the database does not answer; nothing was stored, or it is unknown whether it was
    └── DatabaseBusy     too many want to use it at once; nothing was stored
"""

from __future__ import annotations


class StokerError(Exception):
    """The root of what stoker raises on purpose."""


class NotFound(StokerError):
    """No such thing, or it belongs to another owner."""

    def __init__(self, kind: str, ident: str) -> None:
        """Name the kind of thing (`job`) and the id that was asked for."""
        super().__init__(f"There is no {kind} with the id {ident!r}.")
        self.kind = kind
        self.ident = ident


class AlreadyFinished(StokerError):
    """The job or bulk has reached an end state, which never changes."""

    def __init__(self, ident: str, state: str, kind: str = "job") -> None:
        """Name what it is and the state it ended in."""
        super().__init__(f"{kind.title()} {ident} cannot be changed: it is already {state}.")
        self.state = state


class NotEnded(StokerError):
    """The delivery is still on its way."""

    def __init__(self, ident: str, state: str) -> None:
        """Name the delivery and its state."""
        super().__init__(f"Delivery {ident} is {state}: only what is delivered or failed can be sent once more.")


class StillRunning(StokerError):
    """The bulk has not ended."""

    def __init__(self, ident: str, state: str) -> None:
        """Name the bulk and its state."""
        super().__init__(f"Bulk {ident} is still {state}: wait for its end, or cancel it first.")
        self.state = state


class KeyReused(StokerError):
    """The Idempotency-Key was used with another body."""


class KeyBusy(StokerError):
    """A request with this Idempotency-Key is still running."""


class QueueFull(StokerError):
    """As many jobs wait as may wait, of this owner or of all; or their tokens."""

    def __init__(self, owner: str, limit: int, retry_after: int, unit: str = "jobs") -> None:
        """Name the owner whose limit it is (`""`: all), the limit, and the seconds after which to try again."""
        whose, setting = ("of all", "STOKER_MAX_QUEUED") if not owner else ("of this owner", _SETTINGS[unit])
        super().__init__(
            f"{limit} {unit} {whose} are waiting already, as many as may ({setting}): nothing was stored. "
            f"Try again in {retry_after} s or later."
        )
        self.retry_after = retry_after
        self.unit = unit


_SETTINGS = {
    "jobs": "STOKER_MAX_QUEUED_PER_OWNER, or the key's jobs_queued",
    "tokens": "STOKER_KEY_TOKENS_QUEUED, or the key's tokens_queued",
}


class TooManyEndpoints(StokerError):
    """The owner has as many webhook endpoints as one may have."""

    def __init__(self, most: int) -> None:
        """Name the limit."""
        super().__init__(f"There are {most} webhook endpoints already, as many as may be: delete one first.")


class DatabaseUnavailable(StokerError):
    """The database does not answer."""


class DatabaseBusy(DatabaseUnavailable):
    """Too many requests of this process want to use the database at once."""
