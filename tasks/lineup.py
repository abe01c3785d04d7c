"""Who is sent to next: the deliveries that are due, by host, and the hosts in turn.

The oldest that are due are enough to know while there are few. When there are many, one host may hide all others among
them: then the hosts are gone through one after another, from the one that was served last.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import sqlalchemy as sa

from models import owed
from models.owed import Due

T = TypeVar("T")

MOST_SEEN = 512
"""Deliveries that one look reads, at most, where all are read in the order of their time."""
HOSTS_AT_ONCE, HOPS = 256, 8
"""Hosts that one query goes through, and queries of one look."""
_OFTEN, _SELDOM = 0.02, 1.0
"""Seconds between looks, where something may be found and where nothing is expected."""
_STALE = 0.1
"""Seconds after which what is known is looked at again, though it would be enough: others may have come."""
_HIDDEN = 0.25
"""Seconds between looks when all hosts were gone through, and all that are due have as many requests as they may."""


def in_turns(waiting: Mapping[str, Sequence[T]], free: Mapping[str, int], room: int, after: str | None) -> list[T]:
    """Choose up to `room`, of each host at most as many as are free, in order, one a turn; pure.

    The hosts' order is that of `waiting`, from the one behind `after` on.
    """
    hosts = list(waiting)
    begin = hosts.index(after) + 1 if after is not None and after in waiting else 0
    most = {host: min(len(waiting[host]), free.get(host, 0)) for host in [*hosts[begin:], *hosts[:begin]]}
    chosen: list[T] = []
    for turn in range(max(most.values(), default=0)):
        for host, count in most.items():
            if len(chosen) == room:
                return chosen
            if turn < count:
                chosen.append(waiting[host][turn])
    return chosen


class Lineup:
    """What is known to be due, between looks; for one sender, and not for two threads at once."""

    def __init__(self, per_host: int, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin without knowing anything. `per_host`: requests to a host at once."""
        self._per_host = per_host
        self._clock = clock
        self._waiting: dict[str, list[Due]] = {}
        self._looked_at = -_SELDOM
        self._served: str | None = None
        self._is_all = True
        self._barren = 0

    @property
    def pause(self) -> float:
        """Return the seconds after which to look again though nothing happened."""
        if self._is_all:
            return _SELDOM
        # The first end may be met from the middle; after the second, all hosts were seen.
        return _OFTEN if self._barren < 2 else _HIDDEN  # noqa: PLR2004

    def wants_look(self, room: int, busy: Mapping[str, int], *, rung: bool) -> bool:
        """Tell whether what is known does not fill the room, or has become old."""
        age = self._clock() - self._looked_at
        if rung:
            self._barren = 0
        if rung or age >= _STALE or not any(busy.values()):
            return True
        known = sum(min(len(some), self._free(busy, host)) for host, some in self._waiting.items())
        return known < room and age >= _OFTEN

    def look(self, tx: sa.Connection, busy: Mapping[str, int]) -> None:
        """Learn what is due."""
        self._looked_at = self._clock()
        found = owed.due(tx, MOST_SEEN)
        self._is_all = len(found) < MOST_SEEN
        self._waiting = _by_host(found if self._is_all else self._gone_through(tx, busy))

    def _gone_through(self, tx: sa.Connection, busy: Mapping[str, int]) -> list[Due]:
        hosts: dict[str, None] = {}
        ends = 0
        for _ in range(HOPS):
            some, self._served = owed.due_hosts(tx, self._served, HOSTS_AT_ONCE)
            hosts |= dict.fromkeys(host for host in some if self._free(busy, host))
            ends += self._served is None
            if len(hosts) >= HOSTS_AT_ONCE or ends > 1:
                break
        self._barren = 0 if hosts else self._barren + ends
        if not hosts:
            return []
        return owed.due_of(tx, list(hosts), max(self._per_host, MOST_SEEN // len(hosts)))

    def take(self, room: int, busy: Mapping[str, int]) -> list[Due]:
        """Take out what is to be sent next; `busy` counts the requests under way to each host."""
        free = {host: self._free(busy, host) for host in self._waiting}
        chosen = in_turns(self._waiting, free, room, self._served)
        for one in chosen:
            # In order: the first of its host.
            self._waiting[one.host].pop(0)
            self._served = one.host
        self._waiting = {host: some for host, some in self._waiting.items() if some}
        return chosen

    def _free(self, busy: Mapping[str, int], host: str) -> int:
        return max(0, self._per_host - busy.get(host, 0))


def _by_host(found: Iterable[Due]) -> dict[str, list[Due]]:
    """Sort by host, one for each parcel."""
    by_host: dict[str, list[Due]] = {}
    for one in {due.parcel: due for due in found}.values():
        by_host.setdefault(one.host, []).append(one)
    return by_host
