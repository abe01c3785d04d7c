"""An outage of the database, sat out: for what must be stored before its thread goes on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

import structlog

from models.errors import DatabaseUnavailable
from tasks.backoff import delay

log = structlog.get_logger(__name__)

T = TypeVar("T")


def sit_out(work: Callable[[], T], waiting: str, *, given_up: threading.Event | None = None, **what: object) -> T:
    """Do `work`, again for as long as the database is away; `waiting` and `what` are logged each time.

    Whether a commit took effect is unknown when its answer is lost: doing the work twice must be harmless. Raises
    DatabaseUnavailable only when `given_up` was set meanwhile.
    """
    tries = 0
    while True:
        try:
            return work()
        except DatabaseUnavailable as error:
            tries += 1
            log.warning(waiting, error=str(error), **what)
            time.sleep(delay(tries, jitter=0.5, base=0.2, most=5.0))
            if given_up is not None and given_up.is_set():
                raise
