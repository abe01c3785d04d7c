"""`/dashboard`: what the queue and the engines do, live."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

from flask import Response, g, request

from models.errors import DatabaseUnavailable
from models.overview import MOST_FAILURES, failures
from webapi import answers, overview, sse
from webapi.caller import Caller
from webapi.console import door
from webapi.context import Context, here
from webapi.errors import Problem, invalid
from webapi.hangups import CONNECTION
from webapi.history import WINDOWS
from webapi.waiters import Waiter

pages = door.pages("overview")

WINDOWS_IN_WORDS = ((15, "15 min"), (60, "1 h"), (360, "6 h"), (1440, "24 h"), (10080, "7 d"))
USUAL = 60

EVERY = 2.0
LONGEST = 300.0
"""Seconds after which a stream ends; the browser comes back, and is let in, or not, anew."""


@pages.get("", strict_slashes=False)
def show() -> Response:
    """Show the overview: at once, without a number; what is counted comes by the stream."""
    return door.render("overview.html", "overview", windows=WINDOWS_IN_WORDS, minutes=USUAL)


@pages.get("/failures")
def failed() -> Response:
    """Show the newest of the caller's jobs that failed."""
    door.need("read")
    with here().database.reading() as tx:
        found = failures(tx, g.owner)
    return door.fragment("failures.html", failures=found, most=MOST_FAILURES)


@pages.get("/live")
def live() -> Response:
    """Stream `/v1/overview`, looked at every two seconds: whole at first, then the fields that have changed."""
    door.need("read")
    minutes = request.args.get("minutes", str(USUAL))
    if minutes not in {str(known) for known in WINDOWS}:
        raise invalid("minutes", f"must be one of {', '.join(map(str, WINDOWS))}")
    context, connection = here(), request.environ.get(CONNECTION)
    with ExitStack() as held:
        waiter = held.enter_context(context.waiters.place(Waiter(), connection))
        events = _events(context, waiter, g.caller, int(minutes))
        return sse.respond(events, held.pop_all(), connection, context.settings.stream_stall)


def _events(context: Context, waiter: Waiter, caller: Caller, minutes: int) -> Iterator[bytes]:
    until, beaten = time.monotonic() + LONGEST, time.monotonic()
    told: dict[str, Any] = {}
    while time.monotonic() < until and not waiter.gone and not context.waiters.stopping and _may_go_on(context, caller):
        kind, now = _look(context, caller, minutes)
        changed = {name: value for name, value in now.items() if name not in told or told[name] != value}
        if changed:
            yield sse.event(answers.encode(changed).decode(), kind=kind)
            beaten = time.monotonic()
        elif time.monotonic() - beaten > sse.KEEP_ALIVE_EVERY:
            yield sse.KEEP_ALIVE
            beaten = time.monotonic()
        told = now
        waiter.wait(EVERY)


def _may_go_on(context: Context, caller: Caller) -> bool:
    """Tell whether the caller would be let in again: not once its key is revoked, or the first key is made."""
    try:
        return context.keys.of_id(caller.key_id) is not None if caller.key_id else context.keys.is_open()
    except DatabaseUnavailable:
        return True


def _look(context: Context, caller: Caller, minutes: int) -> tuple[str, dict[str, Any]]:
    """Return a kind of event, and what it tells: after `away` the overview is told whole again."""
    try:
        return "overview", overview.document(context, minutes, caller)
    except Problem as problem:
        return "away", {"detail": problem.detail}
