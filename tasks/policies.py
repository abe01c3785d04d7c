"""Which of the queued jobs make a batch: the four policies, pure. `docs/policies.md` says what each is good for.

fixed         so many jobs, owners in turn
token_budget  as many jobs as fit into the lane's tokens, owners in turn
bucketed      jobs that begin alike, then those of like length, around the oldest job of the owner whose turn it is
adaptive      as fixed, with the number of jobs learned from measured batches (`tasks/knee.py`)
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

WINDOW = 4
"""`bucketed` chooses among so many times its largest batch: fewer hardly ever hold enough that are alike."""
MOST_READ = 1024
"""Most jobs that are looked at for one batch, unless a lane's largest batch is larger: looking costs, too."""


class Queued(Protocol):
    """A queued job, as far as a policy looks at it. `pos` is in microseconds, `tokens` an estimate.

    `prefix` is the same for prompts that begin alike, 0 where that is not known.
    """

    @property
    def id(self) -> str: ...  # noqa: D102
    @property
    def owner(self) -> str: ...  # noqa: D102
    @property
    def tokens(self) -> int: ...  # noqa: D102
    @property
    def pos(self) -> int: ...  # noqa: D102
    @property
    def prefix(self) -> int: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Limits:
    """A batch has at most `most` jobs, waits no longer once it has `full`, and is chosen among `window`."""

    most: int
    full: int
    window: int


def limits(policy: str, largest: int, room: int, learned: int) -> Limits:
    """Return a policy's limits where there is room for so many jobs.

    `largest` is the lane's own bound, `learned` (`knee.size`) is what `adaptive` goes by.
    """
    if policy == "token_budget":
        most = min(room, max(MOST_READ, largest))
        return Limits(most, largest, most)
    if policy == "bucketed":
        most = min(room, largest)
        return Limits(most, largest, max(most, min(WINDOW * most, MOST_READ)))
    full = learned if policy == "adaptive" else largest
    return Limits(min(room, full), full, min(room, full))


def take(policy: str, candidates: Sequence[Queued], most: int, max_tokens: int) -> tuple[list[Queued], str]:
    """Choose up to `most` jobs and `max_tokens`, and whose turn has passed; one too large for any batch goes alone.

    The owner whose turn it is comes first among the candidates, and its oldest job always goes.
    """
    turns = interleave(candidates)
    if policy != "bucketed":
        taken = fill(turns, most, max_tokens)
        return taken, taken[-1].owner
    # The turn passes owner by owner, not behind the last that got something: each is the first in its turn.
    return fill(alike(turns), most, max_tokens), turns[0].owner


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


def fill(ordered: Sequence[Queued], most: int, max_tokens: int) -> list[Queued]:
    """Take jobs from the front, up to `most` and `max_tokens`; a first one that is too large goes alone."""
    taken: list[Queued] = []
    tokens = 0
    for job in ordered:
        if len(taken) == most or (taken and tokens + job.tokens > max_tokens):
            break
        taken.append(job)
        tokens += job.tokens
    return taken


def alike(ordered: Sequence[Queued]) -> list[Queued]:
    """Put behind the first job those that begin like it, then the others by how near their length is.

    All of them: a batch is not cut smaller for want of jobs that are alike. Equals keep their order.
    """
    if not ordered:
        return []
    first, *others = ordered

    def distance(job: Queued) -> tuple[bool, int]:
        return first.prefix == 0 or job.prefix != first.prefix, abs(bucket(job) - bucket(first))

    return [first, *sorted(others, key=distance)]


def bucket(job: Queued) -> int:
    """Return the bucket of a job's length: each holds twice the tokens of the one before."""
    return max(1, job.tokens).bit_length()
