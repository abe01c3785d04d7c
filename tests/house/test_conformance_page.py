"""docs/conformance.md is what the conformance suite tests, and every row of the contract is tested."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.conformance.rows import ROWS
from tests.conformance.table import says

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "conformance.md").read_text(encoding="utf-8")


def held() -> Iterator[tuple[str, str]]:
    """Yield (row, what it says) of each test of the suite."""
    for path in sorted((ROOT / "tests" / "conformance").glob("test_*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                (row,) = re.findall(
                    r"^row\('([\w.]+)'\)$", "\n".join(map(ast.unparse, node.decorator_list)), re.MULTILINE
                )
                yield row, says(ast.get_docstring(node))


def listed() -> list[tuple[str, str, str]]:
    """Return the lines of the page's table."""
    lines = re.findall(r"^\| (.+) \| (.+) \| (.+) \|$", PAGE, flags=re.MULTILINE)
    return [line for line in lines if line[0] in ROWS.values()]


def test_the_page_lists_every_test_once() -> None:
    """Each test of the suite is a line of the table, under its row."""
    assert sorted((row, text) for row, text, _ in listed()) == sorted((ROWS[row], text) for row, text in held())


def test_every_row_is_tested() -> None:
    """No row of the contract is without a test, and the page shows them in its order."""
    assert {row for row, _ in held()} == set(ROWS)
    assert list(dict.fromkeys(row for row, _, _ in listed())) == list(ROWS.values())


def test_the_page_shows_a_whole_run() -> None:
    """The table was written by a run of everything, of which nothing failed."""
    assert {result.partition(" (")[0] for _, _, result in listed()} == {"passes"}


def test_the_suite_stands_alone() -> None:
    """Others can copy the folder: it imports nothing of ours, and nothing but httpx and pytest."""
    allowed = {"httpx", "pytest"} | sys.stdlib_module_names
    for path in (ROOT / "tests" / "conformance").glob("*.py"):
        roots = set(re.findall(r"^(?:from|import) (\w+)", path.read_text(encoding="utf-8"), flags=re.MULTILINE))
        assert roots <= allowed, path.name
