"""What the commands that speak HTTP share: the client, and how they read parameters and print."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, Literal

import typer

from stoker.console import fail, hand_out, is_terminal, json_line, say, word

if TYPE_CHECKING:
    from stoker.client import Client
    from stoker.steps import Pause

SOME_FAILED = 3
"""The status of a command that did its work, but some lines did not succeed."""
INTERRUPTED = 130
_QUIET, _AGAIN = 5.0, 30.0
"""Seconds of trying in vain that nobody is told of, and from one line about it to the next."""
_GAP = 30.0
"""Seconds without a failure from which the next one is the first of another outage."""

Lane = Literal["realtime", "standard", "bulk"]
JobState = Literal["queued", "delayed", "batched", "running", "succeeded", "failed", "cancelled", "expired"]
BulkState = Literal["validating", "running", "finalizing", "cancelling", "completed", "failed", "expired", "cancelled"]
Format = Literal["jsonl", "csv", "parquet"]

ModelOption = Annotated[str | None, typer.Option(help="Model, for lines that name none.  [default: the service's own]")]
LaneOption = Annotated[Lane | None, typer.Option(help="Lane that its lines wait in.  [default: bulk]")]
MaxTokensOption = Annotated[int | None, typer.Option(help="Longest answer, in tokens.")]
SystemOption = Annotated[str | None, typer.Option(help="System message.")]
ParamOption = Annotated[
    list[str] | None,
    typer.Option("--param", "-p", metavar="NAME=VALUE", help="Any other parameter: -p temperature=0.2 -p stop=END."),
]
MetadataOption = Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="Your own tag; several are fine.")]
InputArgument = Annotated[Path, typer.Argument(metavar="INPUT", help="JSON Lines or CSV, either may be .gz.")]
ShareOption = Annotated[
    float | None, typer.Option(min=0, max=1, help="Stop when more than this share of the lines failed.")
]
LimitOption = Annotated[int, typer.Option(min=1, max=100, help="How many, newest first.")]
AfterOption = Annotated[str | None, typer.Option(metavar="ID", help="Those older than this one.")]


@contextmanager
def service(url: str, api_key: str | None) -> Iterator[Client]:
    """Open a client; what goes wrong with it is one line."""
    from stoker.client import Client, StokerAPIError

    try:
        opened = Client(url, api_key)
    except StokerAPIError as error:
        fail(str(error), 2)
    try:
        with opened as client:
            client.rest = _telling()
            yield client
    except StokerAPIError as error:
        fail(str(error))
    except TimeoutError as error:
        fail(str(error) or "no answer in time")


@contextmanager
def going_on(ident: str, how: str) -> Iterator[None]:
    """Wait for what the service does under this id; if that is cut short, say that it goes on, and how to come back."""
    from stoker.client import StokerAPIError

    back = f"{ident} goes on: `{how} {ident}`"
    try:
        yield
    except KeyboardInterrupt:
        fail(f"interrupted; {back}", INTERRUPTED)
    except (StokerAPIError, TimeoutError) as error:
        if isinstance(error, TimeoutError) or error.temporary:
            fail(f"{error}; {back}")
        raise


def _telling() -> Callable[[Pause], None]:
    """Return what lets pauses pass, and says now and then why there are any."""
    from stoker.steps import rest

    began = last = due = float("-inf")

    def passes(pause: Pause) -> None:
        nonlocal began, last, due
        now = time.monotonic()
        if pause.why is not None:
            if now > last + _GAP:
                began, due = now, now + _QUIET
            last = now + pause.seconds
            if last >= due:
                say(f"stoker: {word(pause.why)}; trying again, for {duration(now - began)} now", err=True)
                due = now + _AGAIN
        rest(pause)

    return passes


def pairs(given: Sequence[str] | None, option: str) -> dict[str, str]:
    """Read `name=value` options."""
    found = {}
    for text in given or ():
        name, equals, value = text.partition("=")
        if not equals or not name:
            fail(f"{option} takes NAME=VALUE, not {text!r}", 2)
        found[name] = value
    return found


def parameters(params: Sequence[str] | None, metadata: Sequence[str] | None = None, **others: Any) -> dict[str, Any]:
    """Return the parameters of a bulk: values of --param are JSON, or else texts."""
    given: dict[str, Any] = {name: _value(text) for name, text in pairs(params, "--param").items()}
    given |= {name: value for name, value in others.items() if value is not None}
    if metadata:
        given["metadata"] = pairs(metadata, "--metadata")
    return given


def print_json(found: Any) -> None:
    """Print one JSON document."""
    document = found
    if isinstance(found, list | tuple):
        document = [_plain(item) for item in found]
    typer.echo(json_line(_plain(document)))


def print_file(fetch: Callable[[BinaryIO], object]) -> None:
    """Print what is fetched into a file, byte for byte; on a terminal only what does not steer it."""
    from stoker.progress import working

    with tempfile.TemporaryFile() as file:
        with working("fetching results"):
            fetch(file)
        file.seek(0)
        if is_terminal(sys.stdout):
            for line in file:
                hand_out(line, nl=False)
        else:
            shutil.copyfileobj(file, sys.stdout.buffer)
            sys.stdout.buffer.flush()


def print_table(rows: Iterable[Sequence[object]], *, empty: str = "") -> None:
    """Print rows in columns; on the standard error that there are none."""
    texts = [[word(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)] if texts else []
    if not texts and empty:
        typer.echo(empty, err=True)
    for row in texts:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def duration(seconds: float) -> str:
    """Return seconds as a person says them."""
    whole = round(seconds)
    if whole < 60:  # noqa: PLR2004  # seconds of a minute
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _plain(found: Any) -> Any:
    return asdict(found) if is_dataclass(found) and not isinstance(found, type) else found
