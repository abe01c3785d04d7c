"""What an engine measures, added up in its process and stored at the heartbeat (models/samples.py)."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass

from models import engines, samples
from models.db import Database
from models.engines import Incarnation
from models.measures import Measures
from models.samples import Kind


@dataclass(frozen=True, slots=True)
class _Stretch:
    """What was stored of one stretch."""

    at: int
    measured: Mapping[Kind, Measures]

    def grown(self, at: int, more: Mapping[Kind, Measures]) -> _Stretch:
        """Return it with more in it; or the stretch that has begun since, with that alone."""
        held = dict(self.measured) if at == self.at else {}
        for kind, measures in more.items():
            added = deepcopy(held.get(kind, Measures()))
            added.add(measures)
            held[kind] = added
        return _Stretch(at, held)


class Sampler:
    """Adds up for one incarnation of an engine. `add` may be called from any thread, `store` from one at a time."""

    def __init__(self, mine: Incarnation) -> None:
        self._mine = mine
        self._lock = threading.Lock()
        self._new: defaultdict[Kind, Measures] = defaultdict(Measures)
        self._stretches = {width: _Stretch(0, {}) for width in samples.WIDTHS}

    def add(self, model: str, lane: str, measures: Measures) -> None:
        """Add what was measured of a model and lane."""
        with self._lock:
            self._new[model, lane].add(measures)

    def store(self, database: Database, detail: str | None = None) -> None:
        """Store what was added since the last time; it is kept for the next one when the database does not take it.

        With `detail` also what the engine tells of itself.

        It counts for the stretch in which it is stored. Where a COMMIT went through unheard and the next stretch has
        begun meanwhile, a few seconds are counted twice.
        """
        with self._lock:
            new, self._new = self._new, defaultdict(Measures)
        stored = False
        try:
            with database.transaction() as tx:
                clock = samples.clock(tx)
                grown = {
                    width: stretch.grown(samples.start(width, clock), new) for width, stretch in self._stretches.items()
                }
                for width, stretch in grown.items():
                    changed = {kind: stretch.measured[kind] for kind in new}
                    samples.write(tx, self._mine, width, stretch.at, changed)
                if detail is not None:
                    engines.tell(tx, self._mine, detail)
            stored = True
        finally:
            if not stored:
                for (model, lane), measures in new.items():
                    self.add(model, lane, measures)
        self._stretches = grown
