"""What the commands share: options and exit statuses that mean the same everywhere, and how a command fails."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, NoReturn, TextIO

import typer

DataOption = Annotated[
    Path | None, typer.Option("--data", envvar="STOKER_DATA", help="Folder of the service's data.  [default: var]")
]
DatabaseOption = Annotated[
    str | None,
    typer.Option(envvar="STOKER_DATABASE_URL", help="PostgreSQL or SQLite URL.  [default: SQLite in the data folder]"),
]
UrlOption = Annotated[str, typer.Option(envvar="STOKER_URL", help="Where the service is.")]
KeyOption = Annotated[str | None, typer.Option(envvar="STOKER_API_KEY", help="API key, once the service has any.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]

URL = "http://127.0.0.1:8000"

READER_GONE = 141
"""128 and SIGPIPE: what any program of a pipeline ends with."""
STATUSES = {
    0: "Done.",
    1: "Failed or refused: one line on the standard error says why; `doctor`, `webhooks test`: what they print.",
    2: "Wrong use: an unknown command or option, or a bad value or setting.",
    3: "Done, but some lines of the bulk or batch did not succeed.",
    78: "The engine of `up` or `engine` cannot start with these settings.",
    130: "Interrupted by Ctrl-C before it was done.",
    READER_GONE: "Whoever read the output, as `| head` does, went away before it was done.",
}
"""What an exit status means, of whatever command; a signal has 128 and its number, as everywhere."""


@contextmanager
def settings_errors() -> Iterator[None]:
    """End the program with one line when a setting is wrong."""
    from stoker.settings import SettingsError

    try:
        yield
    except SettingsError as error:
        fail(str(error), 2)


def fail(why: str, status: int = 1) -> NoReturn:
    """End the program: one line on the standard error, and a status."""
    # Whoever can no longer be told still gets the status.
    with suppress(OSError, ValueError):
        typer.secho(f"stoker: {word(why)}", err=True, fg="red", color=coloured(sys.stderr))
    give_up_output()
    raise typer.Exit(status)


_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""What steers a terminal or turns its text around, and halves of characters, which cannot be printed at all."""


def word(text: object) -> str:
    """Return a name or message from outside as a part of a line: without whatever a terminal would obey."""
    return harmless(str(text).replace("\n", " ").replace("\t", " "))


def harmless(text: str) -> str:
    """Return a text from outside, of several lines perhaps, without what steers a terminal."""
    return _STEERING.sub("?", text.replace("\r", ""))


def say(text: str, *, err: bool = False) -> None:
    """Print lines for a person; they may hold texts from outside."""
    typer.echo(harmless(text), err=err)


def hand_out(found: str | bytes, *, nl: bool = True) -> None:
    """Print what was asked for: as it is for programs, harmless on a terminal."""
    if is_terminal(sys.stdout):
        found = harmless(found.decode("utf-8", "replace") if isinstance(found, bytes) else found)
    typer.echo(found, nl=nl, color=True)  # or it would leave out colours that are in the text


def json_line(document: object) -> str:
    """Return a document as one line of JSON, in which what steers a terminal is written as JSON's own escapes."""
    text = json.dumps(document, ensure_ascii=False)
    return _STEERING.sub(lambda sign: f"\\u{ord(sign[0]):04x}", text)


def tell(line: str) -> None:
    """Print a line, and go on whatever becomes of it: its reader may be gone, or the disk full."""
    with suppress(OSError, ValueError):
        typer.echo(line, color=coloured(sys.stdout))


def give_up_output() -> None:
    """Drop what could not be printed: Python would try once more at its end, and make the exit status 120."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream:
                stream.flush()
        except (OSError, ValueError):
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def dim(text: str) -> str:
    """Return a text in grey, where it goes to a terminal."""
    return typer.style(text, dim=True) if coloured(sys.stdout) else text


def coloured(stream: TextIO | None) -> bool:
    """Tell whether what goes to a stream has colours: on a terminal, unless NO_COLOR or FORCE_COLOR says otherwise."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return is_terminal(stream) and os.environ.get("TERM") != "dumb"


def is_terminal(stream: TextIO | None) -> bool:
    """Tell whether a person sees what goes to a stream; one that is closed nobody does."""
    return bool(stream and stream.isatty())


def examples(*lines: str) -> str:
    """Return the end of a command's help: lines that can be pasted as they are."""
    # \\b: not wrapped.
    return "\n".join(["Examples:" if len(lines) > 1 else "Example:", "", "\b", *(f"  {line}" for line in lines)])


def words(*known: str) -> Callable[[str], list[str]]:
    """Return what completes these words in a shell."""
    return lambda incomplete: [word for word in known if word.startswith(incomplete)]
