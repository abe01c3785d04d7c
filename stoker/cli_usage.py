"""The command that shows what was used, over HTTP."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from stoker.cli_http import print_json, print_table, service
from stoker.console import URL, JsonOption, KeyOption, UrlOption, examples

app = typer.Typer()

_JOBS = ("succeeded", "failed", "cancelled", "expired")
_TOKENS = ("prompt", "completion", "cached")


@app.command(epilog=examples("stoker usage --days 30", "stoker usage --all-owners --json"))
def usage(
    *,
    days: Annotated[int, typer.Option(min=1, max=3660, help="The last so many days, today among them; UTC.")] = 7,
    model: Annotated[str | None, typer.Option(help="Only this model.")] = None,
    all_owners: Annotated[bool, typer.Option("--all-owners", help="Of everybody; needs the scope admin.")] = False,
    url: UrlOption = URL,
    api_key: KeyOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show jobs and tokens by day and model."""
    today = datetime.now(UTC).date()
    with service(url, api_key) as client:
        rows = client.usage(
            first=(today - timedelta(days=days - 1)).isoformat(), model=model, owner="*" if all_owners else None
        )
    if as_json:
        print_json([asdict(row) for row in rows])
        return
    titles = ("DATE", "OWNER", "MODEL", "SUCCEEDED", "FAILED", "CANCELLED", "EXPIRED", "PROMPT", "COMPLETION", "CACHED")
    print_table(
        [titles, *((row.date, row.owner, row.model, *_of(row.jobs, _JOBS), *_of(row.tokens, _TOKENS)) for row in rows)]
    )
    if not rows:
        typer.echo("nothing was used in these days", err=True)


def _of(counts: Mapping[str, int], names: Sequence[str]) -> tuple[int, ...]:
    return tuple(counts.get(name, 0) for name in names)
