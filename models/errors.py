"""What can be expected to fail in the database layer.

StokerError
├── NotFound             no such thing, or it belongs to another owner
├── AlreadyFinished      the job or bulk has reached an end state, which never changes
├── StillRunning         the bulk has not ended, and cannot be deleted or retried yet
├── KeyReused            the Idempotency-Key was used with another body
├── KeyBusy              a request with this Idempotency-Key is still running
└── DatabaseUnavailable  the database does not answer; nothing was stored, or it is unknown whether it was
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


class DatabaseUnavailable(StokerError):
    """The database does not answer."""
