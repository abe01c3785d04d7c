"""How the queue is cut into batches: pure functions, `now` handed in.

A batch is cut when an engine has room, not by a clock. While engines are busy, jobs gather and batches grow by
themselves; the time bound of a lane only limits how long an underfilled batch may wait for company.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

Reason = Literal["full", "waited", "room"]

_SLIVER = 8
"""A busy engine's batches are at least this part of its slots: one job at a time would cost a claim each."""


class Queued(Protocol):
    """A queued job, as far as a policy looks at it. `pos` is in microseconds, `tokens` an estimate."""

    @property
    def id(self) -> str: ...  # noqa: D102
    @property
    def owner(self) -> str: ...  # noqa: D102
    @property
    def tokens(self) -> int: ...  # noqa: D102
    @property
    def pos(self) -> int: ...  # noqa: D102


class Rules(Protocol):
    """The bounds of a lane: jobs, tokens, seconds to wait for company (engine idle, and not), guaranteed share."""

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


@dataclass(frozen=True, slots=True)
class Load:
    """An engine and what it is doing: `running` counts the open jobs of its running batches."""

    slots: int
    reserve: int
    running: int

    @property
    def idle(self) -> bool:
        """Tell whether nothing runs there."""
        return self.running == 0


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


def room(loads: Iterable[Load], ready: Mapping[str, int], lane: str, backlog: float) -> Room:
    """Return the room for a lane: free slots and a small backlog of each engine, less what lies READY.

    Realtime may use every slot and does not count the READY of the lanes below, which it overtakes; the others leave
    each engine's reserve free. READY holds at most one engine's slots.
    """
    loads = list(loads)
    if not loads:
        return Room(0, idle=False)
    realtime = lane == "realtime"
    waiting = ready.get(lane, 0) if realtime else sum(ready.values())
    free = sum(
        load.slots - (0 if realtime else load.reserve) - load.running + math.ceil(load.slots * backlog)
        for load in loads
    )
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


def interleave(candidates: Sequence[Queued]) -> list[Queued]:
    """Let owners take turns: one job each, round after round; owners in the order they come, their jobs by position."""
    lines: dict[str, deque[Queued]] = defaultdict(deque)
    for job in candidates:
        lines[job.owner].append(job)
    mixed: list[Queued] = []
    while lines:
        for owner in list(lines):
            mixed.append(lines[owner].popleft())
            if not lines[owner]:
                del lines[owner]
    return mixed


def fill(candidates: Sequence[Queued], most: int, max_tokens: int) -> list[Queued]:
    """Take jobs in turn up to `most` and `max_tokens`; a job that is too large for any batch goes alone."""
    taken: list[Queued] = []
    tokens = 0
    for job in interleave(candidates):
        if len(taken) == most or (taken and tokens + job.tokens > max_tokens):
            break
        taken.append(job)
        tokens += job.tokens
    return taken


def plan(candidates: Sequence[Queued], space: Room, rules: Rules, *, now: float, cut_at: float) -> Batch | Wait:
    """Decide on a lane's next batch: cut it now, or wait for company, or for room.

    `now` and `cut_at` (the lane's last batch) are seconds on the clock that positions were taken from.
    """
    if not candidates or space.jobs < 1:
        return Wait(None)
    taken = fill(candidates, min(rules.largest, space.jobs), rules.max_tokens)
    tokens = sum(job.tokens for job in taken)
    more = len(candidates) > len(taken)
    if len(taken) >= rules.largest or (more and tokens >= rules.max_tokens // 2):
        reason: Reason = "full"
    elif more and (space.idle or len(taken) >= space.least):
        reason = "room"
    else:
        oldest = min(job.pos for job in candidates) / 1e6
        # A backlog is always old: what limits slivers for a busy engine is the time since the last cut.
        since = max(oldest, cut_at) if more else oldest
        left = since + (rules.wait if space.idle else rules.wait_busy) - now
        if left > 0:
            return Wait(left)
        reason = "waited"
    return Batch([job.id for job in taken], taken[-1].owner, tokens, reason)
