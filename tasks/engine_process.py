"""The process of an engine: from `celery worker -Q engine.NAME` to an open engine, and its end.

```
start   reap what a killed predecessor left -> give its batches back -> load the engine -> open -> consume
SIGTERM stop claiming -> running jobs finish, or are returned after `drain_timeout` -> close -> exit 0
```

Exit 70: the engine failed, start it again. Exit 78: it cannot start with these settings.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from typing import Any

import structlog
from celery import signals

from models import cohorts, engines
from models.db import Database
from models.engines import Incarnation
from models.errors import DatabaseUnavailable
from models.failpoints import failpoint
from stoker.settings import Settings
from tasks import reaper
from tasks.app import app, context
from tasks.doorbell import doorbell
from tasks.engines.base import Engine, EngineFailure, EngineStartError
from tasks.engines.fake import FakeEngine
from tasks.engines.upstream import UpstreamEngine
from tasks.engines.vllm import VllmEngine
from tasks.logs import configure
from tasks.worker import EXIT_FAILED, Worker

log = structlog.get_logger(__name__)

EXIT_SETTINGS = 78
_PATIENCE = 1.0
_here: list[Worker] = []


@app.task(name="tasks.worker.run_batch")
def run_batch() -> None:
    """Run the best READY batches; the message only wakes, the database says what there is."""
    for worker in _here:
        worker.run()


def make_engine(settings: Settings) -> Engine:
    """Return the engine that the settings name, not started."""
    if settings.engine == "fake":
        return FakeEngine(settings)
    if settings.engine == "upstream":
        return UpstreamEngine(settings)
    if not settings.model:
        msg = "STOKER_MODEL is not set: name a Hugging Face id or a folder (`stoker up` brings a demo model)"
        raise EngineStartError(msg)
    return VllmEngine(settings, settings.model)


def take_over(database: Database, settings: Settings) -> tuple[Incarnation, set[str]]:
    """Register this process as its engine's new incarnation, after ending the old one and giving its batches back.

    Return also the models whose collectors are to be rung for.
    """
    mine = reaper.incarnation(settings.engine_name, settings.engine)
    _wait_for_silence(database, settings)
    with database.reading() as tx:
        old = engines.predecessor(tx, settings.engine_name)
    if old is not None:
        reaper.reap(old)
    models: set[str] = set()
    with database.transaction() as tx:
        # Again, and locked: of two that start at once the second gives back what the first registered.
        old = engines.predecessor(tx, settings.engine_name)
        if old is not None and old.host == mine.host:
            # A machine that went down took the engine with it, whatever ran there.
            charge = not reaper.rebooted(old)
            crash = cohorts.vanish(tx, old, max_attempts=settings.max_attempts, charge=charge)
            models.update(crash.models)
            log.info("took over", batches=crash.batches, jobs=crash.requeued, poison=len(crash.poison))
        engines.register(tx, mine)
    return mine, models


def _wait_for_silence(database: Database, settings: Settings) -> None:
    """Let a process that still works under this engine's name end or fall silent. Raises EngineFailure if it does not.

    Dead, hung or frozen it is a leftover. One that is well would be killed with its jobs, and its supervisor's next one
    would kill this one.
    """
    until = time.monotonic() + settings.engine_gone_after + _PATIENCE
    while True:
        with database.reading() as tx:
            old = engines.predecessor(tx, settings.engine_name)
            if old is None or not reaper.may_live(old):
                return
            here = old.host == socket.gethostname()
            if not engines.working(tx, old, settings.engine_gone_after, loading=here):
                return
        if time.monotonic() > until:
            raise EngineFailure(
                f"the engine {old.engine} already runs as process {old.pid} on {old.host}: "
                "stop that one, or give this one another STOKER_ENGINE_NAME"
            )
        time.sleep(0.2)


@signals.worker_init.connect
def _start(sender: Any, **_: Any) -> None:
    """Load the engine before the worker takes its first message; other workers pass by."""
    queues = sender.app.amqp.queues.consume_from
    if not any(name.startswith("engine.") for name in queues):
        return
    here = context()
    configure(here.settings.log_level)
    mine = None
    try:
        mine, models = take_over(here.database, here.settings)
        failpoint("engine.took_over")
        # Before the doorbell's threads: vLLM's sets its environment, and loads for minutes when it is started.
        engine = make_engine(here.settings)
        for model in models:
            doorbell().collector(model)
        engine.start()
        worker = Worker(here.database, here.settings, engine, mine, doorbell())
    except EngineStartError as error:
        _give_up(here.database, mine, str(error), EXIT_SETTINGS)
    except EngineFailure as error:
        _give_up(here.database, mine, str(error), EXIT_FAILED)
    except Exception as error:
        # A worker without an engine would take rings for ever, and nobody would start it again.
        log.exception("engine did not start", error=type(error).__name__)
        _give_up(here.database, mine, f"{type(error).__name__}: {error}", EXIT_FAILED)
    _here.append(worker)


def _give_up(database: Database, mine: Incarnation | None, why: str, status: int) -> None:
    # Celery swallows what a signal's receiver raises, and a half-loaded engine's threads may never end.
    try:
        if mine is not None:
            with database.transaction() as tx:
                engines.leave(tx, mine, "gone")  # or it would count as killed by somebody while nothing ran on it
    except DatabaseUnavailable as error:
        log.warning("that the engine has gone is not noted", error=str(error))
    sys.stderr.write(f"stoker engine: {' '.join(why.split())}\n")
    sys.stderr.flush()
    os._exit(status)


@signals.worker_ready.connect
def _open(**_: Any) -> None:
    for worker in _here:
        try:
            worker.open()
        except Exception as error:  # as in `_start`
            log.exception("engine did not open", error=type(error).__name__)
            worker.fail(f"it could not be opened: {type(error).__name__}: {error}")


@signals.worker_shutting_down.connect
def _drain(**_: Any) -> None:
    for worker in _here:
        worker.drain()


@signals.worker_shutdown.connect
def _close(**_: Any) -> None:
    for worker in _here:
        worker.close()
