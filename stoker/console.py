"""What the commands share: options and exit statuses that mean the same everywhere, and how a command fails."""

from __future__ import annotations

import os
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

STATUSES = {
    0: "Done.",
    1: "Failed or refused: one line on the standard error says why.",
    2: "Wrong use: an unknown command or option, or a bad value or setting.",
    3: "Done, but some lines of the bulk or batch did not succeed.",
    78: "The engine of `up` or `engine` cannot start with these settings.",
    130: "Interrupted by Ctrl-C before it was done.",
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
        typer.secho(f"stoker: {why}", err=True, fg="red", color=coloured(sys.stderr))
    give_up_output()
    raise typer.Exit(status)


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
    return bool(stream and stream.isatty()) and os.environ.get("TERM") != "dumb"


def examples(*lines: str) -> str:
    """Return the end of a command's help: lines that can be pasted as they are."""
    # \\b: not wrapped.
    return "\n".join(["Examples:" if len(lines) > 1 else "Example:", "", "\b", *(f"  {line}" for line in lines)])


def words(*known: str) -> Callable[[str], list[str]]:
    """Return what completes these words in a shell."""
    return lambda incomplete: [word for word in known if word.startswith(incomplete)]
