"""`/v1/overview`: what the queue and the engines do, now and over a window of time.

What the console shows, and `stoker top`. Who has the scope admin sees everything; others how much of their own waits
and runs.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from flask import Response, g
from flask_openapi.blueprint import APIBlueprint
from flask_openapi.models.tag import Tag

from models.bulks import PAUSED
from models.census import Open
from models.db import AnyRow
from models.loads import Running
from models.measures import Measures, quantile, total
from models.overview import Now
from webapi import access, answers
from webapi.caller import Caller
from webapi.context import Context, here
from webapi.errors import Problem
from webapi.history import Lately, Past
from webapi.openapi import problems
from webapi.overview_schemas import Overview, OverviewQuery

MOST_OWNERS = MOST_ERRORS = 20
_STATES = ("queued", "delayed", "batched", "running")
_TIMES = ("wait", "latency")
_PERCENTILES = {"p50": 0.5, "p95": 0.95}

api = APIBlueprint(
    "overview",
    __name__,
    url_prefix="/v1/overview",
    abp_tags=[Tag(name="overview", description="What the queue and the engines do.")],
    abp_security=[{"key": []}],
    abp_responses=problems(401, 403, 422, 429, 500, 503),
)
api.before_request(access.admit)


@api.get("", operation_id="getOverview", responses={200: Overview})
def show(query: OverviewQuery) -> Response:
    """Look at the queue, the engines, and what was done lately; counted every five seconds at the most."""
    return answers.respond(answers.encode(document(here(), int(query.minutes), g.caller)))


def document(context: Context, minutes: int, caller: Caller) -> dict[str, Any]:
    """Return what a caller may see. Raises Problem 503 while the database is away."""
    counts = context.counts
    census, now = counts.census.get(), counts.now.get()
    past, lately = counts.past[minutes].get(), counts.lately.get()
    if census is None or now is None or past is None or lately is None:
        raise Problem(503, "database_unavailable", "The database does not answer.", headers={"Retry-After": "5"})
    everything = caller.may("admin")
    mine = census.open if everything else [one for one in census.open if one.owner == caller.owner]
    told = dict.fromkeys(Overview.model_fields)
    told |= {"object": "overview", "at": round(now.clock, 3), "minutes": minutes, "queue": _queue(mine)}
    if everything:
        told |= {
            "owners": _owners(census.open),
            "engines": _engines(now, lately, census.running, context.settings.engine_gone_after),
            "batches": [_batch(row) for row in now.batches],
            "batches_ready": sum(count for *_, count in census.ready),
            "batches_running": now.running,
            "deliveries_pending": census.deliveries,
        }
        told |= _measured(past, lately)
    return told


def _queue(found: Sequence[Open]) -> list[dict[str, Any]]:
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for one in found:
        empty = {"model": one.model, "lane": one.lane, **dict.fromkeys(_STATES, 0), "oldest_seconds": None}
        row = rows.setdefault((one.model, one.lane), empty)
        row[one.state] += one.jobs
        # What is paused waits for its owner, not for an engine.
        if one.age is not None and one.lane != PAUSED:
            row["oldest_seconds"] = round(max(one.age, row["oldest_seconds"] or 0.0), 1)
    return [row for _, row in sorted(rows.items())]


def _owners(found: Sequence[Open]) -> list[dict[str, Any]]:
    counted: dict[str, Counter[str]] = {}
    for one in found:
        counted.setdefault(one.owner, Counter())[one.state] += one.jobs
    waiting = {owner: states.total() - states["running"] for owner, states in counted.items()}
    first = sorted(counted, key=lambda owner: (-waiting[owner], owner))[:MOST_OWNERS]
    return [{"owner": owner, "waiting": waiting[owner], "running": counted[owner]["running"]} for owner in first]


def _engines(now: Now, lately: Lately, loads: Sequence[Running], gone_after: float) -> list[dict[str, Any]]:
    running: Counter[str] = Counter()
    for load in loads:
        running[load.engine] += load.jobs
    rows = []
    for row in now.engines:
        silent = row.state == "live" and row.silent > gone_after
        measured = lately.engines.get(row.id)
        told = {
            "name": row.id,
            "kind": row.kind,
            "state": "silent" if silent else row.state,
            "host": row.host,
            "slots": row.slots,
            "running": running[row.id],
            "models": now.models.get(row.id, []),
            "busy": _share(measured) if measured is not None and row.state != "gone" else None,
            "silent_seconds": round(max(0.0, row.silent), 1),
            "age_seconds": round(max(0.0, row.age), 1),
            "upstreams": json.loads(row.detail or "{}").get("upstreams", []),
        }
        rows.append(told)
    return rows


def _share(measures: Measures) -> float | None:
    return round(min(1.0, measures.busy / measures.open), 3) if measures.open else None


def _batch(row: AnyRow) -> dict[str, Any]:
    told = {"id": row.id, "model": row.model, "lane": row.lane, "engine": row.engine_id, "jobs": row.size}
    return told | {"reason": row.reason, "seconds": round(max(0.0, row.seconds), 1)}


def _measured(past: Past, lately: Lately) -> dict[str, Any]:
    """Return what was measured in the window, and lately."""
    whole = past.whole
    return {
        "rates": _rates(total(lately.engines.values()), lately.seconds),
        "series": _series(past),
        "sizes": [{"jobs": jobs, "batches": count} for jobs, count in sorted(whole.sizes.items())],
        "padding": round(whole.padding / whole.batches, 3) if whole.batches else None,
        "errors": [{"code": code, "jobs": count} for code, count in whole.errors.most_common(MOST_ERRORS)],
    }


def _rates(measures: Measures, seconds: float) -> dict[str, Any]:
    """Return what was done a second, how long jobs took, and how busy engines were."""
    ended = sum(count for state, count in measures.ended.items() if state != "delayed")
    counted = {
        "jobs": ended,
        "failed": measures.ended["failed"],
        "prompt_tokens": measures.tokens["prompt"],
        "completion_tokens": measures.tokens["completion"],
    }
    told: dict[str, Any] = {name: round(count / seconds, 6) for name, count in counted.items()}
    for name in _TIMES:
        steps = getattr(measures, name)
        told[name] = {key: _rounded(quantile(steps, share)) for key, share in _PERCENTILES.items()}
    return told | {"busy": _share(measures)}


def _series(past: Past) -> dict[str, Any]:
    """Return the same of each point."""
    lasted = [past.step] * (len(past.points) - 1) + [past.newest]
    points = [_rates(point, seconds) for point, seconds in zip(past.points, lasted, strict=True)]
    told: dict[str, Any] = {"step": past.step, "at": [past.start + n * past.step for n in range(len(points))]}
    told |= {name: [point[name] for point in points] for name in points[0]}
    return told | {name: {key: [each[key] for each in told[name]] for key in _PERCENTILES} for name in _TIMES}


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 4)
