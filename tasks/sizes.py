"""What this process knows of how batch sizes did: read from the database every few seconds, for `adaptive` only."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from threading import Lock
from weakref import WeakKeyDictionary

import sqlalchemy as sa

from models import loads
from tasks import knee

READ_EVERY = 5.0


@dataclass(slots=True)
class _Known:
    """What was read last, when, and how many batches of a model and lane were cut since the process began."""

    took: Sequence[loads.Took] = ()
    read_at: float = -math.inf
    samples: dict[tuple[str, str], Sequence[knee.Sample]] = field(default_factory=dict)
    cuts: Counter[tuple[str, str]] = field(default_factory=Counter)


_known: WeakKeyDictionary[sa.Engine, _Known] = WeakKeyDictionary()
_lock = Lock()


def learned(tx: sa.Connection, model: str, lane: str, largest: int) -> int:
    """Return how many jobs the next batch of a model and lane should have."""
    with _lock:
        known = _known.setdefault(tx.engine, _Known())
        due = time.monotonic() - known.read_at >= READ_EVERY
        if due:
            known.read_at = time.monotonic()
    if due:
        took = loads.measured(tx)
        with _lock:
            known.took, known.samples = took, {}
    with _lock:
        if (model, lane) not in known.samples:
            known.samples[model, lane] = knee.samples(known.took, model, lane)
        return knee.size(known.samples[model, lane], largest, known.cuts[model, lane])


def used(tx: sa.Connection, model: str, lane: str) -> None:
    """Note that a batch of this model and lane was cut: now and then one tries another size."""
    with _lock:
        _known.setdefault(tx.engine, _Known()).cuts[model, lane] += 1
