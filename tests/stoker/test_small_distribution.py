"""The small distribution: the client and its command line alone, and nothing of the service comes with it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.timeout(300)

ROOT = Path(__file__).parents[2]
CLIENT = ROOT / "client"
OF_THE_SERVICE = [
    "aiohttp",
    "alembic",
    "celery",
    "flask",
    "gunicorn",
    "kombu",
    "msgspec",
    "obstore",
    "prometheus_client",
    "pydantic_settings",
    "redis",
    "sqlalchemy",
    "standardwebhooks",
    "structlog",
    "tenacity",
    "tokenizers",
]
"""Not pydantic: typer stands on it. The client alone does not, see below."""
BLOCKED = f"""
import importlib.abc, sys

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {OF_THE_SERVICE!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Refuse())
sys.path[:] = [p for p in sys.path if p not in ("", {str(ROOT)!r})]
sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in f"{{f!r}}"]
"""


@pytest.fixture(scope="module")
def project() -> dict[str, object]:
    """Read the small distribution's pyproject.toml."""
    return tomllib.loads((CLIENT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the wheel, built as `pip wheel ./client` builds it."""
    return built(CLIENT, tmp_path_factory.mktemp("wheel"), "wheel")


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder that holds what the wheel holds."""
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def built(source: Path, folder: Path, target: str) -> Path:
    """Build a distribution and return its file."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(folder)]
    subprocess.run(command, cwd=source, capture_output=True, check=True)
    (found,) = folder.iterdir()
    return found


def contents(wheel: Path) -> dict[str, bytes]:
    """Return what a wheel holds, but for its own books: only one of the two ways finds the licence's name."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist() if not name.endswith(("METADATA", "RECORD"))}


def alone(installed: Path, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a script where only the wheel and what it depends on can be imported."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(
        [sys.executable, "-c", f"{BLOCKED}\nsys.path.insert(0, {str(installed)!r})\n{script}", *arguments],
        cwd=installed,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def stoker(installed: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run its command line."""
    return alone(installed, "import sys\nfrom stoker.cli import app\napp(prog_name='stoker')", *arguments)


def test_it_holds_the_listed_modules_and_nothing_else(wheel: Path, project: dict[str, object]) -> None:
    """The modules of its list, the marker of types, the licence, and the command `stoker`."""
    modules = project["tool"]["hatch"]["build"]["hooks"]["custom"]["modules"]  # type: ignore[index]
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        (entry,) = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
        assert "stoker = stoker.cli:app" in archive.read(entry).decode()
        assert any(name.endswith("licenses/LICENSE") for name in archive.namelist())
    assert names == {f"stoker/{name}.py" for name in modules} | {"stoker/py.typed"}


def test_a_source_archive_makes_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    """Built by way of the source archive, as publishing tools do, it has the same files to the byte."""
    archive = built(CLIENT, tmp_path / "sdist", "sdist")
    subprocess.run(["tar", "xzf", str(archive), "-C", str(tmp_path)], check=True)
    again = built(tmp_path / archive.name.removesuffix(".tar.gz"), tmp_path / "again", "wheel")
    assert contents(again) == contents(wheel)


def test_it_has_the_services_version_and_dependencies(project: dict[str, object]) -> None:
    """Same version, same command; httpx, and typer and rich for the command line, as the service asks for them."""
    service = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    mine = project["project"]
    assert isinstance(mine, dict)
    assert (mine["version"], mine["scripts"]) == (service["version"], service["scripts"])
    assert set(mine["dependencies"]) <= set(service["dependencies"])
    assert {re.split(r"\W", requirement)[0] for requirement in mine["dependencies"]} == {"httpx", "rich", "typer"}


def test_every_module_imports_without_the_service(installed: Path, project: dict[str, object]) -> None:
    """Each module of it, and each name of `from stoker import ...`."""
    modules = project["tool"]["hatch"]["build"]["hooks"]["custom"]["modules"]  # type: ignore[index]
    lines = [f"import stoker.{name}" for name in modules if name != "__init__"]
    ran = alone(installed, "\n".join([*lines, "from stoker import *", "print(stoker.__file__, Client, AsyncClient)"]))
    assert ran.returncode == 0, ran.stderr
    assert str(installed) in ran.stdout


def test_the_client_alone_needs_only_httpx(installed: Path) -> None:
    """`from stoker import Client` imports neither typer nor pydantic, let alone anything of the service."""
    heavy = [*OF_THE_SERVICE, "pydantic", "typer"]
    script = (
        "from stoker import AsyncClient, Bulk, Client, Job, StokerAPIError, verify_webhook\n"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    ran = alone(installed, script)
    assert ran.stdout.strip() == "[]", ran.stderr


@pytest.mark.parametrize("module", ["stoker", "stoker.settings"])
def test_the_service_does_not_import_the_client(module: str) -> None:
    """`import stoker` stays cheap: the service's processes read their settings without httpx."""
    script = f"import sys, {module}; print([name for name in ('httpx', 'stoker.client') if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


@pytest.mark.parametrize("command", [(), ("bulk",), ("bulk", "run"), ("batch",), ("submit",)])
def test_its_command_line_explains_itself(installed: Path, command: tuple[str, ...]) -> None:
    """`stoker --help`, and that of each command that speaks HTTP."""
    ran = stoker(installed, *command, "--help")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("Usage: stoker")


def test_its_commands_run(installed: Path, tmp_path: Path) -> None:
    """They get as far as the service: here, to one that is not there."""
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "hi"}\n')
    for command in (("status", "job_1"), ("bulk", "run", str(prompts)), ("batch", "list")):
        ran = stoker(installed, *command, "--url", "http://127.0.0.1:1")
        assert ran.returncode == 1, ran.stderr
        assert "stoker: http://127.0.0.1:1 does not answer" in ran.stderr


@pytest.mark.parametrize(
    "command", [("up",), ("ps",), ("health", "web"), ("demo",), ("keys", "create", "--owner", "a")]
)
def test_what_needs_the_service_says_so(installed: Path, command: tuple[str, ...]) -> None:
    """One line that names the package to install, status 2, no traceback."""
    ran = stoker(installed, *command)
    assert ran.returncode == 2
    assert ran.stderr.count("\n") == 1
    assert "pip install ." in ran.stderr
