"""The table of what passed: one line for each test, in the order of the contract, from a run's own results."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from .rows import ROWS

HEAD = "| row | what a server does | result |\n|---|---|---|\n"
BEGIN, END = "<!-- table: begin -->\n", "<!-- table: end -->\n"


@dataclass
class Line:
    """One test: its row, what it says, and how its cases ended."""

    row: str
    says: str
    cases: Counter[str] = field(default_factory=Counter)

    @property
    def result(self) -> str:
        """Return how the test ended: the worst of its cases counts."""
        found = next((outcome for outcome in ("failed", "skipped", "passed") if self.cases[outcome]), "not run")
        many = f" ({self.cases.total()} cases)" if self.cases.total() > 1 else ""
        return {"passed": "passes", "failed": "fails", "skipped": "not asked"}.get(found, found) + many

    def __str__(self) -> str:
        return f"| {ROWS[self.row]} | {self.says} | {self.result} |"


def says(docstring: str | None) -> str:
    """Return what a test holds: its docstring, in one line."""
    return " ".join((docstring or "").split()).replace("|", "\\|")


class Results:
    """Collects the results of a run and writes the table, between its two marks where the file has them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lines: dict[str, Line] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Note each test that belongs to a row."""
        for item in items:
            mark = item.get_closest_marker("row")
            if mark is not None and isinstance(item, pytest.Function):
                self._lines.setdefault(_name(item.nodeid), Line(mark.args[0], says(inspect.getdoc(item.function))))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count how each case ended: a fixture that fails or skips ends it too."""
        line = self._lines.get(_name(report.nodeid))
        if line is not None and (report.when == "call" or report.outcome != "passed"):
            line.cases[report.outcome] += 1

    def pytest_sessionfinish(self) -> None:
        """Write the table."""
        table = "".join(f"{line}\n" for line in self._ordered())
        old = self._path.read_text(encoding="utf-8") if self._path.exists() else BEGIN + END
        before, _, rest = old.partition(BEGIN)
        _, _, after = rest.partition(END)
        self._path.write_text(f"{before}{BEGIN}{HEAD}{table}{END}{after}", encoding="utf-8")

    def _ordered(self) -> Iterator[Line]:
        for row in ROWS:
            yield from (line for line in self._lines.values() if line.row == row)


def _name(nodeid: str) -> str:
    return nodeid.partition("[")[0]
