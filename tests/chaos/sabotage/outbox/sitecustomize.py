"""The outbox off: an event is written a moment after the commit it tells of. Loaded by every process of a control."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from contextlib import suppress

import sqlalchemy as sa

from models import deliveries
from models.deliveries import NewDelivery

_within = deliveries.enqueue


def _enqueue(tx: sa.Connection, new: Iterable[NewDelivery]) -> list[str]:
    told, engine = list(new), tx.engine

    def later() -> None:
        with suppress(Exception), engine.begin() as own:
            _within(own, told)

    timer = threading.Timer(1.0, later)
    timer.daemon = True
    timer.start()
    return []


deliveries.enqueue = _enqueue
