"""`/dashboard/upload`: many jobs from one file; the browser sends it to `/v1/bulks` itself, and tells how far it is."""

from __future__ import annotations

from typing import get_args

from flask import Response

from models import engines
from stoker.settings import LANES
from webapi import bulk_submission
from webapi.bulk_schemas import Format
from webapi.caller import fitting
from webapi.console import door
from webapi.context import here
from webapi.schemas import Endpoint

pages = door.pages("upload")


@pages.get("/upload")
def show() -> Response:
    """Show the form for a file."""
    door.need("submit")
    context = here()
    with context.database.reading() as tx:
        models = sorted(engines.known(tx))
    return door.render(
        "upload.html",
        "upload",
        models=models,
        lanes=LANES,
        lane=bulk_submission.LANE,
        endpoints=get_args(Endpoint),
        formats=get_args(Format),
        most=fitting(context.settings.max_bulk_bytes, "file_bytes"),
    )
