"""Which state follows which: the machines of job, batch and bulk, pure.

```
job      new ──> queued <──> delayed
                  │ ^ ^        ^
          gather  v │ │ batch  │ settle Deferred
                 batched ──┐   │
          claim   │        │ returned
                  v        v   │
                 running ──> queued (returned, crashed, lost)
                  │
                  └─> succeeded  failed       any open ─> cancelled  expired

batch    new ─> ready ─> running ─> finished   nothing open left
                  │         ├─────> returned   drained, never charged to its jobs
                  │         ├─────> crashed    the engine failed, hung, or its process is known to have died
                  └──> returned └─> lost       the lease ran out

bulk     new ─> validating ─> running ─> finalizing ─> completed  expired  failed (its input broke off)
                  │ │ │         │
                  │ │ └─────────┴──────> cancelling ─> cancelled  failed (stopped: too many lines failed)
                  │ └─> completed   a dry run
                  └───> failed      nothing in it can be run
```

End states have no exits. `models/jobs.py`, `models/batches.py` and `models/bulks.py` hold the one function each that
writes a state.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Machine:
    """The states of one kind of row and the steps between them."""

    name: str
    steps: Mapping[str, frozenset[str]]
    initial: frozenset[str]

    @property
    def states(self) -> frozenset[str]:
        """Return every state."""
        return frozenset(self.steps)

    @property
    def final(self) -> frozenset[str]:
        """Return the states that nothing leaves."""
        return frozenset(state for state, targets in self.steps.items() if not targets)

    @property
    def open(self) -> frozenset[str]:
        """Return the states that something leaves."""
        return self.states - self.final

    def sources(self, target: str) -> frozenset[str]:
        """Return the states from which `target` may be reached.

        Raises ValueError for a state that this machine does not have.
        """
        if target not in self.steps:
            msg = f"a {self.name} has no state {target!r}"
            raise ValueError(msg)
        return frozenset(state for state, targets in self.steps.items() if target in targets)


_ENDS = frozenset({"cancelled", "expired"})
_NOTHING: frozenset[str] = frozenset()

JOB = Machine(
    "job",
    {
        "queued": frozenset({"batched"}) | _ENDS,
        "delayed": frozenset({"queued"}) | _ENDS,
        "batched": frozenset({"running", "queued"}) | _ENDS,
        "running": frozenset({"succeeded", "failed", "delayed", "queued"}) | _ENDS,
        "succeeded": _NOTHING,
        "failed": _NOTHING,
        "cancelled": _NOTHING,
        "expired": _NOTHING,
    },
    initial=frozenset({"queued", "delayed"}),
)

BATCH = Machine(
    "batch",
    {
        "ready": frozenset({"running", "returned"}),
        "running": frozenset({"finished", "returned", "crashed", "lost"}),
        "finished": _NOTHING,
        "returned": _NOTHING,
        "crashed": _NOTHING,
        "lost": _NOTHING,
    },
    initial=frozenset({"ready"}),
)

BULK = Machine(
    "bulk",
    {
        "validating": frozenset({"running", "failed", "cancelling", "completed"}),
        "running": frozenset({"finalizing", "cancelling"}),
        "finalizing": frozenset({"completed", "expired", "failed"}),
        "cancelling": frozenset({"cancelled", "failed"}),
        "completed": _NOTHING,
        "failed": _NOTHING,
        "expired": _NOTHING,
        "cancelled": _NOTHING,
    },
    initial=frozenset({"validating"}),
)
