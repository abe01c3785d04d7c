"""`/dashboard`: what the queue and the engines do, live."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack

from flask import Response, g, request

from webapi import answers, overview, sse
from webapi.caller import Caller
from webapi.console import door
from webapi.context import Context, here
from webapi.errors import Problem, invalid
from webapi.hangups import CONNECTION
from webapi.history import WINDOWS
from webapi.waiters import Waiter

pages = door.pages("overview")

EVERY = 2.0
LONGEST = 300.0
"""Seconds after which a stream ends; the browser comes back, and is let in, or not, anew."""


@pages.get("", strict_slashes=False)
def show() -> Response:
    """Show the overview."""
    return door.render("overview.html", "overview")


@pages.get("/live")
def live() -> Response:
    """Stream `/v1/overview` as it changes: looked at every two seconds."""
    minutes = request.args.get("minutes", "60")
    if minutes not in {str(known) for known in WINDOWS}:
        raise invalid("minutes", f"must be one of {', '.join(map(str, WINDOWS))}")
    context, connection = here(), request.environ.get(CONNECTION)
    with ExitStack() as held:
        waiter = held.enter_context(context.waiters.place(Waiter(), connection))
        events = _events(context, waiter, g.caller, int(minutes))
        return sse.respond(events, held.pop_all(), connection, context.settings.stream_stall)


def _events(context: Context, waiter: Waiter, caller: Caller, minutes: int) -> Iterator[bytes]:
    until, last, beaten = time.monotonic() + LONGEST, b"", time.monotonic()
    while time.monotonic() < until and not waiter.gone and not context.waiters.stopping:
        now = _told(context, caller, minutes)
        if now != last:
            yield now
            last, beaten = now, time.monotonic()
        elif time.monotonic() - beaten > sse.KEEP_ALIVE_EVERY:
            yield sse.KEEP_ALIVE
            beaten = time.monotonic()
        waiter.wait(EVERY)


def _told(context: Context, caller: Caller, minutes: int) -> bytes:
    try:
        return sse.event(answers.encode(overview.document(context, minutes, caller)).decode(), kind="overview")
    except Problem as problem:
        return sse.event(answers.encode({"detail": problem.detail}).decode(), kind="away")
