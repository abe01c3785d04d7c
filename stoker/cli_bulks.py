"""`stoker bulk ...`: look after bulks, and read what came of them."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stoker.cli_http import (
    SOME_FAILED,
    AfterOption,
    BulkState,
    Format,
    Lane,
    LimitOption,
    MetadataOption,
    duration,
    pairs,
    print_file,
    print_json,
    print_table,
    service,
)
from stoker.console import URL, JsonOption, KeyOption, UrlOption, examples, fail, hand_out, is_terminal, say

if TYPE_CHECKING:
    from stoker.client import Bulk, Client

app = typer.Typer()

_STARTED = "id=$(stoker bulk submit prompts.jsonl)"
"""How examples come to the id of a bulk."""

IdArgument = Annotated[str, typer.Argument(metavar="ID", help="The bulk's id.")]
FormatOption = Annotated[Format, typer.Option("--format", help="Form of the results.")]


@app.command(epilog=examples(_STARTED, "stoker bulk status $id"))
def status(
    bulk_id: IdArgument, *, url: UrlOption = URL, api_key: KeyOption = None, as_json: JsonOption = False
) -> None:
    """Tell how far a bulk is."""
    with service(url, api_key) as client:
        show(client.get_bulk(bulk_id), as_json=as_json)


@app.command(epilog=examples(_STARTED, "stoker bulk wait $id --timeout 3600"))
def wait(
    bulk_id: IdArgument,
    *,
    timeout: Annotated[float | None, typer.Option(help="Seconds to wait at most.  [default: no end]")] = None,
    url: UrlOption = URL,
    api_key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Wait until a bulk has ended.

    The status is 0 when all lines succeeded, 3 when some did not.
    """
    from stoker.progress import display

    with service(url, api_key) as client, display() as shown:
        bulk = client.wait_bulk(bulk_id, timeout, shown.look)
    show(bulk, as_json=as_json)
    end(bulk)


@app.command(name="list", epilog=examples("stoker bulk list", "stoker bulk list --state running --json"))
def list_(
    *,
    limit: LimitOption = 20,
    after: AfterOption = None,
    state: Annotated[BulkState | None, typer.Option(help="Only those in this state.")] = None,
    metadata: MetadataOption = None,
    url: UrlOption = URL,
    api_key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """List bulks, newest first."""
    with service(url, api_key) as client:
        found = client.bulks(limit=limit, after=after, state=state, metadata=pairs(metadata, "--metadata"))
    if as_json:
        print_json(list(found))
        return
    rows = [(bulk.id, bulk.state, f"{bulk.counts.done}/{bulk.counts.total}", _when(bulk)) for bulk in found]
    print_table(rows, empty="there are no such bulks")


@app.command(epilog=examples(_STARTED, "stoker bulk cancel $id"))
def cancel(
    bulk_id: IdArgument, *, url: UrlOption = URL, api_key: KeyOption = None, as_json: JsonOption = False
) -> None:
    """Cancel a bulk; what is finished stays."""
    _steer(url, api_key, lambda client: client.cancel_bulk(bulk_id), as_json=as_json)


@app.command(epilog=examples(_STARTED, "stoker bulk pause $id"))
def pause(bulk_id: IdArgument, *, url: UrlOption = URL, api_key: KeyOption = None, as_json: JsonOption = False) -> None:
    """Let a bulk's lines wait, all but those that run."""
    _steer(url, api_key, lambda client: client.pause_bulk(bulk_id), as_json=as_json)


@app.command(epilog=examples(_STARTED, "stoker bulk pause $id", "stoker bulk resume $id"))
def resume(
    bulk_id: IdArgument, *, url: UrlOption = URL, api_key: KeyOption = None, as_json: JsonOption = False
) -> None:
    """Let a paused bulk go on."""
    _steer(url, api_key, lambda client: client.resume_bulk(bulk_id), as_json=as_json)


@app.command(epilog=examples(_STARTED, "stoker bulk lane $id standard"))
def lane(
    bulk_id: IdArgument,
    lane: Annotated[Lane, typer.Argument(metavar="LANE", help="realtime, standard or bulk.")],
    *,
    url: UrlOption = URL,
    api_key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Bring what has not run yet into another lane."""
    _steer(url, api_key, lambda client: client.move_bulk(bulk_id, lane), as_json=as_json)


@app.command(epilog=examples(_STARTED, "stoker bulk wait $id", "stoker bulk delete $id"))
def delete(
    bulk_id: IdArgument, *, url: UrlOption = URL, api_key: KeyOption = None, as_json: JsonOption = False
) -> None:
    """Delete a bulk that has ended, and its results."""
    with service(url, api_key) as client:
        client.delete_bulk(bulk_id)
    if as_json:
        print_json({"id": bulk_id, "deleted": True})
    else:
        say(f"{bulk_id} is deleted")


@app.command(
    epilog=examples(
        _STARTED,
        "stoker bulk results $id --follow | jq -c .result",
        "stoker bulk results $id -o results.csv --format csv",
    )
)
def results(
    bulk_id: IdArgument,
    *,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File to write, instead of printing.")] = None,
    kind: FormatOption = "jsonl",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Print results as they come, to the end.")] = False,
    after: Annotated[int, typer.Option(min=0, metavar="SEQ", help="Only those behind this one.")] = 0,
    url: UrlOption = URL,
    api_key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print results, or write them to a file.

    They are JSON Lines, with --json or without.
    """
    del as_json
    if kind != "jsonl" and (follow or after):
        fail("--follow and --after are for jsonl", 2)
    if kind == "parquet" and output is None and is_terminal(sys.stdout):
        fail("parquet is not for a terminal: give --output, or a pipe", 2)
    with service(url, api_key) as client:
        if output or kind != "jsonl":
            _download(client, bulk_id, kind, output)
        else:
            _print_lines(client, bulk_id, after, follow=follow)


@app.command(epilog=examples(_STARTED, "stoker bulk errors $id", "stoker bulk errors $id -o errors.jsonl"))
def errors(
    bulk_id: IdArgument,
    *,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File to write, as JSON Lines.")] = None,
    after: Annotated[int, typer.Option(min=0, metavar="SEQ", help="Only those behind this one.")] = 0,
    url: UrlOption = URL,
    api_key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Tell which lines failed, and why.

    With --json as JSON Lines, as in a file.
    """
    with service(url, api_key) as client:
        if output:
            with writing(output):
                client.download_results(bulk_id, output, errors=True)
        elif as_json:
            _print_lines(client, bulk_id, after, errors=True)
        else:
            for found in client.iter_results(bulk_id, after=after, errors=True, follow=False):
                name = f" ({found.custom_id})" if found.custom_id else ""
                say(f"line {found.line}{name}: {found.state}{why(found.error)}")


def writing(output: Path) -> AbstractContextManager[None]:
    """Return what tells, while a file is downloaded, how much of it there is."""
    from stoker.progress import working

    return working(f"writing {output}", output.with_name(f"{output.name}.part"))


def show(bulk: Bulk, *, as_json: bool) -> None:
    """Print a bulk."""
    if as_json:
        print_json(bulk)
        return
    from stoker.progress import described

    say(f"{bulk.id}  {bulk.state}")
    say(f"  {described(bulk)}")
    counts = bulk.counts
    say(f"  {counts.succeeded} succeeded, {counts.queued} queued, {counts.running} running, lane {bulk.lane}")
    if bulk.usage:
        say(f"  tokens: {bulk.usage.get('prompt_tokens', 0)} read, {bulk.usage.get('completion_tokens', 0)} written")
    for error in bulk.errors:
        say(f"  {problem(error)}")


def started(bulk: Bulk, *, as_json: bool) -> None:
    """Print a bulk that was just started: its id, for scripts."""
    if as_json:
        show(bulk, as_json=True)
    else:
        say(bulk.id)


def end(bulk: Bulk) -> None:
    """End the program as a bulk ended: 0 when all lines succeeded, 3 when some did not, 1 when it failed."""
    if bulk.state == "failed":
        fail("; ".join([f"{bulk.id} failed", *(problem(error) for error in bulk.errors[:3])]))
    if bulk.state != "completed" or bulk.counts.done != bulk.counts.succeeded:
        raise typer.Exit(SOME_FAILED)


def problem(error: Mapping[str, Any]) -> str:
    """Return what is wrong with a line, or with all of the input."""
    where = f"line {error['line']}: " if error.get("line") else ""
    return f"{where}{error.get('message')} ({error.get('code')})"


def why(error: Mapping[str, Any] | None) -> str:
    """Return the reason behind a state."""
    return f": {error.get('message')} ({error.get('code')})" if error else ""


def _steer(url: str, api_key: str | None, do: Callable[[Client], Bulk], *, as_json: bool) -> None:
    with service(url, api_key) as client:
        show(do(client), as_json=as_json)


def _when(bulk: Bulk) -> str:
    return "" if bulk.created_at is None else f"{duration(max(0.0, time.time() - bulk.created_at))} ago"


def _print_lines(client: Client, bulk_id: str, after: int, *, errors: bool = False, follow: bool = False) -> None:
    from stoker.result_pages import Results

    reader = Results(bulk_id, after=after, errors=errors, follow=follow)
    while not reader.ended:
        for line in client.perform(reader.page()):
            hand_out(line.raw, nl=False)


def _download(client: Client, bulk_id: str, kind: str, output: Path | None) -> None:
    if output:
        with writing(output):
            client.download_results(bulk_id, output, format=kind)
    else:
        print_file(lambda file: client.download_results(bulk_id, file, format=kind))
