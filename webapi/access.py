"""The door: every call of the API passes `admit`, which finds out whose it is, what it may do, and how often."""

from __future__ import annotations

from collections.abc import Sequence

from flask import g, request

from webapi import rates
from webapi.caller import Caller
from webapi.context import here
from webapi.errors import Problem

READING = frozenset({"GET", "HEAD"})
BOTH = ("/v1/webhook_endpoints", "/v1/deliveries")
"""Paths below which a change also shows or sends what is the owner's to read: it needs both scopes."""


def admit() -> None:
    """Let a request in, as `g.caller` and `g.owner`. Raises Problem 401, 403 and 429."""
    if request.method == "OPTIONS":
        return  # answered by Flask itself: which methods there are; a browser asks before it sends a key
    caller = here().sessions.caller(request) or here().keys.caller(request)
    g.caller, g.owner = caller, caller.owner
    _check_scopes(caller)
    rates.take(here().rates, caller)


def missing(scopes: Sequence[str]) -> Problem:
    """Return the error of a caller whose key has not these scopes."""
    return Problem(
        403,
        "missing_scope",
        f"This API key may not do that: it has not the scope {' and '.join(scopes)}. "
        "Use another key, or make one with `stoker keys create --scopes`.",
    )


def _check_scopes(caller: Caller) -> None:
    lacking = [scope for scope in _needed() if not caller.may(scope)]
    if lacking:
        raise missing(lacking)


def _needed() -> tuple[str, ...]:
    if request.method in READING:
        return ("read",)
    below = any(request.path == path or request.path.startswith(f"{path}/") for path in BOTH)
    return ("submit", "read") if below else ("submit",)
