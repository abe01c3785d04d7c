"""The batches in flight on one engine: what of each has no outcome yet, and how long its lease surely holds."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import structlog

from models.batches import Claimed
from stoker.settings import Settings
from tasks.tokens import Stream

log = structlog.get_logger(__name__)

_MARGIN, _MOST_MARGIN = 0.2, 3.0


def clock() -> float:
    """Return seconds on a clock that counts while the machine is suspended, as the database's does."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(slots=True)
class Flight:
    """A batch in flight: the jobs of it that have no outcome yet, and the streams of those that have one."""

    batch: Claimed
    holds_until: float
    unfinished: dict[str, int] = field(default_factory=dict)
    streams: dict[str, Stream] = field(default_factory=dict)
    stop: threading.Event = field(default_factory=threading.Event)
    lost: bool = False
    stored: bool = False

    def holds(self) -> bool:
        """Tell whether the batch surely is ours still: its lease runs, or its outcomes are stored."""
        return not self.lost and (self.stored or clock() < self.holds_until)


class Flights:
    """The flights of a worker. Every method may be called from any thread."""

    def __init__(self, settings: Settings) -> None:
        self._held = settings.lease - min(_MOST_MARGIN, settings.lease * _MARGIN)
        self._lock = threading.Lock()
        self._flights: dict[str, Flight] = {}

    def __len__(self) -> int:
        """Return how many there are."""
        return len(self._flights)

    def add(self, batch: Claimed, claimed_at: float) -> Flight:
        """Take up a batch that was just claimed; `claimed_at` is the clock before the claim."""
        flight = Flight(batch, claimed_at + self._held, dict.fromkeys((job.id for job in batch.jobs), 0))
        with self._lock:
            self._flights[batch.id] = flight
        return flight

    def remove(self, flight: Flight) -> None:
        """Forget a batch that has ended."""
        with self._lock:
            self._flights.pop(flight.batch.id, None)

    def all(self) -> list[Flight]:
        """Return them as they are now."""
        with self._lock:
            return list(self._flights.values())

    def unfinished(self) -> int:
        """Return how many jobs have no outcome yet."""
        return sum(len(flight.unfinished) for flight in self.all())

    def by_lane(self, model: str | None = None) -> Counter[str]:
        """Return how many jobs, of one model or all, have no outcome yet; no lane has none."""
        counted: Counter[str] = Counter()
        for flight in self.all():
            if flight.unfinished and model in (None, flight.batch.model):
                counted[flight.batch.lane] += len(flight.unfinished)
        return counted

    def jobs(self) -> Mapping[str, Sequence[str]]:
        """Return the ids of the unfinished jobs of each batch."""
        return {flight.batch.id: list(flight.unfinished) for flight in self.all()}

    def renewed(self, batch_ids: Iterable[str], at: float) -> None:
        """Note that these leases were renewed, by a transaction that began at `at` on the clock."""
        kept = set(batch_ids)
        for flight in self.all():
            if flight.batch.id in kept:
                flight.holds_until = at + self._held

    def lose(self, batch_ids: Sequence[str]) -> None:
        """Stop batches that are no longer ours; nothing of them counts any more."""
        for flight in self.all():
            if flight.batch.id in batch_ids and flight.unfinished:
                log.warning("lost the lease of a batch", batch=flight.batch.id, unfinished=len(flight.unfinished))
                flight.lost = True
                flight.stop.set()

    def wait(self, seconds: float) -> None:
        """Wait until none is left, or the seconds have passed."""
        until = time.monotonic() + seconds
        while self._flights and time.monotonic() < until:
            time.sleep(0.05)

    def stop(self) -> None:
        """Let the engine drop what is unfinished."""
        for flight in self.all():
            flight.stop.set()

    def forget(self, job_ids: Sequence[str]) -> None:
        """Wait no more for jobs that have ended by other hands."""
        for flight in self.all():
            for job_id in job_ids:
                flight.unfinished.pop(job_id, None)
