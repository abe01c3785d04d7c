"""`/dashboard/usage`: what was used, by day and model, and how much of each limit of the caller's key."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from flask import Response, g, request

from models import usage
from models.room import Most
from webapi.console import door, fields
from webapi.console.fields import Fields
from webapi.context import here
from webapi.errors import Problem
from webapi.usage import EVERYBODY, UsageQuery, document

pages = door.pages("usage")

PATH = f"{door.HOME}/usage"
MOST_SHOWN = 500
"""Rows of the table; the download has all."""
_NAMES = ("from", "to", "model", "owner")
_TOKENS = ("prompt", "completion", "cached", "reasoning", "total")
_WAITING = frozenset({"queued", "delayed"})
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


@pages.get("/usage", strict_slashes=False)
def show() -> Response:
    """Show what was used: a chart by day, sums by model, a table, and the limits of the caller's key."""
    door.need("read")
    asked = _asked()
    found, problem = _found(asked)
    data = found.get("data", [])
    page = door.render(
        "usage.html",
        "usage",
        asked={"from": found.get("from", ""), "to": found.get("to", "")} | asked,
        problem=problem,
        rows=data[-MOST_SHOWN:][::-1],
        many=len(data),
        days=_days(data),
        models=_sums(data, "model"),
        owners=_sums(data, "owner") if asked.get("owner") == EVERYBODY else [],
        admin=g.caller.may("admin"),
        everybody=EVERYBODY,
        limits=list(_limits()),
    )
    page.status_code = problem.status if problem else page.status_code
    return page


@pages.get("/usage.csv")
def download() -> Response:
    """Give the same as CSV."""
    door.need("read")
    found = document(_query(_asked()))
    out = io.StringIO()
    writer = csv.writer(out)
    writer.writerow(["date", "owner", "model", *usage.STATES, *(f"{name}_tokens" for name in _TOKENS)])
    for row in found["data"]:
        counts = [*(row["jobs"][state] for state in usage.STATES), *(row["tokens"][name] for name in _TOKENS)]
        writer.writerow([row["date"], _cell(row["owner"]), _cell(row["model"]), *counts])
    name = f"usage-{found['from']}-{found['to']}.csv"
    headers = {"Content-Disposition": f'attachment; filename="{name}"'}
    return Response(out.getvalue(), headers=headers, content_type="text/csv; charset=utf-8")


def _asked() -> dict[str, str]:
    given = Fields(request.args)
    return {name: text for name in _NAMES if (text := given.text(name))}


def _query(asked: dict[str, str]) -> UsageQuery:
    return fields.checked(UsageQuery, asked)


def _found(asked: dict[str, str]) -> tuple[dict[str, Any], Problem | None]:
    """Return what was used, or what is wrong with the question: the page has its form all the same."""
    try:
        return document(_query(asked)), None
    except Problem as problem:
        return {}, problem


def _cell(text: str) -> str:
    """Return a text that no spreadsheet takes for a formula."""
    return f"'{text}" if text.startswith(_FORMULA) else text


def _days(data: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the sums of each day, for the chart."""
    sums: dict[str, Counter[str]] = {}
    for row in data:
        sums.setdefault(row["date"], Counter()).update(
            {
                "prompt": row["tokens"]["prompt"],
                "completion": row["tokens"]["completion"],
                "jobs": sum(row["jobs"].values()),
            }
        )
    at = {day: int(datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp()) for day in sums}
    return [{"day": day, "at": at[day], **counts} for day, counts in sorted(sums.items())]


def _sums(data: Sequence[dict[str, Any]], by: str) -> list[dict[str, Any]]:
    """Return the sums of each model or owner, those with the most tokens first."""
    sums: dict[str, Counter[str]] = {}
    for row in data:
        counts = sums.setdefault(row[by], Counter())
        counts.update({**row["jobs"], **{f"{name}_tokens": row["tokens"][name] for name in _TOKENS}})
    return [
        {"name": name, **dict.fromkeys(usage.STATES, 0), **counts}
        for name, counts in sorted(sums.items(), key=lambda item: (-item[1]["total_tokens"], item[0]))
    ]


def _limits() -> Iterator[dict[str, Any]]:
    """Yield the limits of the caller's key, each with what is used of it; None: not known, or not counted."""
    limits, settings, context = g.caller.limits, here().settings, here()
    taken = g.get("taken")
    yield _limit(
        "Requests a second", limits.requests_per_second, taken and max(0, round(taken.limit) - taken.remaining)
    )
    yield _limit("Streams open at once, in each web process", limits.streams, None)
    yield _limit("Jobs that wait", limits.jobs_queued, _jobs_waiting())
    most = Most(limits.jobs_queued, limits.tokens_queued)
    yield _limit("Tokens that wait", limits.tokens_queued, context.room.tokens_waiting(g.owner, most))
    yield _limit("Tokens today (UTC)", limits.tokens_per_day, context.days.today(g.owner).tokens)
    sizes = (
        ("Bytes of a JSON body", limits.body_bytes, settings.max_body_bytes),
        ("Bytes of a file", limits.file_bytes, settings.max_upload_bytes),
    )
    for name, own, usual in sizes:
        yield _limit(name, min(own, usual) if own else usual, None)


def _limit(name: str, most: float, used: float | None) -> dict[str, Any]:
    return {"name": name, "most": most, "used": used, "share": min(1.0, used / most) if most and used else 0.0}


def _jobs_waiting() -> int | None:
    census = here().counts.census.get()
    if census is None:
        return None
    return sum(one.jobs for one in census.open if one.owner == g.owner and one.state in _WAITING)
