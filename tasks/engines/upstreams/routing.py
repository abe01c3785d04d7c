"""Who gets the next free connection: one line for a whole engine of upstreams. Pure.

Strictly by lane, first come first served within a lane, and a request whose model has no free upstream holds up nobody
else. Among the upstreams that could take it, the one with the fewest connections does; of equals the one that waited
longest.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from stoker.settings import LANES
from tasks.engines.base import ServedModel, reserved
from tasks.engines.upstreams.member import Upstream

KEPT_FOR = 60.0
"""Seconds after the last realtime request in which the reserve is kept, as in `gate`."""
LONG = 60.0
"""Seconds of an upstream's pause that are worth waiting for in line."""

Ticket = TypeVar("Ticket")


@dataclass(frozen=True, slots=True)
class Need:
    """What a waiting request needs: its model, on none of the upstreams in `avoid` (URLs)."""

    lane: str
    model: str
    avoid: frozenset[str] = frozenset()


@dataclass(slots=True, eq=False)
class _Queue(Generic[Ticket]):
    """Those who need the same: a heap of numbers by arrival, and who `waits`; who left stays in the heap a while."""

    heap: list[int] = field(default_factory=list)
    waits: dict[int, Ticket] = field(default_factory=dict)
    hopeless_since: float | None = None

    def first(self) -> int | None:
        while self.heap and self.heap[0] not in self.waits:
            heapq.heappop(self.heap)
        return self.heap[0] if self.heap else None


class Router(Generic[Ticket]):
    """The line, and the upstreams at its other end."""

    def __init__(self, share: float = 0.0) -> None:
        self.upstreams: dict[str, Upstream] = {}
        self._share = share
        self._queues: dict[str, dict[Need, _Queue[Ticket]]] = {lane: {} for lane in LANES}
        self._inside = 0
        self._turn = 0
        self._realtime_at = -math.inf

    # The line

    def arrive(self, need: Need, number: int, ticket: Ticket, now: float) -> None:
        """Queue; `number` is the place in line: that of its arrival, also for one that comes back."""
        if need.lane == "realtime":
            self._realtime_at = now
        queue = self._queues[need.lane].setdefault(need, _Queue())
        heapq.heappush(queue.heap, number)
        queue.waits[number] = ticket

    def withdraw(self, need: Need, number: int) -> None:
        """Leave the line; one that was admitted, or sent away, has left it already."""
        if queue := self._queues[need.lane].get(need):
            queue.waits.pop(number, None)
            self._forget_empty(need.lane)

    def admit(self, now: float) -> tuple[Upstream, Ticket] | None:
        """Give the next one a connection; None when nobody waits for one that is free."""
        free = [upstream for upstream in self.upstreams.values() if upstream.has_room(now)]
        for lane in LANES if free else ():
            if not self._queues[lane] or not self._may_enter(lane, now):
                continue
            chosen: tuple[int, Need, Upstream] | None = None
            for need, queue in self._queues[lane].items():
                number = queue.first()
                if number is None or (chosen and number > chosen[0]):
                    continue
                if upstream := self._best(need, free):
                    chosen = (number, need, upstream)
            if chosen:
                return chosen[2], self._enter(lane, chosen[1], chosen[2])
        return None

    def leave(self, lane: str, upstream: Upstream) -> None:
        """Give a connection back."""
        upstream.in_flight -= 1
        upstream.others -= lane != "realtime"
        self._inside -= 1

    def _enter(self, lane: str, need: Need, upstream: Upstream) -> Ticket:
        queue = self._queues[lane][need]
        ticket = queue.waits.pop(heapq.heappop(queue.heap))
        self._forget_empty(lane)
        self._turn += 1
        upstream.turn = self._turn
        upstream.in_flight += 1
        upstream.others += lane != "realtime"
        self._inside += 1
        return ticket

    def _best(self, need: Need, free: Iterable[Upstream]) -> Upstream | None:
        able = (one for one in free if one.serves(need.model) and one.url not in need.avoid)
        return min(able, key=lambda one: (one.in_flight, one.turn), default=None)

    def _may_enter(self, lane: str, now: float) -> bool:
        if lane == "realtime" or now - self._realtime_at >= KEPT_FOR:
            return True
        # What still runs on an upstream that is down, or beyond a limit that shrank, takes none of the slots there are.
        others = sum(min(one.others, one.slots) for one in self.upstreams.values())
        return others < self.slots - reserved(self.slots, self._share)

    def _forget_empty(self, lane: str) -> None:
        for need in [need for need, queue in self._queues[lane].items() if queue.first() is None]:
            del self._queues[lane][need]

    # Hope

    def hope(self, model: str, avoid: Collection[str], now: float) -> bool:
        """Tell whether waiting makes sense: somebody serves the model and is neither to be avoided nor long away."""
        return any(
            (one.serves(model) or (one.suspect and not one.removed and model in one.models))
            and one.url not in avoid
            and one.paused_until - now <= LONG
            for one in self.upstreams.values()
        )

    def hopeless(self, now: float, patience: float) -> Iterator[Ticket]:
        """Take out of the line, and yield, those who waited `patience` seconds without any hope."""
        for lane in LANES:
            for need, queue in list(self._queues[lane].items()):
                if self.hope(need.model, need.avoid, now):
                    queue.hopeless_since = None
                elif queue.hopeless_since is None:
                    queue.hopeless_since = now
                elif now - queue.hopeless_since >= patience:
                    del self._queues[lane][need]
                    yield from queue.waits.values()

    def unknown(self, model: str) -> bool:
        """Tell whether a model is one that nobody has: every upstream is up and none serves, or lost, it."""
        return bool(self.upstreams) and not any(one.may_have(model) for one in self.upstreams.values())

    def pause(self, model: str, now: float) -> float | None:
        """Return the seconds until an upstream that serves a model wants to be asked again; None without a pause."""
        pauses = [one.paused_until - now for one in self.upstreams.values() if one.serves(model)]
        return min(pauses) if pauses and min(pauses) > 0 else None

    # What the engine tells of itself

    @property
    def inside(self) -> int:
        """Return how many requests have a connection."""
        return self._inside

    @property
    def slots(self) -> int:
        """Return how many requests may run at once on all upstreams that are up."""
        return sum(one.slots for one in list(self.upstreams.values()))

    def waiting(self, upstream: Upstream | None = None) -> int:
        """Return how many wait, for this upstream or for any."""
        # Copies: metrics are read from other threads.
        queues = [item for lane in LANES for item in list(self._queues[lane].items())]
        return sum(len(queue.waits) for need, queue in queues if upstream is None or need.model in upstream.models)

    def models(self) -> tuple[ServedModel, ...]:
        """Return what the upstreams that are up serve; a context is the smallest that any of them told."""
        slots: dict[str, int] = {}
        lengths: dict[str, int] = {}
        for one in list(self.upstreams.values()):
            for name, length in list(one.models.items()) if one.slots else ():
                slots[name] = slots.get(name, 0) + one.slots
                if length is not None:
                    lengths[name] = min(length, lengths.get(name, length))
        return tuple(ServedModel(name, lengths.get(name), slots=count) for name, count in sorted(slots.items()))
