"""How the queue is cut into batches: pure functions, `now` handed in.

A batch is cut when an engine has room, not by a clock. While engines are busy, jobs gather and batches grow by
themselves; the time bound of a lane only limits how long an underfilled batch may wait for company.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from tasks import policies
from tasks.engines.base import reserved
from tasks.policies import Limits, Queued

Reason = Literal["full", "waited", "room"]

_SLIVER = 8
"""A busy engine's batches are at least this part of its slots: one job at a time would cost a claim each."""


class Rules(Protocol):
    """A lane's policy, bounds (jobs, tokens), seconds to wait for company (engine idle, and not), guaranteed share."""

    @property
    def policy(self) -> str: ...  # noqa: D102
    @property
    def largest(self) -> int: ...  # noqa: D102
    @property
    def max_tokens(self) -> int: ...  # noqa: D102
    @property
    def wait(self) -> float: ...  # noqa: D102
    @property
    def wait_busy(self) -> float: ...  # noqa: D102
    @property
    def share(self) -> float: ...  # noqa: D102


CLOCK_STEP = 1.0
"""Seconds by which a job may seem to come from ahead of now because several clocks tell its time."""


@dataclass(frozen=True, slots=True)
class Load:
    """An engine and what it is doing: `running` counts the open jobs of its running batches, `realtime` its lane's."""

    slots: int
    reserve: int
    running: int
    realtime: int

    @property
    def idle(self) -> bool:
        """Tell whether nothing runs there, though something could."""
        return self.running == 0 and self.slots > 0


@dataclass(frozen=True, slots=True)
class Room:
    """How many jobs of a lane may be cut now, and whether an engine stands idle for want of them."""

    jobs: int
    idle: bool
    least: int = 1


@dataclass(frozen=True, slots=True)
class Batch:
    """Cut this."""

    ids: Sequence[str]
    last_owner: str
    tokens: int
    reason: Reason


@dataclass(frozen=True, slots=True)
class Wait:
    """Look again in so many seconds; None: when a doorbell rings."""

    seconds: float | None


def below(waiting: Iterable[str], rules: Mapping[str, Rules]) -> float:
    """Return which share of an engine those of the waiting lanes are guaranteed that realtime goes ahead of."""
    return sum(rules[lane].share for lane in set(waiting) - {"realtime"})


def most_realtime(slots: int, backlog: float, share: float) -> int:
    """Return how many realtime jobs an engine may have: its slots and a small backlog while nobody else waits.

    Otherwise all slots but the `share` of the others. With a backlog one of theirs would always be the next to go in,
    and what is below would never have a turn. A single slot is not shared.
    """
    kept = reserved(slots, share)
    return slots - kept if kept else slots + math.ceil(slots * backlog)


def room(loads: Iterable[Load], ready: Mapping[str, int], lane: str, backlog: float, share: float = 0.0) -> Room:
    """Return the room for a lane: free slots and a small backlog of each engine, less what lies READY.

    Realtime may use every slot but the `share` of who waits below (`below`), and counts nothing of theirs: it overtakes
    what is READY, and an engine that is full of theirs lets it in first. The others leave each engine's reserve free.
    READY holds at most one engine's slots of a model: a model whose backlog fills it leaves the others theirs.
    """
    loads = list(loads)
    if not loads:
        return Room(0, idle=False)
    realtime = lane == "realtime"
    waiting = ready.get(lane, 0) if realtime else sum(ready.values())
    if realtime:
        free = sum(most_realtime(load.slots, backlog, share) - load.realtime for load in loads)
    else:
        # The reserve is for realtime: what of it realtime has already need not be left free once more.
        taken = sum(load.running - load.realtime + max(load.reserve, load.realtime) for load in loads)
        free = sum(load.slots + math.ceil(load.slots * backlog) for load in loads) - taken
    largest_engine = max(load.slots for load in loads)
    jobs = min(free, largest_engine) - waiting
    idle = waiting == 0 and any(load.idle for load in loads)
    return Room(max(0, jobs), idle=idle, least=1 if realtime else max(1, largest_engine // _SLIVER))


def order(waiting: Sequence[str], deficits: Mapping[str, float], rules: Mapping[str, Rules]) -> list[str]:
    """Return the waiting lanes in the order they may cut: a lane that is owed a whole batch goes first."""
    owed = [lane for lane in waiting if deficits.get(lane, 0.0) >= rules[lane].largest]
    return [*owed, *(lane for lane in waiting if lane not in owed)]


def owe(
    lane: str, cut: int, waiting: Sequence[str], deficits: Mapping[str, float], rules: Mapping[str, Rules]
) -> dict[str, float]:
    """Return the deficits after `lane` got `cut` jobs: it pays, and every waiting lane below it earns its share."""
    new = dict(deficits)
    new[lane] = max(0.0, new.get(lane, 0.0) - cut)
    below = waiting[waiting.index(lane) + 1 :] if lane in waiting else []
    for lower in below:
        # Never more than two batches: a lane must not hoard turns.
        new[lower] = min(new.get(lower, 0.0) + cut * rules[lower].share, 2.0 * rules[lower].largest)
    for other in new:
        if other not in waiting:
            new[other] = 0.0
    return new


def plan(  # a decision has these facts
    candidates: Sequence[Queued], space: Room, rules: Rules, limits: Limits, *, now: float, cut_at: float
) -> Batch | Wait:
    """Decide on a lane's next batch: cut it now, or wait for company, or for room.

    `limits` are those of the lane's policy (`policies.limits`). `now` and `cut_at` (the lane's last batch) are seconds
    on the clock that positions were taken from.
    """
    if not candidates or space.jobs < 1:
        return Wait(None)
    taken, last_owner = policies.take(rules.policy, candidates, limits.most, rules.max_tokens)
    tokens = sum(job.tokens for job in taken)
    more = len(candidates) > len(taken)
    if len(taken) >= limits.full or (more and tokens >= rules.max_tokens // 2):
        reason: Reason = "full"
    elif more and (space.idle or len(taken) >= space.least):
        reason = "room"
    else:
        oldest = min(job.pos for job in candidates) / 1e6
        # A backlog is always old: what limits slivers for a busy engine is the time since the last cut.
        since = max(oldest, cut_at) if more else oldest
        left = since + (rules.wait if space.idle else rules.wait_busy) - now
        # From ahead of now comes what was queued before the clock was set back: it has waited long enough.
        if left > 0 and since - now < CLOCK_STEP:
            return Wait(left)
        reason = "waited"
    return Batch([job.id for job in taken], last_owner, tokens, reason)
