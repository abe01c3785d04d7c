"""`stoker bulk run` and the other commands that start a bulk."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stoker.cli_bulks import FormatOption, IdArgument, end, started
from stoker.cli_http import (
    INTERRUPTED,
    InputArgument,
    LaneOption,
    MaxTokensOption,
    MetadataOption,
    ModelOption,
    ParamOption,
    ShareOption,
    SystemOption,
    duration,
    parameters,
    print_json,
    service,
)
from stoker.console import URL, JsonOption, KeyOption, UrlOption, examples, fail, say

if TYPE_CHECKING:
    from stoker.bulk_run import BulkRun, Plan
    from stoker.client import Bulk, Client

app = typer.Typer()

GRACE = 2.0
"""Seconds in which a second Ctrl-C cancels the bulk."""
_NOT_FOUND = 404

OutputOption = Annotated[
    Path | None, typer.Option("--output", "-o", help="Where results go.  [default: INPUT.results.jsonl]")
]
ErrorsOption = Annotated[
    Path | None, typer.Option("--errors", help="Where lines go that did not succeed.  [default: OUTPUT.errors.jsonl]")
]
CancelOption = Annotated[bool, typer.Option("--cancel-on-interrupt", help="Ctrl-C cancels the bulk, too.")]


@app.command(
    epilog=examples(
        "stoker bulk run prompts.jsonl -o results.jsonl --max-tokens 200 -p temperature=0",
        "stoker bulk run prompts.csv --format csv",
    )
)
def run(  # noqa: PLR0913  # a command's options
    source: InputArgument,
    *,
    output: OutputOption = None,
    errors: ErrorsOption = None,
    model: ModelOption = None,
    max_tokens: MaxTokensOption = None,
    system: SystemOption = None,
    lane: LaneOption = None,
    param: ParamOption = None,
    metadata: MetadataOption = None,
    stop_after_failed: ShareOption = None,
    kind: FormatOption = "jsonl",
    cancel_on_interrupt: CancelOption = False,
    url: UrlOption = URL,
    api_key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Upload prompts, and write results as they come.

    Interrupted, or cut off by anything else, the same command goes on where it was: the bulk runs on meanwhile.
    Ctrl-C twice cancels it. The status is 0 when all lines succeeded, 3 when some did not.
    """
    from stoker.progress import working
    from stoker.run_state import fingerprint

    params = parameters(
        param,
        metadata,
        model=model,
        max_tokens=max_tokens,
        system=system,
        lane=lane,
        stop_after_failed=stop_after_failed,
    )
    with service(url, api_key) as client:
        with working(f"reading {source}"):
            read = fingerprint(source)
        plan = _plan(
            read,
            params,
            lambda key, sent: client.bulk(source, idempotency_key=key, on_progress=sent, **params),
            output or _beside(source, "results", kind),
            errors,
            kind,
        )
        _run(client, url, plan, cancel=cancel_on_interrupt, as_json=as_json)


@app.command(
    epilog=examples(
        "id=$(stoker bulk list --state completed --limit 1 --json | jq -r '.[0].id')",
        "stoker bulk retry $id -p max_tokens=500 -o again.jsonl",
    )
)
def retry(  # noqa: PLR0913  # a command's options
    bulk_id: IdArgument,
    *,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Follow the new bulk and write its results here.")
    ] = None,
    errors: ErrorsOption = None,
    model: Annotated[str | None, typer.Option(help="Another model.")] = None,
    max_tokens: MaxTokensOption = None,
    param: ParamOption = None,
    kind: FormatOption = "jsonl",
    cancel_on_interrupt: CancelOption = False,
    url: UrlOption = URL,
    api_key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run failed lines again, as a new bulk.

    Parameters given here replace those of each line. Without --output the new bulk's id is printed.
    """
    changes = parameters(param, model=model, max_tokens=max_tokens)
    with service(url, api_key) as client:
        if output is None:
            started(client.retry_bulk(bulk_id, **changes), as_json=as_json)
            return
        source = {"retry_of": bulk_id}
        start = lambda key, _: client.retry_bulk(bulk_id, idempotency_key=key, **changes)  # noqa: E731  # as in run
        plan = _plan(source, changes, start, output, errors, kind)
        _run(client, url, plan, cancel=cancel_on_interrupt, as_json=as_json)


def _plan(
    source: Mapping[str, Any],
    params: Mapping[str, Any],
    start: Callable[..., Bulk],
    output: Path,
    errors: Path | None,
    kind: str,
) -> Plan:
    from stoker.bulk_run import Plan

    return Plan(source, params, start, output, errors or _beside(output, "errors", "jsonl"), kind)


def _run(client: Client, url: str, plan: Plan, *, cancel: bool, as_json: bool) -> None:
    from stoker.bulk_run import BulkRun
    from stoker.client import StokerAPIError
    from stoker.progress import display
    from stoker.run_state import RunError

    began = time.monotonic()
    try:
        running = BulkRun(client, url, plan, display())
        try:
            bulk = running.run()
        except KeyboardInterrupt:
            _interrupted(client, running, cancel=cancel)
    except RunError as error:
        fail(str(error))
    except StokerAPIError as error:
        gone = error.status == _NOT_FOUND and plan.state.exists()
        anew = f" To begin anew, remove {plan.state}." if gone else ""
        fail(f"{error}{'; the same command goes on where it was' if error.temporary else anew}")
    _summary(bulk, plan, time.monotonic() - began, as_json=as_json)
    running.finish()
    end(bulk)


def _interrupted(client: Client, running: BulkRun, *, cancel: bool) -> None:
    """Say how to go on, and cancel the bulk if that is asked for, now or by a second Ctrl-C."""
    from stoker.client import StokerAPIError

    if not running.bulk_id:
        fail("interrupted while uploading: the same command begins the upload again", INTERRUPTED)
    try:
        say(f"\ninterrupted: {running.bulk_id} runs on, and the same command goes on reading it", err=True)
        if not cancel:
            say(f"Ctrl-C within {GRACE:g} s cancels it", err=True)
            time.sleep(GRACE)
    except KeyboardInterrupt:
        cancel = True
    if cancel:
        try:
            client.cancel_bulk(running.bulk_id)
        except StokerAPIError as error:
            fail(str(error), INTERRUPTED)
        say(f"{running.bulk_id} is cancelled; the same command fetches what was finished", err=True)
    raise typer.Exit(INTERRUPTED)


def _summary(bulk: Bulk, plan: Plan, seconds: float, *, as_json: bool) -> None:
    found = {"results": plan.output, "errors": plan.errors}
    paths = {name: str(path) if path.exists() else None for name, path in found.items()}
    if as_json:
        print_json({"bulk": asdict(bulk), **paths})
        return
    counts, usage = bulk.counts, bulk.usage or {}
    say(f"{bulk.id} {bulk.state}: {counts.succeeded} of {counts.total} succeeded in {duration(seconds)}")
    say(f"  tokens   {usage.get('prompt_tokens', 0)} read, {usage.get('completion_tokens', 0)} written")
    if paths["results"]:
        say(f"  results  {paths['results']}")
    if counts.done != counts.succeeded:
        say(f"  errors   {paths['errors']}")
    if counts.done != counts.succeeded + counts.invalid:
        say(f"  again    stoker bulk retry {bulk.id} -o {shlex.quote(str(_beside(plan.output, 'again', plan.format)))}")


def _beside(path: Path, what: str, kind: str) -> Path:
    """Return the name of a file that goes with another one: prompts.csv.gz, results -> prompts.results.jsonl."""
    stem = path.name.removesuffix(".gz")
    for suffix in (".jsonl", ".csv", ".parquet", ".ndjson", ".json"):
        stem = stem.removesuffix(suffix)
    return path.with_name(f"{stem}.{what}.{kind}")
