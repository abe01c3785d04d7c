"""`stoker bulk submit` and `dry-run`: upload prompts, and leave them to run or have them only checked."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stoker.cli_bulks import end, problem, started
from stoker.cli_http import (
    SOME_FAILED,
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
from stoker.console import URL, JsonOption, KeyOption, UrlOption, examples, say

if TYPE_CHECKING:
    from stoker.client import Bulk, Client

app = typer.Typer()


@app.command(
    epilog=examples(
        "stoker bulk submit prompts.jsonl --max-tokens 200 --metadata run=7",
        "cat prompts.jsonl | stoker bulk submit - --lane standard",
    )
)
def submit(  # noqa: PLR0913  # a command's options
    source: Annotated[
        str, typer.Argument(metavar="INPUT", help="JSON Lines or CSV, .gz or not; s3://...; - reads JSON Lines.")
    ],
    *,
    model: ModelOption = None,
    max_tokens: MaxTokensOption = None,
    system: SystemOption = None,
    lane: LaneOption = None,
    param: ParamOption = None,
    metadata: MetadataOption = None,
    stop_after_failed: ShareOption = None,
    key: Annotated[
        str | None, typer.Option(metavar="KEY", help="Idempotency-Key: the same key is the same bulk.")
    ] = None,
    url: UrlOption = URL,
    api_key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Upload prompts, and leave them to run; print the bulk's id."""
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
        started(_uploaded(client, source, params, key), as_json=as_json)


@app.command(epilog=examples("stoker bulk dry-run prompts.jsonl --max-tokens 200"))
def dry_run(
    source: InputArgument,
    *,
    model: ModelOption = None,
    max_tokens: MaxTokensOption = None,
    system: SystemOption = None,
    param: ParamOption = None,
    url: UrlOption = URL,
    api_key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Have prompts checked, none of them run.

    The status is 0 when all lines can run, 3 when some cannot.
    """
    from stoker.progress import display

    params = parameters(param, model=model, max_tokens=max_tokens, system=system, dry_run=True)
    with service(url, api_key) as client:
        started_as = _uploaded(client, str(source), params, None)
        with display() as shown:
            bulk = client.wait_bulk(started_as.id, None, shown.look)
    if as_json:
        print_json(bulk)
    elif bulk.report:
        _report(bulk.report)
    if bulk.state == "failed":
        end(bulk)
    if bulk.report and bulk.report.get("invalid"):
        raise typer.Exit(SOME_FAILED)


def _uploaded(client: Client, source: str, params: Mapping[str, Any], key: str | None) -> Bulk:
    from stoker.progress import display

    if "://" in source:
        return client.bulk_from(input_url=source, idempotency_key=key, **params)
    with display() as shown:
        given = sys.stdin.buffer if source == "-" else source
        return client.bulk(given, idempotency_key=key, on_progress=shown.sent, **params)


def _report(report: Mapping[str, Any]) -> None:
    say(f"{report.get('lines')} lines, {report.get('invalid')} of them cannot run")
    say(f"  about {report.get('tokens')} tokens")
    if report.get("eta") is not None:
        say(f"  about {duration(report['eta'])}")
    for error in report.get("errors") or ():
        say(f"  {problem(error)}")
