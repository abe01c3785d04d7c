"""Why a job is where it is, in words; pure."""

from __future__ import annotations

from models.bulks import PAUSED
from models.cohorts import LONE_DEATHS
from models.timeline import Timeline, Waiting


def why(found: Timeline) -> str:
    """Return what a job waits for or does now; an empty text when it has ended."""
    job = found.job
    if job.state == "queued":
        return _in_line(found)
    if job.state == "delayed":
        return _put_off(found)
    if job.state == "batched" and found.batch is not None:
        which = f"engine {found.batch.engine_id}" if found.batch.engine_id else "the next engine that has room"
        return f"It is in a batch of {_jobs(found.batch.size)}, which waits for {which}."
    if job.state == "running" and found.batch is not None:
        return f"Engine {found.batch.engine_id} has been running it for {_long(found.clock - job.started_at)}."
    return ""


def _in_line(found: Timeline) -> str:
    job, waiting = found.job, found.waiting
    if job.lane == PAUSED:
        return "Its bulk is paused: resume the bulk."
    if waiting is None:
        return ""
    if not waiting.live:
        return _without_engine(job.model, waiting)
    if job.cohort_id is not None:
        return (
            "An engine died while it ran this job. It waits to run apart, with ever fewer others, until the cause is "
            "found; that is when the engine is idle."
        )
    slots = sum(engine.slots for engine in waiting.live)
    ahead = f" {_ahead(waiting.ahead)}" if waiting.ahead else ""
    if waiting.running >= slots:
        names = ", ".join(engine.id for engine in waiting.live[:5])
        taken = f"All {slots} places for {job.model} are" if slots > 1 else f"The only place for {job.model} is"
        return f"{taken} taken (engine {names}).{ahead} Owners take turns in a lane."
    return (
        f"An engine has room ({waiting.running} of {slots} places are taken): it waits for company in a batch.{ahead}"
    )


def _ahead(count: int | None) -> str:
    return f"{_jobs(count or 0)} of yours in this lane {'goes' if count == 1 else 'go'} before it."


def _without_engine(model: str, waiting: Waiting) -> str:
    if waiting.starting:
        told = ", ".join(f"{row.id} (for {_long(row.age)})" for row in waiting.starting[:5])
        return f"No engine that serves {model} takes work yet. Starting: {told}."
    return f"No engine that serves {model} is up: start one, or look at why it is down with `stoker doctor`."


def _put_off(found: Timeline) -> str:
    job = found.job
    left = f"in {_long(job.run_at - found.clock)}" if job.run_at > found.clock else "now"
    if job.lone_deaths:
        return (
            f"The engine died {job.lone_deaths} of {LONE_DEATHS} times while it ran this job alone. It rests, and is "
            f"tried again {left}."
        )
    return f"No upstream could take it (put off {_times(job.deferrals)}). It is tried again {left}."


def _jobs(count: int) -> str:
    return f"{count:,} {'job' if count == 1 else 'jobs'}"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _long(seconds: float) -> str:
    seconds = max(0.0, seconds)
    if seconds < 10:  # noqa: PLR2004  # below, tenths matter
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 120:  # noqa: PLR2004  # two minutes
        return f"{whole} s"
    return f"{whole // 60} min" if whole < 7200 else f"{whole / 3600:.1f} h"  # noqa: PLR2004  # two hours
