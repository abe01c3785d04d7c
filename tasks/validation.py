"""Validation: one pass over a whole input before any of it runs, for OpenAI batches and dry runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from models import bulk_leases, bulks, census
from models.bulks import BATCH_KIND
from models.db import AnyRow
from tasks.bulk_sources import Taken, rules_of
from tasks.line_jobs import LineError
from tasks.lines import BadInput, Seen
from tasks.tending import Tending

MOST_ERRORS = 100


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with a line (or, without one, with the whole input), as OpenAI's batch errors say it."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None


@dataclass(slots=True)
class Findings:
    """What a pass over an input found; `tokens` is an estimate, `model` that of the first line."""

    lines: int = 0
    valid: int = 0
    tokens: int = 0
    model: str | None = None
    faults: list[Fault] = field(default_factory=list)
    seen: Seen | None = None

    def take(self, taken: Taken) -> None:
        """Count a line."""
        made = taken.made
        if made is None:
            return
        self.lines += 1
        if isinstance(made, LineError):
            if len(self.faults) < MOST_ERRORS:
                self.faults.append(Fault(made.code, made.message, made.param, taken.number))
        else:
            self.valid += 1
            self.tokens += made.tokens
            self.model = self.model or made.model
        if self.seen is not None and made.custom_id is not None:
            self.seen.add(made.custom_id, taken.number)

    def close(self) -> None:
        """Look for what only the whole input shows."""
        if self.lines == 0:
            self.faults.append(Fault("empty_file", "The input file has no lines."))
        for line, first in self.seen.duplicates(MOST_ERRORS) if self.seen is not None else ():
            message = f"Duplicate custom_id: line {first} has the same."
            self.faults.append(Fault("duplicate_custom_id", message, "custom_id", line))
        self.faults = sorted(self.faults, key=lambda fault: fault.line or 0)[:MOST_ERRORS]


def validate(tending: Tending, held: AnyRow) -> None:
    """Read a bulk's whole input: a batch then runs or fails, a dry run ends with a report."""
    if held.errors:  # its file was not there when it was created
        _fail(tending, held, held.errors)
        return
    findings = _read(tending, held)
    if held.dry_run:
        _report(tending, held, findings)
    elif findings.faults:
        _fail(tending, held, [asdict(fault) for fault in findings.faults])
    else:
        with tending.database.transaction() as tx:
            # How many lines there are is known from here on, though they become jobs only bit by bit.
            bulk_leases.move(tx, held, tending.me, "running", model=findings.model, report={"lines": findings.lines})


def _read(tending: Tending, held: AnyRow) -> Findings:
    findings = Findings(seen=Seen() if held.kind == BATCH_KIND else None)
    rules = rules_of(tending.database, held, tending.settings.served_name)
    try:
        for taken in tending.source(held).read(rules):
            findings.take(taken)
    except BadInput as bad:
        if bad.code == "file_not_found":
            findings.faults = [Fault("invalid_request", bad.message, "file_id")]
        else:
            findings.faults.append(Fault(bad.code, bad.message))
    else:
        findings.close()
    return findings


def _fail(tending: Tending, held: AnyRow, errors: list[Mapping[str, Any]] | list[dict[str, Any]]) -> None:
    with tending.database.transaction() as tx:
        row = bulk_leases.move(tx, held, tending.me, "failed", errors=errors)
        bulks.announce(tx, row)
    tending.bell.deliver()


def _report(tending: Tending, held: AnyRow, findings: Findings) -> None:
    with tending.database.reading() as tx:
        pace = census.recent_pace(tx, findings.model) if findings.model else None
    report = {
        "lines": findings.lines,
        "valid": findings.valid,
        "invalid": findings.lines - findings.valid,
        "tokens": findings.tokens,
        "errors": [asdict(fault) for fault in findings.faults],
        "eta": None if not pace else round(findings.valid / pace, 1),
    }
    with tending.database.transaction() as tx:
        row = bulk_leases.move(tx, held, tending.me, "completed", report=report, ingest_done=True)
        bulks.announce(tx, row)
    tending.bell.deliver()
