"""The command line: help that shows how, one line for what is wrong, and a status that scripts can trust."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner, Result

from models import keys
from models.db import Database
from stoker import console
from stoker.cli import app
from stoker.processes import Ledger, Recorded
from tasks.proc import look


def stoker(*arguments: str, **environment: str) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(app, list(arguments), env=environment, catch_exceptions=False)


def test_help_comes_fast() -> None:
    """Nothing heavy is imported before it is needed."""
    heavy = "('sqlalchemy', 'celery', 'httpx', 'rich', 'torch')"
    script = f"import sys; import stoker.cli; print([name for name in {heavy} if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_a_bad_setting_is_one_line_that_names_it(tmp_path: Path) -> None:
    """Status 2, the variable and what is allowed, on the standard error."""
    result = stoker("up", "--data", str(tmp_path), STOKER_LEASE="soon")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("stoker: STOKER_LEASE: ")
    assert result.stderr.count("\n") == 1


def test_a_start_that_fails_is_one_line(tmp_path: Path) -> None:
    """Status 1 and the reason, no traceback, no colour where there is no terminal."""
    result = stoker("up", "--data", str(tmp_path), "--model", "/not/there", "--port", "0")
    assert result.exit_code == 1
    assert result.stderr == "stoker: STOKER_MODEL: there is no folder /not/there\n"


@pytest.mark.parametrize("number", [errno.EIO, errno.EPIPE, errno.ENOSPC])
def test_a_line_that_cannot_be_printed_ends_nothing(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The terminal is lost, the reader gone or the disk full: progress is told to nobody, and nothing is raised."""

    class Gone(io.StringIO):
        def flush(self) -> None:
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr("sys.stdout", Gone())
    console.tell("web: ready")
    console.give_up_output()


def test_what_could_not_be_printed_does_not_change_the_status() -> None:
    """With both outputs gone the command ends with its own status, not with Python's 120."""
    script = (
        "import sys; from stoker.console import fail, tell; sys.stdin.readline(); tell('x'); fail('no such model', 78)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", f"import typer\ntry:\n    {script}\nexcept typer.Exit as e:\n    sys.exit(e.exit_code)"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        assert process.stdout is not None
        process.stdout.close()
        process.communicate(b"\n")
    assert process.returncode == 78


def test_ps_lists_only_what_lives(tmp_path: Path) -> None:
    """Processes that were written down and are gone, or whose pid is another's now, are not listed."""
    mine = look(os.getpid())
    assert mine is not None
    (tmp_path / "run").mkdir()
    dead = Recorded("web", mine.pid, mine.start + 1)
    Ledger(tmp_path / "run/processes.json").write([Recorded("engine", mine.pid, mine.start), dead])
    shown = stoker("ps", "--json", "--data", str(tmp_path))
    assert json.loads(shown.stdout) == [{"name": "engine", "pid": os.getpid()}]
    assert stoker("ps", STOKER_DATA=str(tmp_path)).stdout.split() == [str(os.getpid()), "engine"]


def test_ps_of_an_unused_folder_is_empty(tmp_path: Path) -> None:
    """No service was ever there: an empty list."""
    assert json.loads(stoker("ps", "--json", "--data", str(tmp_path)).stdout) == []


def test_a_key_is_printed_once_and_valid(sqlite_database: Database, sqlite_url: str) -> None:
    """The printed key is the owner's from then on."""
    made = stoker("keys", "create", "--owner", "alice", "--database-url", sqlite_url)
    assert made.exit_code == 0
    with sqlite_database.reading() as tx:
        assert keys.find(tx, made.stdout.strip()).owner == "alice"


def test_a_key_needs_the_tables(tmp_path: Path) -> None:
    """On an empty database the command says what to run first."""
    made = stoker("keys", "create", "--owner", "alice", "--data", str(tmp_path))
    assert made.exit_code == 1
    assert "stoker db upgrade" in made.stderr


def test_the_database_is_checked_and_upgraded(tmp_path: Path) -> None:
    """`db check` fails before `db upgrade`, and passes after it, also after a second one."""
    folder = ("--data", str(tmp_path))
    assert stoker("db", "check", *folder).exit_code == 1
    assert stoker("db", "upgrade", *folder).exit_code == 0
    assert stoker("db", "upgrade", *folder).exit_code == 0
    assert stoker("db", "check", *folder).exit_code == 0


def test_a_database_that_is_away_is_one_line() -> None:
    """Status 1 and the reason."""
    result = stoker("db", "check", STOKER_DATABASE_URL="postgresql://stoker:secret@127.0.0.1:1/none")
    assert result.exit_code == 1
    assert result.stderr.startswith("stoker: ")
    assert result.stderr.count("\n") == 1
    assert "secret" not in result.stderr


def test_a_webhook_secret_is_new_each_time() -> None:
    """In the form that STOKER_WEBHOOK_SECRET takes."""
    first, second = (stoker("keys", "webhook-secret").stdout.strip() for _ in range(2))
    assert first != second
    assert first.startswith("whsec_")


AWAY = [
    ("submit", "hello"),
    ("status", "job_1"),
    ("cancel", "job_1"),
    ("bulk", "list"),
    ("top", "--once"),
    ("batch", "status", "batch_1", "--json"),
]


@pytest.mark.parametrize("command", AWAY)
def test_a_service_that_is_away_is_one_line(command: tuple[str, ...]) -> None:
    """Nobody listens there: the address and what happened, status 1."""
    result = stoker(*command, STOKER_URL="http://127.0.0.1:1")
    assert result.exit_code == 1
    assert result.stderr.startswith("stoker: http://127.0.0.1:1 does not answer")
    assert result.stderr.count("\n") == 1


def test_the_health_of_an_unknown_part_is_refused() -> None:
    """The parts that there are, are named."""
    result = stoker("health", "kettle")
    assert result.exit_code == 2
    assert "web, collector, worker, bulk, engine, beat" in result.stderr


def test_every_command_that_speaks_http_prints_json() -> None:
    """`--json` is there wherever a script may want to read what is printed."""
    root = get_command(app).commands  # type: ignore[attr-defined]
    commands = [root[name] for name in ("submit", "status", "cancel", "ps")]
    commands += [*root["bulk"].commands.values(), *root["batch"].commands.values(), root["keys"].commands["create"]]
    assert [one.name for one in commands if "--json" not in {opt for param in one.params for opt in param.opts}] == []


@pytest.mark.parametrize(
    "url", ["http://", "nonsense", "127.0.0.1:8000", "ftp://127.0.0.1", "http://127.0.0.1:port", "http://\x01"]
)
def test_an_address_that_is_none_is_one_line(url: str) -> None:
    """Wrong use, status 2, and the address."""
    result = stoker("status", "job_1", STOKER_URL=url)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"stoker: {console.word(url)} ")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("part", ["web", "collector", "beat", "engine", "worker"])
def test_a_part_that_does_nothing_is_unhealthy(part: str, sqlite_url: str) -> None:
    """Nothing runs: every healthcheck fails and says why."""
    result = stoker(
        "health", part, STOKER_DATABASE_URL=sqlite_url, STOKER_PORT="1", STOKER_REDIS_URL="redis://127.0.0.1:1/0"
    )
    assert result.exit_code == 1
    assert result.stderr.startswith("stoker: ")
