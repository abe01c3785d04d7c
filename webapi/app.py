"""The web application: `gunicorn -c python:webapi.gunicorn_conf 'webapi.app:create_app()'`."""

from __future__ import annotations

import re
from importlib.metadata import version
from threading import BoundedSemaphore

import structlog
from flask import Flask, Response, g, request
from flask_openapi.openapi import OpenAPI

from models import engines, schema
from models.db import Database, new_id
from models.errors import DatabaseUnavailable, StokerError
from models.room import Room
from models.sealing import NoSecretKey, seal_of
from models.storage import Storage
from stoker import settings as stoker_settings
from stoker.settings import Settings
from webapi import (
    auth,
    batches,
    bulks,
    completions,
    context,
    dashboard,
    deliveries,
    events,
    failures,
    files,
    headers,
    health,
    jobs,
    json_body,
    limits,
    logs,
    metrics,
    openapi,
    overview,
    responses,
    static_files,
    timeline,
    tracing,
    usage,
    webhook_endpoints,
)
from webapi.console import bulks as console_bulks
from webapi.console import deliveries as console_deliveries
from webapi.console import jobs as console_jobs
from webapi.console import keys as console_keys
from webapi.console import overview as console_overview
from webapi.console import tryout as console_tryout
from webapi.console import upload as console_upload
from webapi.console import usage as console_usage
from webapi.console import webhooks as console_webhooks
from webapi.context import EXTENSION, SILENCE, Context
from webapi.counts import Counts
from webapi.days import Days
from webapi.doorbell import Doorbell
from webapi.following import Recorded
from webapi.known_models import KnownModels
from webapi.pager import Pager
from webapi.rates import Rates
from webapi.replica import Replica
from webapi.sessions import Sessions
from webapi.waiters import Waiters

log = structlog.get_logger("stoker.web")

_REQUEST_ID = re.compile(r"[A-Za-z0-9_.:-]{1,128}")


class StartError(StokerError):
    """The web server cannot start like this; the text is one line that says what to do."""


def create_app(settings: Settings | None = None) -> Flask:
    """Return the application, its database checked. Raises SettingsError and StartError."""
    settings = settings or stoker_settings.load()
    logs.configure(settings.log_level)
    database = context.shared(settings)
    try:
        prepare(settings, database)
    except StartError:
        database.close()
        raise
    reserve = Database(settings.database, pool_size=4, silence=SILENCE)
    lists = Replica(database, reserve, settings)
    app = openapi.new_app("webapi", version("stoker"))
    app.config["MAX_CONTENT_LENGTH"] = settings.max_body_bytes
    doorbell, keys, seal = Doorbell(settings), auth.Keys(database, settings), seal_of(settings)
    app.extensions[EXTENSION] = Context(
        settings=settings,
        database=database,
        reserve=reserve,
        lists=lists,
        storage=Storage(settings.storage),
        keys=keys,
        seal=seal,
        sessions=Sessions(keys, seal, settings.session_hours),
        known=KnownModels(database),
        counts=Counts(reserve, lists, settings),
        room=Room(database, settings.max_queued_per_owner, settings.max_queued, settings.key_tokens_queued),
        doorbell=doorbell,
        pager=Pager(settings, doorbell),
        waiters=Waiters(settings, reserve),
        recorded=Recorded(settings),
        uploads=BoundedSemaphore(settings.max_uploads),
        rates=Rates(settings),
        days=Days(database),
    )
    app.before_request(_name_request)
    metrics.install(app)
    tracing.install(app)
    app.after_request(_stamp)
    static_files.install(app)
    headers.install(app, settings)
    app.after_request(limits.stamp)
    failures.install(app)
    register(app)
    return app


PAGES = (
    console_overview,
    console_jobs,
    console_bulks,
    console_upload,
    console_tryout,
    console_webhooks,
    console_deliveries,
    console_keys,
    console_usage,
)


def register(app: OpenAPI) -> None:
    """Add every call and every page."""
    for blueprint in (
        jobs,
        timeline,
        events,
        bulks,
        files,
        batches,
        completions,
        responses,
        webhook_endpoints,
        deliveries,
        usage,
        overview,
        health,
    ):
        app.register_api(blueprint.api)
    app.register_blueprint(dashboard.pages)
    for page in PAGES:
        app.register_blueprint(page.pages)


def prepare(settings: Settings, database: Database) -> None:
    """Check that the service can start with these settings, and make the configured model known.

    Raises StartError.
    """
    try:
        seal_of(settings)
        schema.check(database)
        if not auth.is_loopback(settings.host) and not auth.any_exist(database):
            raise StartError(
                f"STOKER_HOST is {settings.host}, which others can reach, and there is no API key: "
                "make one first with `stoker keys create`, or listen on 127.0.0.1"
            )
        with database.transaction() as tx:
            # Only when unknown: an engine that registered it has told its context length as well.
            if settings.served_name and settings.served_name not in engines.known(tx):
                engines.remember(tx, settings.served_name, None, None)
    except (schema.SchemaOutdated, NoSecretKey) as error:
        raise StartError(str(error)) from error
    except DatabaseUnavailable as error:
        raise StartError(f"the database does not answer: {error}") from error


def _name_request() -> None:
    given = request.headers.get("X-Request-Id", "")
    g.request_id = given if _REQUEST_ID.fullmatch(given) else new_id("req")


def _stamp(response: Response) -> Response:
    response.headers["X-Request-Id"] = g.get("request_id") or new_id("req")
    return json_body.answer_then_drain(response, request) if json_body.is_left_over(request, response) else response
