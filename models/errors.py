"""What can be expected to fail in the database layer.

StokerError
├── NotFound             no such thing, or it belongs to another owner
├── AlreadyFinished      the job or bulk has reached an end state, which never changes
├── NotEnded             the delivery is still on its way, and cannot be sent once more
├── TriedTooOften        the delivery was tried so often that it is not sent once more
├── TestOnly             the delivery is a test of an endpoint, which is sent once
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


class TriedTooOften(StokerError):
    """The delivery was tried so often that it is not sent once more."""

    def __init__(self, ident: str, most: int) -> None:
        """Name the delivery and the limit."""
        super().__init__(
            f"Delivery {ident} was tried {most} times or more: it is not sent again. Fetch what it tells of."
        )


class TestOnly(StokerError):
    """The delivery is a test of an endpoint, which is sent once."""

    __test__ = False

    def __init__(self, ident: str) -> None:
        """Name the delivery."""
        super().__init__(f"Delivery {ident} is a test of an endpoint, and is not sent again: send another test.")


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
    """The owner has as many webhook endpoints as one may have, of all or of those that ask for some events."""

    def __init__(self, most: int, asking: str = "") -> None:
        """Name the limit, and which events those ask for whose limit it is."""
        which, change = (f" that ask for {asking}", ", or its event_types changed,") if asking else ("", "")
        super().__init__(
            f"There are {most} webhook endpoints{which} already, as many as may be: one must be deleted{change} first."
        )


class DatabaseUnavailable(StokerError):
    """The database does not answer."""


class DatabaseBusy(DatabaseUnavailable):
    """Too many requests of this process want to use the database at once."""
