"""The sweeper: repeats whatever a crash or a lost doorbell left lying; twice, or twice at once, is harmless."""

from __future__ import annotations

import socket
import threading
from functools import partial

import sqlalchemy as sa
import structlog

from models import batches, bulk_leases, cohorts, due, engines, idempotency, owed, queue, sweeps
from models.db import Database
from models.failpoints import failpoint
from stoker.settings import Settings
from tasks import metrics
from tasks.app import app, context
from tasks.doorbell import Doorbell, doorbell
from tasks.holders import has_died
from tasks.reaper import has_died as has_vanished

log = structlog.get_logger(__name__)


_sweeping = threading.Lock()


@app.task(name="tasks.sweeper.sweep")
def sweep() -> None:
    """Look after leases, due times and doorbells once."""
    # While the database is slow, sweeps must not take all threads away from the collector.
    if _sweeping.acquire(blocking=False):
        try:
            here = context()
            sweep_once(here.database, here.settings, doorbell())
        finally:
            _sweeping.release()


def sweep_once(database: Database, settings: Settings, bell: Doorbell) -> None:
    """Do each of the sweeper's duties, every one in short transactions of its own."""
    with database.transaction() as tx:
        may_expire = sweeps.begin(tx, settings.lease)
    if may_expire is None:
        return
    _end_dead(database, settings)
    if may_expire:
        _end_lost(database, settings)
    failpoint("sweeper.swept")
    _give_back_stranded(database, settings)
    _move_due(database, bell)
    _forget_keys(database, settings)
    _free_bulks(database)
    _ring(database, settings, bell)


def _end_dead(database: Database, settings: Settings) -> None:
    """End the incarnations whose process, on this machine, has died: no other engine need wait for their leases."""
    with database.reading() as tx:
        dead = [found for found in engines.of_host(tx, socket.gethostname()) if has_vanished(found)]
    for incarnation in dead:
        crash = database.retrying(partial(cohorts.vanish, gone=incarnation, max_attempts=settings.max_attempts))
        metrics.swept.labels("dead_engines").inc()
        log.warning("an engine's process has died", engine=incarnation.engine, batches=crash.batches)


def _end_lost(database: Database, settings: Settings) -> None:
    """End the batches of every incarnation that let a lease run out; their jobs are queued again."""
    with database.reading() as tx:
        silent = batches.expired(tx)
    for engine, incarnation in silent:
        crash = database.retrying(partial(_end_incarnation, settings=settings, engine=engine, incarnation=incarnation))
        if crash.batches:
            metrics.swept.labels("lost_batches").inc(crash.batches)
            log.warning("an engine let its lease run out", engine=engine, batches=crash.batches, jobs=crash.requeued)


def _end_incarnation(tx: sa.Connection, settings: Settings, engine: str, incarnation: str) -> cohorts.Crash:
    # Asked again in the transaction that ends it: it may have renewed, or another sweeper was here.
    if (engine, incarnation) not in batches.expired(tx):
        return cohorts.Crash()
    # Frozen, cut off, or a machine that went down: nothing says that its jobs did it.
    return cohorts.crash(tx, engine, incarnation, "lost", max_attempts=settings.max_attempts, charge=False)


def _give_back_stranded(database: Database, settings: Settings) -> None:
    within, after = settings.engine_gone_after, settings.ready_timeout
    with database.transaction() as tx:
        stranded = batches.give_back_stranded(tx, within, after)
    if stranded:
        metrics.swept.labels("stranded_batches").inc(len(stranded))
        log.warning("no live engine for READY batches", batches=len(stranded))


def _move_due(database: Database, bell: Doorbell) -> None:
    """Expire jobs whose time has passed and queue those whose delay is over, slice by slice."""
    while True:
        with database.reading() as tx:
            something = due.any_due(tx)
        if not something:
            return
        expired = database.retrying(due.expire)
        database.retrying(due.release_due)
        metrics.swept.labels("expired_jobs").inc(len(expired))
        bell.ended(expired)


def _forget_keys(database: Database, settings: Settings) -> None:
    age = settings.idempotency_hours * 3600
    with database.reading() as tx:
        old = idempotency.any_older(tx, age)
    if old:
        with database.transaction() as tx:
            idempotency.forget(tx, age)


def _free_bulks(database: Database) -> None:
    """Let go of bulks whose tender, on this machine, has died: nobody need wait for its lease to run out."""
    with database.reading() as tx:
        dead = [row for row in bulk_leases.holders(tx) if has_died(row.holder)]
    for row in dead:
        with database.transaction() as tx:
            bulk_leases.let_go(tx, row.id, row.holder)
        log.warning("the tender of a bulk has died", bulk=row.id)


def _ring(database: Database, settings: Settings, bell: Doorbell) -> None:
    """Ring again for whatever waits: the clock is the net under lost doorbells."""
    with database.reading() as tx:
        waiting = queue.models_with_work(tx)
        ready = batches.engines_to_ring(tx, settings.engine_gone_after)
        unsent = owed.any_due(tx)
        unattended = bulk_leases.unattended(tx)
        served = {model for model in waiting if engines.live(tx, settings.engine_gone_after, model)}
    for model in served:
        bell.collector(model)
    for engine in ready:
        bell.engine(engine)
    if unsent:
        bell.deliver()
    for bulk in unattended:
        bell.bulk(bulk)
