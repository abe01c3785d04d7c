"""What the commands share: options that mean the same everywhere, and how a command fails."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, NoReturn

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
        typer.secho(f"stoker: {why}", err=True, fg=None if os.environ.get("NO_COLOR") else "red")
    give_up_output()
    raise typer.Exit(status)


def tell(line: str) -> None:
    """Print a line, and go on whatever becomes of it: its reader may be gone, or the disk full."""
    with suppress(OSError, ValueError):
        typer.echo(line)


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
    return (
        typer.style(text, dim=True) if sys.stdout and sys.stdout.isatty() and not os.environ.get("NO_COLOR") else text
    )
