"""What the command line says of itself: examples, statuses, completion, the reference; and where it has colours."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, get_args

import pytest
from typer.main import get_command
from typer.testing import CliRunner, Result

from models import event_types
from models.keys import SCOPES
from models.states import BULK, JOB
from stoker import cli_completion, cli_http, cli_keys, cli_reference, cli_webhooks, console
from stoker.cli import app
from tests.command_lines import read
from tests.debian import programs
from webapi.schemas import Lane

DOCS = Path(__file__).parents[2] / "docs"
ROOT: Any = get_command(app)
COMMANDS = list(cli_reference.commands())
NAMES = [" ".join(path) for path, _ in COMMANDS]
OFFLINE = {"up", "engine", "ps", "health", "demo", "doctor", "restart", "keys", "db", "completion"}


def stoker(*arguments: str, **environment: str) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(app, list(arguments), env=environment, catch_exceptions=False)


@pytest.mark.parametrize(("path", "command"), COMMANDS, ids=NAMES)
def test_every_command_shows_examples_that_it_understands(path: tuple[str, ...], command: Any) -> None:
    """Its help has an example of itself, unbroken; every command, option and value in it is one that there is."""
    examples = cli_reference.examples_of(command)
    told = stoker(*path, "--help")
    assert told.exit_code == 0
    assert all(f"  {line}\n" in f"{told.stdout}\n" for line in examples)
    shown = [stage for line in examples for stage in read(line).stages if stage.words[0] == "stoker"]
    assert any(tuple(stage.words[1 : 1 + len(path)]) == path for stage in shown)
    for stage in shown:
        found = ROOT
        words = list(stage.words[1:])
        while hasattr(found, "commands"):
            found = found.commands[words.pop(0)]
        found.make_context("stoker", words)  # raises for an option or a value that there is not


def test_the_lists_of_commands_are_whole() -> None:
    """What is said of a command in a list is a whole sentence, also at 80 columns."""
    groups = [(), *{path[:-1] for path, _ in COMMANDS if len(path) > 1}]
    lists = [stoker(*group, "--help", COLUMNS="80").stdout.partition("Commands:")[2] for group in groups]
    assert len(lists) == 7
    assert [text for text in lists if "..." in text or not text] == []


@pytest.mark.parametrize(("path", "command"), COMMANDS, ids=NAMES)
def test_wrong_use_is_status_2_everywhere(path: tuple[str, ...], command: Any) -> None:
    """An option that there is not: nothing is done, and the status is that of the table."""
    result = stoker(*path, "--no-such-option")
    assert result.exit_code == 2
    assert "--no-such-option" in result.stderr


@pytest.fixture(scope="module")
def refusing() -> Iterator[str]:
    """Return the address of a service that refuses whatever it is asked."""

    class Handler(BaseHTTPRequestHandler):
        def handle_one_request(self) -> None:
            super().handle_one_request()
            self.close_connection = True

        def refuse(self) -> None:
            if size := int(self.headers.get("Content-Length", 0)):
                self.rfile.read(size)
            body = b'{"detail": "This key may not.", "code": "forbidden"}'
            self.send_response(403)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_PATCH = do_DELETE = refuse  # noqa: N815  # http.server's names

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


NEEDS = {"webhooks create": "http://127.0.0.1:1/hook --event job.failed", "webhooks redeliver": "whd_1"}
"""What a command needs besides its arguments that are always needed."""


@pytest.mark.parametrize(
    ("path", "command"),
    [(path, command) for path, command in COMMANDS if path[0] not in OFFLINE],
    ids=[name for name in NAMES if name.split()[0] not in OFFLINE],
)
def test_a_refusal_is_status_1_everywhere(path: tuple[str, ...], command: Any, refusing: str, tmp_path: Path) -> None:
    """Whatever is asked: what the service says, in a line that is the last on the standard error, and nothing else."""
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "hi"}\n')
    words = [str(prompts) if param.metavar == "INPUT" else "standard" for param in command.params if param.required]
    words = NEEDS[" ".join(path)].split() if " ".join(path) in NEEDS else words
    result = stoker(*path, *words, STOKER_URL=refusing)
    assert (result.exit_code, result.stdout) == (1, ""), result.output
    assert result.stderr.splitlines()[-1] == "stoker: This key may not."


def test_every_status_is_in_the_table_and_in_the_help() -> None:
    """No command ends with a number that is told nowhere."""
    sources = Path(console.__file__).parent.glob("*.py")
    texts = "".join(path.read_text() for path in sources)
    used = {
        int(number)
        for number in re.findall(r"\bfail\([^\n]*, (\d+)\)|\bExit\((\d+)\)", texts)
        for number in number
        if number
    }
    assert used | {cli_http.SOME_FAILED, cli_http.INTERRUPTED, 78} <= console.STATUSES.keys()
    told = stoker("--help").stdout
    assert [status for status, means in console.STATUSES.items() if f"{status:>3}  {means}" not in told] == []


def test_the_reference_is_what_the_code_says() -> None:
    """docs/cli*.md have every command, option, example and status: `make docs` writes them anew."""
    pages = cli_reference.pages()
    assert {path.name for path in DOCS.glob("cli*.md")} - {"client.md"} == pages.keys()
    stale = [name for name, text in pages.items() if (DOCS / name).read_text("utf-8") != text]
    assert stale == [], "run `make docs`"
    assert max(len(text.splitlines()) for text in pages.values()) <= 300


def test_words_that_are_completed_are_those_that_there_are() -> None:
    """Lanes, states, events and scopes are written down twice: the client alone has nothing of the service."""
    assert set(get_args(cli_http.Lane)) == set(get_args(Lane))
    assert set(get_args(cli_http.JobState)) == JOB.states
    assert set(get_args(cli_http.BulkState)) == BULK.states
    assert set(cli_webhooks.EVENTS("")) == set(event_types.ALL)
    assert {word for text in cli_keys._SCOPES("") for word in text.split(",")} == set(SCOPES)


def completed(line: str, home: Path) -> list[str]:
    """Return what bash completes at the end of a line, by the script that is installed."""
    words = line.split(" ")
    listed = " ".join(f"'{word}'" for word in words)
    script = (
        f". {home}/.bashrc; COMP_WORDS=({listed}); COMP_CWORD={len(words) - 1}; "
        f'_stoker_completion {home}/stoker; printf "%s\\n" "${{COMPREPLY[@]}}"'
    )
    environment = os.environ | {"HOME": str(home)}
    ran = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=True)
    return ran.stdout.split()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Return a home whose bash has stoker's completion installed, and a program to ask."""
    (tmp_path / ".bashrc").write_bytes(b"export OTHER='mine'  # no newline at the end")
    program = tmp_path / "stoker"
    start = "import sys; sys.argv[0] = 'stoker'; from stoker.cli import app; app(prog_name='stoker')"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{start}" "$@"\n')
    program.chmod(0o755)
    for _ in range(2):
        ran = stoker("completion", "install", HOME=str(tmp_path), SHELL="/bin/bash", XDG_DATA_HOME="")
        assert ran.exit_code == 0, ran.output
    return tmp_path


def test_bash_completes_commands_options_states_and_lanes(home: Path) -> None:
    """As a real bash asks, with what was installed."""
    assert completed("stoker bulk re", home) == ["retry", "resume", "results"]
    assert completed("stoker submit --la", home) == ["--lane"]
    assert completed("stoker submit --lane ", home) == list(get_args(cli_http.Lane))
    assert completed("stoker jobs --state s", home) == ["succeeded"]
    assert completed("stoker webhooks create --event batch.c", home) == ["batch.completed", "batch.cancelled"]
    assert completed("stoker restart w", home) == ["web", "worker"]


# zsh: what it hands to its own function, which needs a keyboard. fish: what it would offer.
REAL = {
    "zsh": "compdef() {{ }}; _arguments() {{ print -r -- $@ }}; words=({line}); CURRENT=$#words; . {script}; "
    "_stoker_completion",
    "fish": 'source {script}; complete -C "{line}"',
}


@pytest.mark.parametrize("shell", REAL)
def test_zsh_and_fish_complete_too(shell: str, home: Path) -> None:
    """As the real ones read the script and what it brings, with the help's quotes and colons in it."""
    program = programs(shell) / shell
    script = home / shell
    script.write_text(stoker("completion", "show", shell).stdout)
    environment = os.environ | {"HOME": str(home), "PATH": f"{home}:{os.environ['PATH']}"}
    for line, offered in (("stoker bulk p", ["pause"]), ("stoker up --por", ["--port"])):
        command = [program, "-f" if shell == "zsh" else "-N", "-c", REAL[shell].format(line=line, script=script)]
        ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert [word for word in ("pause", "resume", "--port", "--data") if word in ran.stdout] == offered
        assert ran.stderr == ""


def test_installing_completion_leaves_the_rest_of_a_start_file(home: Path) -> None:
    """A line is added, once, however often it is installed; what stood there is as it was."""
    lines = (home / ".bashrc").read_text().splitlines()
    script = home / ".local/share/stoker/completion.bash"
    assert lines == ["export OTHER='mine'  # no newline at the end", f". '{script}'"]


@pytest.mark.parametrize("shell", get_args(cli_completion.Shell))
def test_each_shell_has_a_script_and_a_place_for_it(shell: str, tmp_path: Path) -> None:
    """What `show` prints is what `install` installs; only bash and zsh need a line in their start file."""
    shown = stoker("completion", "show", shell)
    ran = stoker("completion", "install", shell, HOME=str(tmp_path), XDG_DATA_HOME="", XDG_CONFIG_HOME="", ZDOTDIR="")
    assert ran.exit_code == shown.exit_code == 0
    (script,) = [path for path in tmp_path.rglob("*") if path.is_file() and not path.name.endswith("rc")]
    assert script.read_text() == shown.stdout
    assert f"complete_{shell}" in shown.stdout
    starts = {path.name for path in tmp_path.iterdir() if path.name.endswith("rc")}
    assert starts == ({f".{shell}rc"} if shell != "fish" else set())


@pytest.mark.parametrize("shell", ["", "/bin/tcsh"])
def test_a_shell_that_is_not_known_is_asked_for(shell: str) -> None:
    """Wrong use: one line with the shells that there are."""
    ran = stoker("completion", "show", SHELL=shell)
    assert (ran.exit_code, ran.stdout) == (2, "")
    assert ran.stderr == "stoker: which shell? name one of bash, zsh, fish\n"


@pytest.mark.parametrize(
    ("terminal", "variable", "expected"),
    [
        (True, {}, True),
        (True, {"NO_COLOR": "1", "FORCE_COLOR": "1"}, False),
        (True, {"TERM": "dumb"}, False),
        (False, {}, False),
        (False, {"FORCE_COLOR": "1"}, True),
    ],
)
def test_colours_are_for_terminals(terminal: bool, variable: dict[str, str], expected: bool) -> None:
    """An error is red on a terminal, unless NO_COLOR; elsewhere only with FORCE_COLOR."""
    kept = {name: value for name, value in os.environ.items() if name not in {"NO_COLOR", "FORCE_COLOR"}}
    command = [sys.executable, "-m", "stoker.cli", "bulk", "list", "--url", "nonsense"]
    master, slave = pty.openpty()
    try:
        told = slave if terminal else subprocess.PIPE
        ran = subprocess.run(
            command, env=kept | {"TERM": "xterm"} | variable, stdout=subprocess.PIPE, stderr=told, check=False
        )
        said = os.read(master, 4096) if terminal else ran.stderr
    finally:
        os.close(master)
        os.close(slave)
    assert ran.returncode == 2
    assert (b"\x1b[31m" in said) is expected
