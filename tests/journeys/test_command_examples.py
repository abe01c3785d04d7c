"""The examples of every command's help, run as they stand there, against a real service."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from urllib.parse import urlsplit

import pytest
from typer.testing import CliRunner, Result

from models.sealing import new_key
from stoker import cli_reference
from stoker.cli import app
from stoker.local import secret_key
from stoker.receiver import Receiver
from tests.command_lines import Stage, read
from tests.journeys.running import Up, end_whatever_is_left
from tests.tasks.inprocess import until

pytestmark = [pytest.mark.journey, pytest.mark.timeout(600)]

ENDLESS = {"up", "engine", "demo", "restart"}
"""Commands with journeys of their own (test_up, test_operations, test_demo): they run on, or restart the service."""
SOME_FAILED = {"bulk run", "bulk wait", "bulk retry", "bulk dry-run"}
"""One of the prompts fails, another is no JSON: status 3 is what these say then."""
ENDED = {"cancel", "bulk cancel", "bulk pause", "bulk resume", "bulk lane", "batch cancel"}
"""What these are for may have ended before: that is a refusal, with these words."""
PREPARED = {"keys": "keys create --owner alice", "webhooks": "webhooks create {hook} --event job.failed"}
"""What is there before the examples of some commands."""


@dataclass
class Shell:
    """Runs lines as a shell does, in this process: one start of Python for each would take minutes."""

    environment: dict[str, str]
    places: dict[str, str]
    variables: dict[str, str] = field(default_factory=dict)

    def run(self, line: str) -> list[Result]:
        """Run a line, and return what came of each `stoker` in it."""
        for name, place in self.places.items():
            line = line.replace(name, place)
        taken = read(line)
        results, flowing = [], ""
        for stage in taken.stages:
            result = self._stage(stage, flowing)
            results += [result] if isinstance(result, Result) else []
            flowing = result.stdout if isinstance(result, Result) else result
        if taken.variable:
            self.variables[taken.variable] = flowing.strip()
        return results

    def _stage(self, stage: Stage, flowing: str) -> Result | str:
        program, *words = (Template(word).substitute(self.variables) for word in stage.words)
        if program == "cat":
            return Path(words[0]).read_text()
        if program == "jq":
            return picked(flowing, words[-1])
        assert program == "stoker"
        mine = {name: Template(value).substitute(self.variables) for name, value in stage.environment.items()}
        return CliRunner().invoke(app, words, input=flowing, env=self.environment | mine, catch_exceptions=False)


def picked(text: str, program: str) -> str:
    """Return what jq picks: the few programs of the examples, on documents that are one or one a line."""
    documents = [json.loads(line) for line in text.splitlines()]
    assert documents, "nothing came"
    if program == ".[0].id":
        return str(documents[0][0]["id"])
    return text


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    """Return a receiver of webhooks, on loopback."""
    with Receiver() as running:
        yield running


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory, receiver: Receiver) -> Iterator[Shell]:
    """Return a shell for a service that runs, with a fake engine."""
    data = tmp_path_factory.mktemp("examples")
    up = Up(data, "--engine", "fake", STOKER_WEBHOOK_ALLOW_CIDRS="127.0.0.1/32", STOKER_FAKE_BASE_MS="300")
    try:
        url = up.url()
        home = tmp_path_factory.mktemp("home")
        environment = {
            "STOKER_URL": url,
            "STOKER_DATA": str(data),
            "STOKER_PORT": str(urlsplit(url).port),
            "HOME": str(home),
            "SHELL": "/bin/bash",
            **dict.fromkeys(("XDG_DATA_HOME", "XDG_CONFIG_HOME", "ZDOTDIR", "STOKER_API_KEY"), ""),
        }
        places = {"/srv/stoker": str(data), "/srv/new": str(home / "new"), "https://example.com/hook": receiver.url}
        running = Shell(environment, places | {"http://127.0.0.1:8000": url})
        until(lambda: running.run("stoker health collector")[0].exit_code == 0, 120)
        yield running
        assert up.end() == 0
    finally:
        end_whatever_is_left(data)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder, now the working one, with the files that examples name."""
    prompts = [{"prompt": f"Say {n}."} for n in range(5)] + [{"prompt": "[[reject]]"}]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in prompts))
    (tmp_path / "prompts.csv").write_text("prompt\nSay one.\n[[reject]]\n")
    (tmp_path / "question.txt").write_text("What is the capital of France?")
    body = {"model": "fake", "messages": [{"role": "user", "content": "Say hello."}]}
    request = {"custom_id": "r1", "method": "POST", "url": "/v1/chat/completions", "body": body}
    (tmp_path / "requests.jsonl").write_text(json.dumps(request) + "\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def prepare(shell: Shell, path: tuple[str, ...], files: Path, receiver: Receiver, patch: pytest.MonkeyPatch) -> None:
    """Go into a new folder with the files, and make what a command's examples build on."""
    folder = files / "-".join(path)
    folder.mkdir()
    for file in files.iterdir():
        if file.is_file():
            os.link(file, folder / file.name)
    patch.chdir(folder)
    if path == ("db", "restore"):
        assert shell.run("stoker db backup stoker-monday.db")[0].exit_code == 0
    if path == ("db", "reseal"):
        shell.variables |= {"NEW": new_key(), "OLD": secret_key(Path(shell.environment["STOKER_DATA"]))}
    if path[0] in PREPARED:
        assert shell.run(f"stoker {PREPARED[path[0]].format(hook=receiver.url)}")[0].exit_code == 0


def test_every_example_works(shell: Shell, receiver: Receiver, files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each line of each command's help does what it is shown for: nothing in it is refused or unknown."""
    tried = set()
    for path, command in cli_reference.commands():
        name = " ".join(path)
        if path[0] in ENDLESS:
            continue
        prepare(shell, path, files, receiver, monkeypatch)
        for line in cli_reference.examples_of(command):
            if line == "stoker top":  # it has no end
                continue
            for result in shell.run(line):
                check(name, line, result)
        tried.add(name)
    assert len(tried) > 40


def check(name: str, line: str, result: Result) -> None:
    """Check that an example worked."""
    told = f"{name}: {line}\n{result.output}"
    if result.exit_code == 1 and is_one_of(ENDED, line):
        assert "already" in result.stderr or "has ended" in result.stderr, told
        return
    assert result.exit_code in ({0, 3} if is_one_of(SOME_FAILED, line) else {0}), told
    assert "Traceback" not in told


def is_one_of(names: set[str], line: str) -> bool:
    """Tell whether a line runs one of these commands."""
    return any(line.startswith(f"stoker {name} ") for name in names)
