"""The tender of bulks: looks what a bulk's row says is to be done, and does it, until nothing is.

One holder a bulk, by a lease in its row; every write of a holder is guarded, so a message that comes twice, late or
never, and a process that dies or freezes at any line, cost time and nothing else.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import cache

import structlog
from celery import signals

from models import bulk_leases, bulk_lines, bulks, files
from models.bulk_leases import Superseded
from models.bulks import BULK_KIND
from models.db import AnyRow, Database
from models.errors import QueueFull
from models.room import Room
from models.storage import Storage
from stoker.settings import Settings
from tasks import ingest
from tasks.app import app, context
from tasks.doorbell import Doorbell, doorbell
from tasks.export import export
from tasks.tending import Stopped, Tending
from tasks.validation import Fault, validate

log = structlog.get_logger(__name__)

_PAUSE = 0.02
_stopping = threading.Event()


@app.task(name="tasks.bulks.tend")
def tend(bulk_id: str) -> None:
    """Do what is to be done for a bulk."""
    here = context()
    tend_bulk(here.database, here.settings, _storage(), doorbell(), bulk_id, room=_room(), stopping=_stopping)


@cache
def _storage() -> Storage:
    return Storage(context().settings.storage)


@cache
def _room() -> Room:
    return _room_of(context().database, context().settings)


def _room_of(database: Database, settings: Settings) -> Room:
    return Room(database, settings.max_queued_per_owner, settings.max_queued, settings.key_tokens_queued)


@signals.worker_shutting_down.connect
def stop(**_: object) -> None:
    """Let every tender of this process stop behind its current chunk."""
    _stopping.set()


def tend_bulk(
    database: Database,
    settings: Settings,
    storage: Storage,
    bell: Doorbell,
    bulk_id: str,
    *,
    room: Room | None = None,
    stopping: threading.Event | None = None,
) -> None:
    """Tend a bulk until nothing is to be done for it, or another does, or it waits for room in the queue."""
    room = room or _room_of(database, settings)
    tending = Tending(database, settings, storage, bell, room, stopping or threading.Event())
    while True:
        with database.reading() as tx:
            row = bulk_leases.look(tx, bulk_id)
        if row is None or (duty := bulk_leases.duty(row)) is None:
            return
        if duty == "ingest" and not ingest.has_room(tending, row):
            return
        with database.transaction() as tx:
            held = bulk_leases.hold(tx, bulk_id, tending.me, tending.lease)
        if held is None or not _attend(tending, held):
            return


def _attend(tending: Tending, held: AnyRow) -> bool:
    """Do one duty after the other. False when there is no use in going on now: the sweeper rings again."""
    bulk_id, before = held.id, None
    try:
        while (what := bulk_leases.duty(held)) is not None:
            if before == (what, _progress(held)):
                log.error("a bulk does not get on", bulk=bulk_id, duty=what)
                return False
            before = (what, _progress(held))
            try:
                DUTIES[what](tending, held)
            except Superseded:
                before = None
            with tending.database.transaction() as tx:
                again = bulk_leases.hold(tx, bulk_id, tending.me, tending.lease)
            if again is None:
                return False
            held = again
    except (Stopped, QueueFull):
        return False
    finally:
        with tending.database.transaction() as tx:
            bulk_leases.let_go(tx, bulk_id, tending.me)
    return True


def _progress(row: AnyRow) -> tuple[object, ...]:
    return (row.state, row.offset, row.line, row.total, row.done, row.ingest_done, row.lane_applied)


def _start(tending: Tending, held: AnyRow) -> None:
    with tending.database.transaction() as tx:
        bulk_leases.move(tx, held, tending.me, "running")


def _stop_early(tending: Tending, held: AnyRow) -> None:
    """Cancel what is left of a bulk of which too many lines failed."""
    fault = Fault(
        "too_many_failures",
        f"Stopped: {held.failed} of the {held.done} lines that ended have failed, more than the share of "
        f"{held.stop_after_failed:g} that was allowed.",
    )
    with tending.database.transaction() as tx:
        bulk_leases.move(tx, held, tending.me, "cancelling", errors=[*(held.errors or []), asdict(fault)])


def _cancel(tending: Tending, held: AnyRow) -> None:
    ingest.end_open(tending, held, "cancelled")


def _expire(tending: Tending, held: AnyRow) -> None:
    ingest.end_open(tending, held, "expired")


def _close(tending: Tending, held: AnyRow) -> None:
    """Begin to write out a bulk of which every line has ended."""
    with tending.database.transaction() as tx:
        bulk_leases.move(tx, held, tending.me, "finalizing")


def _delete(tending: Tending, held: AnyRow) -> None:
    """Delete a bulk's jobs and results in slices, then its input and itself."""
    more = True
    while more:
        tending.check()
        started = time.monotonic()
        with tending.database.transaction() as tx:
            more = bulk_lines.delete_slice(tx, held.id, min(1000, tending.slice_lines)) > 0
            bulk_leases.renew(tx, held, tending.me, tending.lease)
        # Nobody waits for it: on any database it leaves as much time to others as it took.
        time.sleep(max(_PAUSE, time.monotonic() - started))
    with tending.database.transaction() as tx:
        if held.kind == BULK_KIND and held.file_id is not None:
            files.delete(tx, held.file_id, purpose=files.BULK_INPUT)
        bulks.forget(tx, held.id)


DUTIES: dict[str, Callable[[Tending, AnyRow], None]] = {
    "validate": validate,
    "start": _start,
    "ingest": ingest.ingest,
    "relane": ingest.relane,
    "stop": _stop_early,
    "cancel": _cancel,
    "expire": _expire,
    "close": _close,
    "export": export,
    "delete": _delete,
}
