"""Who calls: the owner behind a request, and what the key that it came with may do and take."""

from __future__ import annotations

from dataclasses import dataclass, field

from flask import g, has_request_context

from models.key_limits import Limits

OPEN = frozenset({"submit", "read", "admin"})
"""What a service without keys lets everybody do whom it serves."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Whom a request acts for. `key_id`: `""` where the service has no keys."""

    owner: str
    key_id: str = ""
    scopes: frozenset[str] = OPEN
    limits: Limits = field(default_factory=Limits)

    def may(self, scope: str) -> bool:
        """Tell whether the key has a scope; `admin` has all."""
        return scope in self.scopes or "admin" in self.scopes


def current() -> Caller | None:
    """Return who makes this request; None outside of one, and before it is known."""
    return g.get("caller") if has_request_context() else None


def fitting(limit: int, name: str) -> int:
    """Return the lesser of the server's limit and that of the caller's key, `body_bytes` or `file_bytes`."""
    caller = current()
    own = int(getattr(caller.limits, name)) if caller else 0
    return min(limit, own) if own else limit
