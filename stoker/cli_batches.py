"""`stoker batch ...`: batches of OpenAI's API, for files that are already in its form."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stoker.cli_bulks import problem, writing
from stoker.cli_http import (
    SOME_FAILED,
    AfterOption,
    LimitOption,
    MetadataOption,
    duration,
    going_on,
    pairs,
    print_file,
    print_json,
    print_table,
    service,
)
from stoker.console import URL, JsonOption, KeyOption, UrlOption, examples, fail, say, words

if TYPE_CHECKING:
    from stoker.client import Batch, Client

ENDPOINTS = words("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses")
_STARTED = "id=$(stoker batch create requests.jsonl)"
"""How examples come to the id of a batch."""

app = typer.Typer(help="Batches as OpenAI's API has them.", no_args_is_help=True)

IdArgument = Annotated[str, typer.Argument(metavar="ID", help="The batch's id.")]


@app.command(
    epilog=examples("stoker batch create requests.jsonl --wait", "stoker batch create requests.jsonl --metadata run=7")
)
def create(
    source: Annotated[str, typer.Argument(metavar="INPUT", help="A .jsonl file, or the id of an uploaded one.")],
    *,
    endpoint: Annotated[
        str, typer.Option(help="Where its lines go.", autocompletion=ENDPOINTS)
    ] = "/v1/chat/completions",
    window: Annotated[str, typer.Option(help="Completion window.")] = "24h",
    metadata: MetadataOption = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until it has ended.")] = False,
    url: UrlOption = URL,
    api_key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Upload requests and start a batch of them."""
    tags = pairs(metadata, "--metadata") or None
    with service(url, api_key) as client:
        file_id = source if _is_file_id(source) else _uploaded(client, source)
        batch = client.batch(file_id, endpoint=endpoint, completion_window=window, metadata=tags)
        if wait:
            with going_on(batch.id, "stoker batch wait"):
                batch = _waited(client, batch.id, None)
    if as_json:
        print_json(batch)
    else:
        say(batch.id)
    if wait:
        _end(batch)


@app.command(epilog=examples(_STARTED, "stoker batch status $id"))
def status(
    batch_id: IdArgument, *, url: UrlOption = URL, api_key: KeyOption = None, as_json: JsonOption = False
) -> None:
    """Tell how far a batch is."""
    with service(url, api_key) as client:
        _show(client.get_batch(batch_id), as_json=as_json)


@app.command(epilog=examples(_STARTED, "stoker batch wait $id --timeout 3600"))
def wait(
    batch_id: IdArgument,
    *,
    timeout: Annotated[float | None, typer.Option(help="Seconds to wait at most.  [default: no end]")] = None,
    url: UrlOption = URL,
    api_key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Wait until a batch has ended.

    The status is 0 when all requests succeeded, 3 when some did not.
    """
    with service(url, api_key) as client:
        batch = _waited(client, batch_id, timeout)
    _show(batch, as_json=as_json)
    _end(batch)


@app.command(name="list", epilog=examples("stoker batch list", "stoker batch list --limit 5 --json"))
def list_(
    *,
    limit: LimitOption = 20,
    after: AfterOption = None,
    url: UrlOption = URL,
    api_key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """List batches, newest first."""
    with service(url, api_key) as client:
        found = client.batches(limit=limit, after=after)
    if as_json:
        print_json(list(found))
    else:
        print_table(
            [(batch.id, batch.status, _counted(batch), _when(batch)) for batch in found],
            empty="there are no such batches",
        )


@app.command(epilog=examples(_STARTED, "stoker batch cancel $id"))
def cancel(
    batch_id: IdArgument, *, url: UrlOption = URL, api_key: KeyOption = None, as_json: JsonOption = False
) -> None:
    """Cancel a batch; what is finished stays."""
    with service(url, api_key) as client:
        _show(client.cancel_batch(batch_id), as_json=as_json)


@app.command(
    epilog=examples(
        _STARTED,
        "stoker batch wait $id",
        "stoker batch results $id -o results.jsonl",
        "stoker batch results $id | jq -c .",
    )
)
def results(
    batch_id: IdArgument,
    *,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="File to write, instead of printing.")] = None,
    errors: Annotated[bool, typer.Option("--errors", help="The requests that did not succeed.")] = False,
    url: UrlOption = URL,
    api_key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print the results of a batch, once it has ended.

    They are JSON Lines, with --json or without.
    """
    del as_json
    with service(url, api_key) as client:
        batch = client.get_batch(batch_id)
        file_id = batch.error_file_id if errors else batch.output_file_id
        if file_id is None:
            what = "errors" if errors else "results"
            fail(
                f"{batch.id} has no {what}" if batch.ended else f"{batch.id} is {batch.status}: {what} come at its end"
            )
        if output:
            with writing(output):
                client.download_file(file_id, output)
        else:
            print_file(lambda file: client.download_file(file_id, file))


def _uploaded(client: Client, source: str) -> str:
    from stoker.progress import display

    with display() as shown:
        return client.upload_file(source, on_progress=shown.sent).id


def _waited(client: Client, batch_id: str, timeout: float | None) -> Batch:
    from stoker.progress import display

    with display() as shown:
        return client.wait_batch(batch_id, timeout, lambda batch: shown.say(f"{batch.id}: {_counted(batch)} done"))


def _show(batch: Batch, *, as_json: bool) -> None:
    if as_json:
        print_json(batch)
        return
    say(f"{batch.id}  {batch.status}")
    say(f"  {_counted(batch)} done, {batch.request_counts.get('failed', 0)} failed, {batch.endpoint}")
    for error in (batch.errors or {}).get("data") or ():
        say(f"  {problem(error)}")


def _counted(batch: Batch) -> str:
    counts = batch.request_counts
    return f"{counts.get('completed', 0) + counts.get('failed', 0)} of {counts.get('total', 0)}"


def _end(batch: Batch) -> None:
    """End the program as a batch ended: 0 when all requests succeeded, 3 when some did not, 1 when it failed."""
    if batch.status == "failed":
        found = (batch.errors or {}).get("data") or ()
        fail("; ".join([f"{batch.id} failed", *(problem(error) for error in found[:3])]))
    counts = batch.request_counts
    if batch.status != "completed" or counts.get("completed") != counts.get("total"):
        raise typer.Exit(SOME_FAILED)


def _when(batch: Batch) -> str:
    return "" if batch.created_at is None else f"{duration(max(0.0, time.time() - batch.created_at))} ago"


def _is_file_id(source: str) -> bool:
    return source.startswith("file-") and not Path(source).exists()
