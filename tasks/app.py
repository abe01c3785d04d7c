"""The Celery application: queues, schedule, all task options, and what every task needs at hand.

Messages are doorbells: they carry ids at most, are never redelivered (`acks_late` is off; the lease in the database
takes the place of redelivery), and losing one costs time, never a job.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from functools import cache
from typing import Any

from celery import Celery, signals
from prometheus_client import start_http_server

from models.db import Database
from models.errors import DatabaseUnavailable
from stoker.settings import Settings, load
from tasks import acks
from tasks.doorbell import EXPIRES
from tasks.logs import configure

TASKS = ("tasks.collector", "tasks.sweeper", "tasks.webhook", "tasks.bulks", "tasks.retention", "tasks.engine_process")

RETAIN_EVERY = 60.0
HEARTBEAT = 10.0
"""Seconds between signs of life to and from RabbitMQ; two missing ones are a lost connection."""
SILENCE = 20.0
"""Seconds after which an answer of the database is no longer waited for; what was under way is done again."""

_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class Context:
    """What a task works with."""

    settings: Settings
    database: Database


def make_app(settings: Settings) -> Celery:
    """Return the Celery application for these settings."""
    made = Celery("stoker", broker=settings.broker, include=list(TASKS), set_as_current=False)
    made.conf.update(
        broker_transport_options=settings.broker_options,
        # The default of 100 tries ends with a worker that gave up.
        broker_connection_max_retries=None,
        broker_connection_retry_on_startup=True,
        broker_connection_timeout=5,
        # RabbitMQ's own, 60 s, leave a worker deaf for two minutes after a connection was cut half-open.
        broker_heartbeat=HEARTBEAT,
        task_ignore_result=True,
        task_acks_late=False,
        # One line in the log, no traceback: what the task would have done is done after the next ring.
        task_annotations={"*": {"throws": (DatabaseUnavailable,)}},
        task_serializer="json",
        accept_content=["json"],
        task_create_missing_queues=True,
        # Nothing of a doorbell is worth a disk's time; the queues are durable, so that they are there after a restart.
        task_default_delivery_mode="transient",
        task_default_queue="default",
        worker_prefetch_multiplier=1,
        # After a lost connection Celery would speak to RabbitMQ from the tasks' threads, two of them to one socket:
        # frames that are torn apart, and lose the next one.
        worker_enable_prefetch_count_reduction=False,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        task_routes={
            "tasks.collector.*": {"queue": "collector"},
            "tasks.sweeper.*": {"queue": "collector"},
            "tasks.webhook.*": {"queue": "default"},
            "tasks.bulks.*": {"queue": "bulk"},
            "tasks.retention.*": {"queue": "bulk"},
            "tasks.worker.*": {"queue": f"engine.{settings.engine_name}"},
        },
        beat_schedule={
            # Doing one twice is harmless. Of many sweeps that come late together a process drops all but one at a time.
            "sweep": {
                "task": "tasks.sweeper.sweep",
                "schedule": settings.sweep_every,
                "options": {"expires": EXPIRES},
            },
            "retain": {
                "task": "tasks.retention.retain",
                "schedule": RETAIN_EVERY,
                "options": {"expires": RETAIN_EVERY},
            },
        },
        beat_schedule_filename=str(settings.data / "beat-schedule"),
    )
    return made


@cache
def _settings() -> Settings:
    return load()


acks.install()
app = make_app(_settings())


@cache
def _context() -> Context:
    settings = _settings()
    return Context(settings, Database(settings.database, pool_size=16, silence=SILENCE))


def context() -> Context:
    """Return this process's settings and database; opened at the first call."""
    with _lock:
        return _context()


@signals.worker_init.connect
def _show_metrics(**_: Any) -> None:
    """Serve what this process counts, unless the web server's page has it."""
    port = _settings().metrics_port
    if port and not os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        start_http_server(port)


@signals.setup_logging.connect
def _logging(**_: Any) -> None:
    configure(_settings().log_level)
