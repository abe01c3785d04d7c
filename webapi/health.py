"""Is it alive, is it ready, what does it count: `/livez`, `/readyz`, `/metrics`."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import redis
from flask import Response
from flask_openapi.blueprint import APIBlueprint
from flask_openapi.models.tag import Tag
from prometheus_client.metrics_core import GaugeMetricFamily

from models import schema
from models.census import Census
from stoker.setting_types import address
from stoker.settings import LANES, Settings
from webapi import answers, metrics
from webapi.context import here
from webapi.errors import Problem
from webapi.openapi import problems

api = APIBlueprint("health", __name__, abp_tags=[Tag(name="health")], abp_responses=problems(422, 500))


@api.get("/livez", operation_id="livez", responses={200: {"content": {"application/json": {}}}})
def livez() -> Response:
    """Tell that the process answers; looks at nothing else."""
    return answers.respond(answers.encode({"status": "ok"}))


@api.get("/readyz", operation_id="readyz", responses={200: {"content": {"application/json": {}}}, **problems(503)})
def readyz() -> Response:
    """Tell whether jobs are taken: the database answers, its schema is right. Without Redis or RabbitMQ: slower."""
    context = here()
    try:
        schema.check(context.reserve)
    except schema.SchemaOutdated as error:
        raise Problem(503, "schema_outdated", str(error), headers={"Retry-After": "5"}) from error
    parts = {"redis": _redis_answers(context.settings)}
    if context.settings.broker_url:
        parts["broker"] = _listens(context.settings.broker_url)
    shown = {part: "ok" if well else "unreachable" for part, well in parts.items()}
    status = "ok" if all(parts.values()) else "degraded"
    return answers.respond(answers.encode({"status": status, "database": "ok", "schema": "ok", **shown}))


def _redis_answers(settings: Settings) -> bool:
    try:
        with redis.Redis.from_url(settings.redis_client_url, socket_timeout=0.3, socket_connect_timeout=0.3) as client:
            return bool(client.ping())
    except (redis.RedisError, OSError):
        return False


def _listens(url: str) -> bool:
    """Tell whether somebody is there; a RabbitMQ would log it as an error, were it greeted and left."""
    try:
        socket.create_connection(address(url), timeout=0.3).close()
    except OSError:
        return False
    return True


@api.get("/metrics", operation_id="metrics", responses={200: {"content": {"text/plain": {}}}, **problems(503)})
def show_metrics() -> Response:
    """Show metrics as Prometheus reads them."""
    context = here()
    body, kind = metrics.page(gauges(context.counts.census.get()))
    return Response(body, content_type=kind)


def gauges(census: Census | None) -> Iterator[GaugeMetricFamily]:
    """Yield what the database says at this moment; without a census only that it is away."""
    yield GaugeMetricFamily(
        "stoker_database_up",
        "Whether the database answered; 0: no other *db* metric is shown.",
        value=census is not None,
    )
    if census is None:
        return
    jobs = GaugeMetricFamily(
        "stoker_jobs_open", "Jobs that have not ended: the depth of each queue.", labels=["state", "lane", "model"]
    )
    for state, lane, model, count in census.jobs:
        jobs.add_metric([state, lane, model], count)
    yield jobs
    ages = GaugeMetricFamily(
        "stoker_queue_age_seconds",
        "Age of the oldest queued job, paused ones aside; none where nothing is queued.",
        labels=["model", "lane"],
    )
    for model, lane, age in census.ages:
        ages.add_metric([model, lane], age)
    yield ages
    ready = GaugeMetricFamily("stoker_batches_ready", "Batches that no engine has claimed.", labels=["model", "lane"])
    for model, lane, count in census.ready:
        ready.add_metric([model, lane], count)
    yield ready
    yield from _engines(census)
    yield GaugeMetricFamily("stoker_deliveries_pending", "Webhook events not delivered yet.", value=census.deliveries)
    if census.sweep_age is not None:
        yield GaugeMetricFamily(
            "stoker_sweep_age_seconds",
            "Time since the sweeper last ran (every STOKER_SWEEP_EVERY); none before its first time.",
            value=census.sweep_age,
        )


def _engines(census: Census) -> Iterator[GaugeMetricFamily]:
    # By the database, not by the engines' own processes: it knows those of other machines, and forgets who died.
    yield GaugeMetricFamily("stoker_engines_live", "Engines that take work.", value=len(census.engines))
    slots = GaugeMetricFamily("stoker_engine_slots", "Requests that a live engine runs at once.", labels=["engine"])
    for engine in census.engines:
        slots.add_metric([engine.id], engine.slots)
    yield slots
    # The database's clock. A value that changes is a start: how often an engine was started again can be counted.
    starts = GaugeMetricFamily(
        "stoker_engine_start_time_seconds",
        "When a live engine was started, in seconds since 1970: its changes are restarts.",
        labels=["engine"],
    )
    for engine in census.engines:
        starts.add_metric([engine.id], engine.started_at)
    yield starts
    names = ["engine", "model", "lane"]
    running = GaugeMetricFamily(
        "stoker_engine_jobs", "Jobs that a live engine has, those at its gate too.", labels=names
    )
    for load in census.running:
        running.add_metric([load.engine, load.model, LANES[load.rank]], load.jobs)
    yield running
