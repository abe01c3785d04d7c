"""Who is sent to next: the deliveries that are due, by host, and the hosts in turn.

The oldest that are due are enough to know while there are few. When there are many, one host may hide all others among
them: then the hosts are gone through one after another, from the one that was served last. Owners do not take turns,
since one may have any number of hosts: none has more than half of the places.
"""

from __future__ import annotations

import itertools
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
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


@dataclass(frozen=True, slots=True)
class Busy:
    """The requests that are under way, by host and by owner."""

    hosts: Mapping[str, int] = field(default_factory=dict)
    owners: Mapping[str, int] = field(default_factory=dict)


def in_turns(
    waiting: Mapping[str, Sequence[T]],
    free: Mapping[str, int],
    room: int,
    after: str | None,
    may: Callable[[T], bool] = lambda _one: True,
) -> list[T]:
    """Choose up to `room`, of each host at most as many as are free, in order, one a turn; pure, but for `may`.

    The hosts' order is that of `waiting`, from the one behind `after` on. `may`, asked once of each that would be
    chosen, may refuse it; the host's next one is then asked about.
    """
    hosts = list(waiting)
    begin = hosts.index(after) + 1 if after is not None and after in waiting else 0
    left = {host: free.get(host, 0) for host in [*hosts[begin:], *hosts[:begin]]}
    rest = {host: iter(waiting[host]) for host in left}
    chosen: list[T] = []
    while left:
        for host in list(left):
            if len(chosen) == room:
                return chosen
            found = list(itertools.islice(filter(may, rest[host]), 1 if left[host] else 0))
            chosen += found
            left[host] -= 1
            if not found:
                del left[host]
    return chosen


class Lineup:
    """What is known to be due, between looks; for one sender at a time, and not for two threads at once."""

    def __init__(self, per_host: int, at_once: int, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin without knowing anything. `per_host`, `at_once`: requests to a host, and in all, at once."""
        self._per_host = per_host
        self._at_once = at_once
        self._clock = clock
        self._waiting: dict[str, list[Due]] = {}
        self._looked_at = -_SELDOM
        self._busy = Busy()
        self._served: str | None = None
        self._walked: str | None = None
        self._fills = True
        self._is_all = True
        self._barren = 0

    @property
    def saw_all(self) -> bool:
        """Tell whether there is nothing due but what is known, and what has as many requests as it may."""
        # The first end may be met from the middle; after the second, all hosts were seen.
        return self._is_all or self._barren >= 2  # noqa: PLR2004

    @property
    def pause(self) -> float:
        """Return the seconds after which to look again though nothing happened."""
        if self._is_all:
            return _SELDOM
        return _HIDDEN if self.saw_all else _OFTEN

    def wants_look(self, room: int, busy: Busy, *, rung: bool) -> bool:
        """Tell whether what is known does not fill the room, or has become old."""
        age = self._clock() - self._looked_at
        if rung:
            self._barren = 0
        if rung or age >= _STALE or not any(busy.hosts.values()):
            return True
        chosen = len(self._choice(self._waiting, room, busy))
        # Where it is the limits that keep the room empty, a look finds nothing better.
        known = sum(map(len, self._waiting.values())) >= room and chosen > 0
        return age >= _OFTEN and chosen < room and not known

    def look(self, tx: sa.Connection, busy: Busy) -> None:
        """Learn what is due."""
        if any(busy.hosts.get(host, 0) < count for host, count in self._busy.hosts.items()):
            # What was passed over may be sent to now.
            self._barren = 0
        self._looked_at, self._busy = self._clock(), busy
        found = owed.due(tx, MOST_SEEN)
        self._is_all = self._fills = len(found) < MOST_SEEN
        self._waiting = _by_host(found) if self._is_all else self._gone_through(tx, busy)

    def _gone_through(self, tx: sa.Connection, busy: Busy) -> dict[str, list[Due]]:
        room = self._at_once - sum(busy.hosts.values())
        found: dict[str, list[Due]] = {}
        ends = 0
        for _ in range(HOPS):
            some, self._walked = owed.due_hosts(tx, self._walked, HOSTS_AT_ONCE)
            found |= self._usable(tx, [host for host in some if self._free(busy, host)], busy)
            ends += self._walked is None
            self._fills = len(found) >= HOSTS_AT_ONCE and len(self._choice(found, room, busy)) >= room
            if self._fills or ends > 1:
                break
        self._barren = 0 if found else self._barren + ends
        if ends > 1 or self._fills:
            return found
        # The next look goes on behind these, and not behind the last that is served: whoever is not served now may be
        # among the same ones at its next turn, so that it must not be the first ones' turn again.
        hosts = random.sample(list(found), len(found))
        return {host: found[host] for host in hosts}

    def _usable(self, tx: sa.Connection, hosts: Sequence[str], busy: Busy) -> dict[str, list[Due]]:
        """Return what is due at these hosts of owners who may have more requests."""
        if not hosts:
            return {}
        due = owed.due_of(tx, hosts, max(self._per_host, MOST_SEEN // len(hosts)))
        return _by_host(one for one in due if busy.owners.get(one.owner, 0) < self._most_of_owner)

    def take(self, room: int, busy: Busy) -> list[Due]:
        """Take out what is to be sent next."""
        chosen = self._choice(self._waiting, room, busy)
        for one in chosen:
            self._waiting[one.host].remove(one)
            self._served = one.host
        if chosen and self._fills:
            self._walked = self._served
        self._waiting = {host: some for host, some in self._waiting.items() if some}
        return chosen

    def _choice(self, waiting: Mapping[str, Sequence[Due]], room: int, busy: Busy) -> list[Due]:
        owners = Counter(busy.owners)

        def may(one: Due) -> bool:
            owners[one.owner] += 1
            return owners[one.owner] <= self._most_of_owner

        return in_turns(waiting, {host: self._free(busy, host) for host in waiting}, room, self._served, may)

    @property
    def _most_of_owner(self) -> int:
        return max(1, self._at_once // 2)

    def _free(self, busy: Busy, host: str) -> int:
        return max(0, self._per_host - busy.hosts.get(host, 0))


def _by_host(found: Iterable[Due]) -> dict[str, list[Due]]:
    """Sort by host, one for each parcel."""
    by_host: dict[str, list[Due]] = {}
    for one in {due.parcel: due for due in found}.values():
        by_host.setdefault(one.host, []).append(one)
    return by_host
