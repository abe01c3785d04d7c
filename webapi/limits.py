"""What a caller may still hand in: jobs and tokens that wait, tokens of a day; and what answers say of limits."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

from flask import Response, g

from models.room import Most
from webapi import rates
from webapi.caller import current
from webapi.context import here
from webapi.errors import Problem


@contextmanager
def place(tokens: int) -> Iterator[None]:
    """Take room for a job of so many tokens, which the block stores. Raises QueueFull, and Problem 429."""
    _check_day()
    with here().room.place(g.owner, tokens=tokens, most=_most()):
        yield


def check(*, skip: bool = False) -> None:
    """Take nothing. Raises QueueFull and Problem 429 when there is no room for a job, unless none comes of it."""
    if not skip:
        _check_day()
        here().room.check(g.owner, most=_most())


def _most() -> Most | None:
    caller = current()
    return None if caller is None else Most(caller.limits.jobs_queued, caller.limits.tokens_queued)


def _check_day() -> None:
    """Raise Problem 429 when the owner has used up the tokens of the day."""
    caller = current()
    if caller is None or not (most := caller.limits.tokens_per_day):
        return
    today = here().days.today(caller.owner)
    g.tokens = (most, max(0, most - today.tokens), today.left)
    if today.tokens >= most:
        # Clients that wait by themselves are not to wait for hours.
        headers = {"Retry-After": str(max(1, math.ceil(today.left))), "X-Should-Retry": "false"}
        detail = (
            f"The {most} tokens that this API key's owner may use in a day are used up: nothing was stored. "
            "The next day begins at midnight UTC."
        )
        raise Problem(429, "daily_tokens_used", detail, headers=headers)


def stamp(response: Response) -> Response:
    """Say in an answer's headers what is left of the limits."""
    if (tokens := g.get("tokens")) is not None:
        most, left, reset = tokens
        response.headers["X-RateLimit-Limit-Tokens"] = str(most)
        response.headers["X-RateLimit-Remaining-Tokens"] = str(left)
        response.headers["X-RateLimit-Reset-Tokens"] = f"{reset:.0f}s"
    return rates.stamp(response)
