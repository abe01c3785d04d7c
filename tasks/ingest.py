"""Ingest: the lines of a bulk become jobs, chunk by chunk; each chunk, its place and its counts are one transaction.

A killed ingest goes on behind the last chunk: no line twice (the place is guarded, and so is the line number), none
missing. While a bulk is being cancelled, or when its time has passed, what is left of its lines is accounted for
without ever becoming jobs.

Where as many jobs wait as may, the ingest ends: nobody waits with a thread or a lease for room in the queue. The
sweeper rings, and the ingest goes on when it is worth while.

The next chunk is read while the database takes one: each of the two needs about half of the time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import partial

import sqlalchemy as sa

from models import bulk_leases, bulk_lines
from models.bulk_leases import Step
from models.bulk_lines import EndedLine, NewLine, Rows
from models.bulks import effective_lane
from models.db import AnyRow
from models.failpoints import failpoint
from models.room import FOR_BULKS
from models.states import JOB
from tasks import metrics
from tasks.ahead import ahead
from tasks.bulk_sources import Taken, rules_of
from tasks.line_jobs import LineError, LineJob
from tasks.lines import BadInput
from tasks.tending import Tending
from tasks.validation import Fault

FIRST_CHUNK = 200
"""Lines of the first chunk: the engine need not wait for a large one."""
STORE_EVERY = 2.0
"""Seconds of reading after which a chunk is stored though it is not full: what was read need not be read again."""
_MESSAGES = {
    "cancelled": "The bulk was cancelled before this line was its turn.",
    "expired": "The bulk expired before this line was its turn.",
}


@dataclass(slots=True)
class _Chunk:
    """Lines that are stored together, and the place behind them."""

    offset: int
    line: int
    jobs: list[NewLine] = field(default_factory=list)
    ended: list[EndedLine] = field(default_factory=list)
    size: int = 0
    tokens: int = 0
    rows: Rows | None = None

    def __len__(self) -> int:
        return len(self.jobs) + len(self.ended)

    def take(self, taken: Taken) -> None:
        """Add a line, as a job if it is one; of blank lines only the place behind them."""
        made = taken.made
        self.offset, self.line = taken.end, taken.last
        if isinstance(made, LineError):
            self.ended.append(EndedLine(taken.number, made.custom_id, "failed", made.code, made.message))
        elif made is not None:
            self.jobs.append(_new_line(taken.number, made))
            self.size += len(made.body)
            self.tokens += made.tokens

    def end(self, state: str) -> None:
        """Let no line become a job any more: each ends in this state."""
        self.ended += [EndedLine(job.number, job.custom_id, state, state, _MESSAGES[state]) for job in self.jobs]
        self.jobs, self.rows, self.tokens = [], None, 0


def _new_line(number: int, job: LineJob) -> NewLine:
    return NewLine(number, job.custom_id, job.model, job.endpoint, job.body, job.tokens, job.columns, job.prefix)


def ingest(tending: Tending, held: AnyRow) -> None:
    """Bring in what is left of a bulk's lines.

    Raises Superseded when the bulk changes meanwhile (look again), and QueueFull when the rest has to wait.
    """
    _Ingest(tending, held).run()


def has_room(tending: Tending, row: AnyRow) -> bool:
    """Tell whether there is room to go on with a bulk's lines, or they need none since they are to end at once."""
    return _end_as(row) is not None or tending.room.enough(row.owner, FOR_BULKS)


def _end_as(row: AnyRow) -> str | None:
    """Return how lines end that are stored only now, None while they are still to run."""
    if row.state == "cancelling":
        return "cancelled"
    return "expired" if bulk_leases.expired(row) else None


class _Ingest:
    def __init__(self, tending: Tending, held: AnyRow) -> None:
        self._tending = tending
        self._held = held
        self._clock: float = held.clock

    def run(self) -> None:
        """Read and store until the input ends."""
        problem: BadInput | None = None
        with closing(ahead(self._chunks())) as chunks:
            try:
                for chunk in chunks:
                    self._store(chunk)
            except BadInput as bad:
                problem = bad
        self._close(problem)

    def _chunks(self) -> Iterator[_Chunk]:
        """Yield the lines that are left, ready to be stored. Raises BadInput behind those that can be read."""
        lane = effective_lane(self._held)  # if that changes, no other chunk is stored
        for chunk in self._read():
            held = self._held
            # The clock of the chunk before; each line has its own microsecond, which is its place in the queue.
            self._clock = max(held.clock, self._clock)
            if chunk.jobs:
                chunk.rows = bulk_lines.rows(self._tending.database.dialect, held, lane, chunk.jobs, self._clock)
            self._clock += len(chunk) / 1e6
            yield chunk

    def _read(self) -> Iterator[_Chunk]:
        """Yield the lines that are left in chunks, the last one with the place behind the whole input."""
        tending, held = self._tending, self._held
        rules = rules_of(tending.database, held, tending.settings.served_name)
        source = tending.source(held)
        chunk = _Chunk(held.offset, held.line)
        began = time.monotonic()
        most, tokens = self._fitting(FIRST_CHUNK if held.line == 0 else tending.chunk_lines)
        try:
            for taken in source.read(rules, held.offset, held.line):
                chunk.take(taken)
                full = len(chunk) >= most or chunk.size >= tending.chunk_bytes or chunk.tokens >= tokens
                if full or time.monotonic() - began > STORE_EVERY:
                    yield chunk
                    chunk, began = _Chunk(chunk.offset, chunk.line), time.monotonic()
                    most, tokens = self._fitting(tending.chunk_lines)
        except BadInput:
            yield chunk
            raise
        chunk.offset, chunk.line = max(chunk.offset, source.offset), max(chunk.line, source.number)
        yield chunk

    def _fitting(self, most: int) -> tuple[int, float]:
        """Return how many lines and tokens the next chunk may have: what there is room for, and one where is none.

        That one, if it becomes a job, is refused when it is to be stored: a line that cannot be read needs no room.
        """
        if _end_as(self._held):
            return most, math.inf
        room, owner = self._tending.room, self._held.owner
        return max(1, min(most, room.left(owner, FOR_BULKS))), max(1, room.tokens_left(owner, FOR_BULKS))

    def _store(self, chunk: _Chunk) -> None:
        self._tending.check()
        if (end_as := _end_as(self._held)) is not None:
            chunk.end(end_as)
        started = time.monotonic()
        with self._tending.room.place(self._held.owner, len(chunk.jobs), FOR_BULKS, tokens=chunk.tokens):
            self._held = self._tending.database.retrying(partial(self._write, chunk=chunk))
        failpoint("ingest.committed")
        metrics.lines_ingested.labels("job").inc(len(chunk.jobs))
        metrics.lines_ingested.labels("ended").inc(len(chunk.ended))
        for model in {line.model for line in chunk.jobs}:
            self._tending.bell.collector(model)
        self._tending.pause(time.monotonic() - started)

    def _write(self, tx: sa.Connection, chunk: _Chunk) -> AnyRow:
        tending, held = self._tending, self._held
        if chunk.rows is not None:
            bulk_lines.insert(tx, chunk.rows)
        step = Step(chunk.offset, chunk.line, len(chunk.jobs), len(chunk.ended))
        after = bulk_leases.advance(tx, held, tending.me, tending.lease, step)
        bulk_lines.end_unread(tx, held.id, chunk.ended)
        return after

    def _close(self, problem: BadInput | None) -> None:
        """Say that all lines are there, or why no more can be read."""
        values: dict[str, object] = {"ingest_done": True}
        if problem is None and self._held.total == 0:
            problem = BadInput("empty_file", "The input has no lines.")
        if problem is not None:
            values["errors"] = [*(self._held.errors or []), asdict(Fault(problem.code, problem.message))]
        with self._tending.database.transaction() as tx:
            bulk_leases.change(tx, self._held, self._tending.me, **values)


def end_open(tending: Tending, held: AnyRow, to: str) -> None:
    """Bring a bulk's open jobs to an end state, slice by slice, the front of the queue first."""
    assert to in JOB.final  # noqa: S101  # a programming error

    def end(tx: sa.Connection, behind: int) -> tuple[int, Sequence[str]] | None:
        return bulk_lines.end_slice(tx, held.id, to, behind, tending.slice_lines)

    for ids in _by_slices(tending, held, end):
        tending.bell.ended(ids)


def relane(tending: Tending, held: AnyRow) -> None:
    """Put a bulk's waiting jobs into the lane that its owner chose, or aside while it is paused; slice by slice."""
    lane = effective_lane(held)

    def put(tx: sa.Connection, behind: int) -> tuple[int, Sequence[str]] | None:
        last = bulk_lines.relane_slice(tx, held.id, lane, behind, tending.slice_lines)
        return None if last is None else (last, ())

    for _ in _by_slices(tending, held, put):
        pass
    with tending.database.transaction() as tx:
        bulk_leases.change(tx, held, tending.me, lane_applied=lane)
    if held.model:
        tending.bell.collector(held.model)


def _by_slices(
    tending: Tending, held: AnyRow, change: Callable[[sa.Connection, int], tuple[int, Sequence[str]] | None]
) -> Iterator[Sequence[str]]:
    """Change a bulk's jobs in slices, in the order of the lines; `change` returns the last line and the ids, or None.

    Each slice is fenced: it counts only while the bulk is still ours and in the same state.
    """
    behind = 0
    while True:
        tending.check()
        started = time.monotonic()

        def work(tx: sa.Connection, after: int = behind) -> tuple[int, Sequence[str]] | None:
            changed = change(tx, after)
            bulk_leases.renew(tx, held, tending.me, tending.lease)
            return changed

        changed = tending.database.retrying(work)
        if changed is None:
            return
        behind, ids = changed
        yield ids
        tending.pause(time.monotonic() - started)
