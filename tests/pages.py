"""The blocks of code in a page of the documentation, and a terminal in which they are run as a reader runs them.

A line of comment above a block says what a reader knows without being told:

    <!-- not run: WHY -->        it needs what a test machine lacks
    <!-- terminal: TEXT -->      it goes on in a terminal of its own; the next block is run once it has printed TEXT
    <!-- file: NAME -->          it is saved as a file
    <!-- shows: TEXT -->         its output has this text (several such lines: each of them)
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Self

from tests.servers import free_port
from tests.tasks.inprocess import until

ROOT = Path(__file__).parents[1]
SHELL, PYTHON = "sh", "python"
MARKS = ("not run", "terminal", "file", "shows")
_PORT = re.compile(r"((?:127\.0\.0\.1|localhost):|--port |port=)(\d{4})\b")
_DONE = "--this block is done--"
PATIENCE = 240.0
"""Seconds that a block may take: one that waits for what never comes says so, and does not use up the test's time."""
# A refusal of the service ends the page, as `set -e` lets any other command that fails.
_FIRST = 'set -euo pipefail; curl() { command curl --fail-with-body --max-time 120 "$@"; }\n'


@dataclass(frozen=True, slots=True)
class Block:
    """A block of code: its language, its text, what is said above it, and the line on which it begins."""

    language: str
    text: str
    line: int
    marks: Mapping[str, list[str]]

    @property
    def name(self) -> str:
        """Return the file that it is to be saved as, or nothing."""
        return self.marks.get("file", [""])[0]


def blocks(page: Path) -> Iterator[Block]:
    """Yield a page's blocks in their order. Raises ValueError for a comment above one that is none of the marks."""
    lines = iter(enumerate(page.read_text(encoding="utf-8").splitlines(), 1))
    above: list[str] = []
    for number, line in lines:
        if fence := re.fullmatch(r"( *)```(\w*)", line):
            inner = takewhile(lambda one, end=f"{fence[1]}```": one[1] != end, lines)
            text = "".join(f"{one.removeprefix(fence[1])}\n" for _, one in inner)
            yield Block(fence[2], text, number, _marks(above, f"{page.name}:{number}"))
            above = []
        elif line.lstrip().startswith("<!-- "):
            above.append(line.strip())
        elif line.strip():
            above = []


def _marks(comments: Sequence[str], where: str) -> Mapping[str, list[str]]:
    marks: dict[str, list[str]] = {}
    for comment in comments:
        mark = re.fullmatch(r"<!-- ([a-z ]+): (.+) -->", comment)
        if mark is None or mark[1] not in MARKS:
            raise ValueError(f"{where} {comment} is none of {', '.join(MARKS)}")
        marks.setdefault(mark[1], []).append(mark[2])
    return marks


@dataclass
class Reader:
    """Somebody who follows a page in a new folder, with ports that are free, and `places` instead of examples."""

    folder: Path
    environment: Mapping[str, str]
    ports: dict[str, str] = field(default_factory=dict)
    places: Mapping[str, str] = field(default_factory=dict)
    _terminals: list[Terminal] = field(default_factory=list)

    def __enter__(self) -> Self:
        """Open a shell."""
        self._shell = started(["bash", "--noprofile", "--norc"], self.folder, self.environment)
        self._write(_FIRST)
        return self

    def __exit__(self, *_: object) -> None:
        """Close the shell, and interrupt what runs in other terminals."""
        end(self._shell, signal.SIGKILL)
        self.interrupt()

    def follow(self, page: Path) -> int:
        """Do what a page says. Return how many blocks were run. Raises AssertionError with what was printed."""
        count = 0
        for block in blocks(page):
            if "not run" in block.marks or not (block.name or block.language in {SHELL, PYTHON}):
                continue
            self._do(page, block)
            count += 1
        return count

    def interrupt(self) -> None:
        """Press Ctrl-C in every terminal, the last one first, and wait for what ran there."""
        for terminal in reversed(self._terminals):
            terminal.interrupt()
        while self._terminals:
            self._terminals.pop().end()

    def _do(self, page: Path, block: Block) -> None:
        text = self._here(block.text)
        path = self.folder / (block.name or f".{page.stem}-{block.line}")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        if block.name:
            return
        program = "source" if block.language == SHELL else sys.executable
        where = f"{page.name}, line {block.line}:\n{block.text}"
        if "terminal" in block.marks:
            self._open(f"{_FIRST}{program} {path}", block.marks["terminal"][0], where)
            return
        said = self._run(f"{program} {path} </dev/null", where)
        for wanted in block.marks.get("shows", []):
            assert self._here(wanted) in said, f"{where}\nshows no {wanted!r}, but\n{said}"

    def _here(self, text: str) -> str:
        for name, place in self.places.items():
            text = text.replace(name, place)
        return _PORT.sub(lambda found: found[1] + self._free(found[2]), text)

    def _free(self, port: str) -> str:
        return self.ports.setdefault(port, str(free_port()))

    def _run(self, command: str, where: str) -> str:
        self._write(f"{command}\necho; echo '{_DONE}'\n")
        said = ""
        assert self._shell.stdout is not None
        given_up = threading.Timer(PATIENCE, os.killpg, (self._shell.pid, signal.SIGKILL))
        given_up.start()
        try:
            for line in self._shell.stdout:
                if line.strip() == _DONE:
                    return said
                said += line
        finally:
            given_up.cancel()
        raise AssertionError(f"{where}\nfailed, or took more than {PATIENCE:g} s, after it said\n{said}")

    def _open(self, command: str, text: str, where: str) -> None:
        terminal = Terminal(command, self.folder, self.environment)
        self._terminals.append(terminal)
        with suppress(AssertionError):  # the next line tells more
            until(lambda: text in terminal.said or terminal.ended, PATIENCE)
        assert text in terminal.said, f"{where}\nsaid no {text!r}, but\n{terminal.said}"

    def _write(self, text: str) -> None:
        assert self._shell.stdin is not None
        self._shell.stdin.write(text)
        self._shell.stdin.flush()


class Terminal:
    """A terminal in which something goes on until it is interrupted."""

    def __init__(self, command: str, folder: Path, environment: Mapping[str, str]) -> None:
        self.said = ""
        self.ended = False
        self._interrupted = False
        self._process = started(["bash", "-c", command], folder, environment)
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.said += line
        self.ended = True

    def interrupt(self) -> None:
        """Do what Ctrl-C does, to everything that runs in it; once, since a second one tells a service to hurry."""
        if not self._interrupted:
            self._interrupted = True
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGINT)

    def end(self) -> None:
        """Interrupt it, and wait."""
        self.interrupt()
        self._listener.join(120)
        end(self._process, signal.SIGKILL)


def started(command: list[str], folder: Path, environment: Mapping[str, str]) -> subprocess.Popen[str]:
    """Start a program in a session of its own, both its outputs in one."""
    return subprocess.Popen(
        command,
        cwd=folder,
        env=dict(environment),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def end(process: subprocess.Popen[str], how: signal.Signals) -> None:
    """Send a signal to a program and all of its session that is in its process group, and wait for the program."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, how)
    process.wait(120)
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def environment(folder: Path, **more: str) -> dict[str, str]:
    """Return the environment of somebody new: nothing of ours but the programs, and the .venv beside them."""
    # The last one makes every process compile everything again.
    ours = ("STOKER_", "OPENAI_", "AWS_", "PYTHONDONTWRITEBYTECODE")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    (folder / ".venv").symlink_to(Path(sys.executable).parents[1])
    path = f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"
    return kept | {"PATH": path, "HOME": str(folder), "NO_COLOR": "1", "COLUMNS": "200"} | more
