"""Settings of gunicorn: `gunicorn -c python:webapi.gunicorn_conf`, everything else from STOKER_* variables."""

from __future__ import annotations

import math
import os
import resource
import signal
import sys
from types import FrameType
from typing import Any

import structlog
from prometheus_client import multiprocess

from models.db import Database
from stoker.settings import SettingsError, load
from webapi import auth, logs
from webapi.app import StartError, prepare
from webapi.context import EXTENSION, SILENCE
from webapi.logs import formatter

log = structlog.get_logger("stoker.web")

try:
    _settings = load()
except SettingsError as error:
    sys.exit(f"stoker web: {error}")

_host = f"[{_settings.host}]" if ":" in _settings.host else _settings.host

_room = math.ceil(_settings.web_threads * 1.5)


def _allow_files(wanted: int) -> None:
    """Raise the limit of open files as far as this process may: often it is 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted += SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


SPARE_FILES = 256
"""For the database, Redis, files and logs."""
_allow_files(_room)

wsgi_app = "webapi.app:create_app()"
proc_name = "stoker-web"
bind = [f"{_host}:{_settings.port}"]
workers = _settings.web_workers
worker_class = "webapi.gunicorn_worker.Worker"
threads = _settings.web_threads
# Above the threads: at gunicorn's default of 1000 and more threads than that, every connection is refused.
worker_connections = max(1000, _room)
backlog = 2048
# As long as gunicorn allows: the parameters of a bulk, a system message among them, may stand in its query.
limit_request_line = 8190
# Browsers and proxies send thirty at most, of which a cookie or trace baggage may be long. Together they are what a
# connection may hold in memory before anybody knows who it is: half a megabyte.
limit_request_fields = 64
limit_request_field_size = 8190
keepalive = 5
timeout = 60
graceful_timeout = 5
control_socket_disable = True
accesslog = None
errorlog = "-"
loglevel = _settings.log_level
logconfig_dict = {
    "version": 1,
    "disable_existing_loggers": False,
    "root": {"level": "WARNING", "handlers": ["console"]},
    "loggers": {
        "gunicorn.error": {"level": "INFO", "handlers": ["console"], "propagate": False, "qualname": "gunicorn.error"},
        "gunicorn.access": {"level": "WARNING", "handlers": [], "propagate": False, "qualname": "gunicorn.access"},
    },
    "handlers": {"console": {"class": "webapi.logs.Stderr", "formatter": "json"}},
    "formatters": {"json": {"()": formatter}, "generic": {"()": formatter}},
}


def on_starting(_server: Any) -> None:
    """Look once before any worker is started, so that what is wrong is one line and not one traceback a worker."""
    database = Database(_settings.database, silence=SILENCE)
    try:
        prepare(_settings, database)
        if not auth.any_exist(database):
            logs.configure(_settings.log_level)
            log.warning("NO API KEYS: open to this machine, and to it alone", do="stoker keys create")
    except StartError as error:
        sys.exit(f"stoker web: {error}")
    finally:
        database.close()  # nothing open crosses the fork


def post_worker_init(worker: Any) -> None:
    """End the waiting requests of a worker at SIGTERM: they would use up the time that it has to stop."""
    waiters = worker.wsgi.extensions[EXTENSION].waiters
    inherited = signal.getsignal(signal.SIGTERM)

    def end(number: int, frame: FrameType | None) -> None:
        waiters.stop()
        if callable(inherited):
            inherited(number, frame)

    signal.signal(signal.SIGTERM, end)


def child_exit(_server: Any, worker: Any) -> None:
    """Forget the gauges of a worker that ended."""
    if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        multiprocess.mark_process_dead(worker.pid)  # type: ignore[no-untyped-call]
