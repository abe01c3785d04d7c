"""`/dashboard/try`: a prompt to a model, streamed or queued, and the same request as code."""

from __future__ import annotations

from flask import Response, g

from models import engines
from stoker.settings import LANES
from webapi.console import door
from webapi.context import here

pages = door.pages("tryout")


@pages.get("/try", strict_slashes=False)
def show() -> Response:
    """Show the form; what it does is done by its script, which calls the API."""
    door.need("submit")
    context = here()
    with context.database.reading() as tx:
        known = sorted(engines.known(tx))
        live = {row.name for row in engines.served(tx, context.settings.engine_gone_after)}
    usual = context.settings.served_name
    return door.render(
        "try.html",
        "try",
        # Those that answer come first, and of these the one that a job gets which names none.
        models=sorted(known, key=lambda name: (name not in live, name != usual, name)),
        live=live,
        lanes=LANES,
        may_read=g.caller.may("read"),
    )
