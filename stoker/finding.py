"""What `stoker doctor` finds: one line of how it is, and where it is not well, one line of what to do."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warning", "problem"]
_RANK: dict[Status, int] = {"ok": 0, "warning": 1, "problem": 2}


@dataclass(frozen=True, slots=True)
class Finding:
    """How one thing is. A warning is worth a look; a problem keeps jobs from their end, or soon will."""

    check: str
    status: Status
    says: str
    do: str = ""


def ok(check: str, says: str) -> Finding:
    """Return that a thing is well."""
    return Finding(check, "ok", says)


def warning(check: str, says: str, do: str) -> Finding:
    """Return that a thing is worth a look."""
    return Finding(check, "warning", says, do)


def problem(check: str, says: str, do: str) -> Finding:
    """Return that something is to be done."""
    return Finding(check, "problem", says, do)


def worst(findings: Iterable[Finding]) -> Status:
    """Return the worst status among findings."""
    return max((finding.status for finding in findings), key=_RANK.__getitem__, default="ok")
