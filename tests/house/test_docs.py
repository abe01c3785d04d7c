"""What the documents say is what the code does, and the code is documented."""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from models.states import BATCH, BULK, JOB, Machine

ROOT = Path(__file__).parents[2]
LONGEST = 300
"""Lines of a module (the guide is 250). Tests may be longer: they are lists."""
SOURCES = ("stoker", "webapi", "tasks", "models")


def tracked(*suffixes: str) -> Iterator[Path]:
    """Yield the files that are, or will be, in the repository."""
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    for name in sorted(set(names)):
        path = ROOT / name
        if path.is_file() and (not suffixes or path.suffix in suffixes):
            yield path


def texts() -> Iterator[tuple[str, str]]:
    """Yield (name, text) of every file of text, this one left out."""
    for path in tracked():
        if path == Path(__file__):
            continue
        try:
            yield str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue


def steps_of(machine: Machine) -> set[tuple[str, str]]:
    """Return the steps of a machine, the first one of a new row included."""
    steps = {(state, target) for state, targets in machine.steps.items() for target in targets}
    return steps | {("(new)", state) for state in machine.initial}


def steps_in_the_page(machine: Machine) -> list[tuple[str, str]]:
    """Return the steps in docs/states.md's table of a machine."""
    page = (ROOT / "docs" / "states.md").read_text(encoding="utf-8")
    (section,) = re.findall(rf"^## {machine.name.title()}\n(.*?)(?=^## |\Z)", page, flags=re.MULTILINE | re.DOTALL)
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", section, flags=re.MULTILINE)
    return [(row[0].strip("` "), row[1].strip("` ")) for row in rows if row[0] != "from"]


@pytest.mark.parametrize("machine", [JOB, BATCH, BULK], ids=lambda machine: machine.name)
def test_the_page_of_states_lists_every_step_once(machine: Machine) -> None:
    """docs/states.md has exactly the steps of models/states.py, each with who writes it."""
    listed = steps_in_the_page(machine)
    assert sorted(listed) == sorted(set(listed))
    # A job begins as delayed only when it is submitted for later, which no caller does yet.
    assert set(listed) == steps_of(machine) - {("(new)", "delayed")}


def test_every_function_that_the_page_of_states_names_exists() -> None:
    """A function that is renamed is renamed there too."""
    page = (ROOT / "docs" / "states.md").read_text(encoding="utf-8")
    modules = "jobs|ends|batches|bulks|bulk_leases|cohorts|sending|delivery_log"
    for module, function in set(re.findall(rf"`({modules})\.(\w+)`", page)):
        assert f"def {function}(" in (ROOT / "models" / f"{module}.py").read_text(encoding="utf-8"), function


def test_every_test_says_what_it_holds() -> None:
    """Each has a docstring: the behaviour, as a sentence."""
    silent = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
        for path in tracked(".py")
        if path.is_relative_to(ROOT / "tests")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
        and not ast.get_docstring(node)
    ]
    assert silent == []


def test_nothing_is_left_to_do() -> None:
    """What is not done is an issue, not a note in the code."""
    assert [name for name, text in texts() if re.search(r"\b(TODO|FIXME|XXX)\b", text)] == []


def test_no_file_names_a_machine_or_a_registry() -> None:
    """The repository works on any machine: no path of ours, no host that packages happened to come from."""
    private = re.compile(
        r"(?<![\w.$}])/(work|shared|root)/\w|/home/(?!stoker\b)\w+/|(pypi\.org|pythonhosted\.org|registry\.npmjs)/|://[\w.-]+/simple\b"
    )
    named = [f"{name}: {match.group()}" for name, text in texts() for match in private.finditer(text)]
    assert named == []


def test_no_module_is_too_long() -> None:
    """A module is one noun and its verbs; one that grows beyond a few screens is two."""
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for path in tracked(".py")
        if path.relative_to(ROOT).parts[0] in SOURCES
    }
    assert {name: length for name, length in lengths.items() if length > LONGEST} == {}
