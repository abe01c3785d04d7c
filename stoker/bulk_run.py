"""`stoker bulk run`: upload, follow, write down what comes; cut off at any point, the same command goes on there.

The state is on the disk before the upload begins, with the Idempotency-Key of it: an upload that is repeated makes no
second bulk. Results are read behind the last whole line of the output, so that none comes twice and none is left out.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stoker.api_errors import StokerAPIError
from stoker.calls import get_bulk
from stoker.client import Client
from stoker.progress import Display
from stoker.resources import Bulk
from stoker.result_pages import Results
from stoker.run_state import SUFFIX, Mark, Output, RunError, RunState, load
from stoker.steps import wait_ended
from stoker.transfers import Progress

LOOK_EVERY = 2.0
PATIENCE = 300.0
"""Seconds that a run goes on while the service is away."""

Start = Callable[[str, Progress], Bulk]
"""Start the bulk under an Idempotency-Key, and tell of its upload."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run is to do. `source` and `params` tell it from another run with the same output."""

    source: Mapping[str, Any]
    params: Mapping[str, Any]
    start: Start
    output: Path
    errors: Path
    format: str = "jsonl"

    @property
    def state(self) -> Path:
        """Return where the run's state is kept."""
        return self.output.with_name(f"{self.output.name}{SUFFIX}")


class BulkRun:
    """One run of a plan: a new one, or the rest of an earlier one."""

    def __init__(self, client: Client, url: str, plan: Plan, display: Display) -> None:
        self._client = client
        self._plan = plan
        self._display = display
        self._state = _state_of(plan, url)
        self._results = Output(plan.output, self._state.results)
        self._errors = Output(plan.errors, self._state.errors)

    @property
    def bulk_id(self) -> str:
        """Return the bulk's id, empty until it is known."""
        return self._state.bulk_id

    def run(self) -> Bulk:
        """Do what is left of the plan and return the bulk, which has ended; everything of it is then written down."""
        with self._display, self._results, self._errors:
            if not self._state.bulk_id:
                self._start()
            bulk = self._follow()
            if self._plan.format != "jsonl":
                self._client.download_results(bulk.id, self._plan.output, format=self._plan.format)
        self._check(bulk)
        return bulk

    def finish(self) -> None:
        """Forget the run: nothing of it is left to do."""
        self._plan.state.unlink(missing_ok=True)

    def save(self) -> None:
        """Write down how far it is; what was read until then is on the disk before."""
        self._state.results, self._state.errors = self._results.settle(), self._errors.settle()
        self._state.save(self._plan.state)

    def _start(self) -> None:
        self.save()
        try:
            bulk = self._plan.start(self._state.key, self._display.sent)
        except StokerAPIError as error:
            if not error.temporary:
                # Refused for good: the next try is a new one, of whatever will be changed by then.
                self.finish()
            raise
        self._state.bulk_id = bulk.id
        self.save()

    def _follow(self) -> Bulk:
        errors = self._reader(self._errors.mark, errors=True)
        results = self._reader(self._results.mark) if self._plan.format == "jsonl" else None

        def looked(bulk: Bulk) -> None:
            self._display.look(bulk)
            # The state was asked for first: what has ended by then has its results by now.
            self._drain(errors, self._errors, whole=bulk.ended)
            if results:
                self._drain(results, self._results, whole=bulk.ended)
            self.save()

        return self._client.perform(wait_ended(get_bulk(self._state.bulk_id), None, looked, PATIENCE))

    def _reader(self, mark: Mark, *, errors: bool = False) -> Results:
        return Results(self._state.bulk_id, after=mark.seq, errors=errors, patience=PATIENCE)

    def _drain(self, reader: Results, output: Output, *, whole: bool) -> None:
        """Write down what there is to read: all of it, or as much as comes until the next look is due."""
        until = time.monotonic() + LOOK_EVERY
        reader.follow = whole
        while lines := self._client.perform(reader.page()):
            output.append(lines)
            if reader.ended or (not whole and time.monotonic() >= until):
                break

    def _check(self, bulk: Bulk) -> None:
        """Make sure that what was written down is what the service counted."""
        counts = bulk.counts
        wanted, found = counts.done - counts.succeeded, self._errors.mark.lines
        if self._plan.format == "jsonl":
            wanted, found = counts.done, found + self._results.mark.lines
        if wanted != found:
            raise RunError(f"{bulk.id} has {wanted} results, but {found} came: run the command again, or begin anew")


def _state_of(plan: Plan, url: str) -> RunState:
    """Return the state of the earlier run that this one goes on with, or that of a new one."""
    state = load(plan.state)
    if state is None:
        for path in (plan.output, plan.errors):
            if path.exists():
                raise RunError(f"{path} exists: remove it, or choose another output")
        return RunState(url, str(uuid.uuid4()), plan.source, plan.params)
    if (state.source, state.params) != (plan.source, plan.params):
        what = "other parameters" if state.source == plan.source else "another input"
        raise RunError(f"{plan.state} is of a run with {what}: remove it to begin anew")
    state.url = url
    return state
