"""The commands that look after API keys and other secrets; they speak to the database, not to the service."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stoker.cli_database import opened
from stoker.cli_http import print_table
from stoker.console import DatabaseOption, DataOption, JsonOption, examples, fail, json_line, words

if TYPE_CHECKING:
    from collections.abc import Iterator

    from models.keys import NewKey

app = typer.Typer(help="API keys and secrets.", no_args_is_help=True)

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_LONGEST = 100 * 365 * 86_400

_SCOPES = words("submit", "read", "admin", "submit,read", "submit,read,admin")
_FOUND = "id=$(stoker keys list --owner alice --json | jq -r '.[0].id')"
"""How examples come to the id of a key."""

KeyArgument = Annotated[str, typer.Argument(metavar="ID", help="key_..., as `stoker keys list` has it.")]


@app.command(
    epilog=examples(
        "stoker keys create --owner alice",
        "stoker keys create --owner ci --name nightly --scopes submit,read --expires 90d --limit jobs_queued=5000",
    )
)
def create(  # a command's options
    owner: Annotated[str, typer.Option(help="Who the key is for; sees only its own jobs.")],
    *,
    name: Annotated[str, typer.Option(help="What it is for, as lists show it.")] = "",
    scopes: Annotated[
        str, typer.Option(help="What it may do, by commas: submit, read, admin.", autocompletion=_SCOPES)
    ] = "submit,read",
    expires: Annotated[str | None, typer.Option(metavar="TIME", help="90d, 12h: until then.  [default: never]")] = None,
    limit: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=NUMBER", help="A limit of its own, 0 for none; several are fine (docs/keys.md)."),
    ] = None,
    data: DataOption = None,
    database_url: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make an API key and print it, once.

    From the first key on, every request needs one.
    """
    from models import key_limits, keys, schema

    if not keys.OWNER.fullmatch(owner):
        fail("--owner takes 1 to 64 characters without blanks and without *", 2)
    chosen = [scope.strip() for scope in scopes.split(",") if scope.strip()]
    if not chosen or not set(chosen) <= set(keys.SCOPES):
        fail(f"--scopes takes some of {', '.join(keys.SCOPES)}, by commas", 2)
    try:
        limits = key_limits.parse(limit or ())
    except key_limits.BadLimit as error:
        fail(f"--limit: {error}", 2)
    lasts = None if expires is None else _seconds(expires, "--expires")
    with opened(data, database_url) as database:
        schema.check(database)
        with database.transaction() as tx:
            made = keys.create(tx, owner, name=name, scopes=chosen, expires_in=lasts, limits=limits)
    _show(made, as_json=as_json)


@app.command("list", epilog=examples("stoker keys list", "stoker keys list --owner alice --json"))
def list_(
    *,
    owner: Annotated[str | None, typer.Option(help="Only this owner's.")] = None,
    data: DataOption = None,
    database_url: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """List API keys, newest first: owner, scopes, last use."""
    from models import keys, schema

    with opened(data, database_url) as database:
        schema.check(database)
        with database.reading() as tx:
            rows = [row._asdict() for row in keys.page(tx, owner)]
    if as_json:
        typer.echo(json_line(rows))
    elif rows:
        titles = ("ID", "STATE", "OWNER", "NAME", "KEY", "SCOPES", "CREATED", "EXPIRES", "LAST USED", "LIMITS")
        print_table([titles, *(tuple(_cells(row)) for row in rows)])
    else:
        typer.echo("there are no keys" + ("" if owner is None else f" of {owner}"))


@app.command(epilog=examples(_FOUND, "stoker keys revoke $id"))
def revoke(ident: KeyArgument, *, data: DataOption = None, database_url: DatabaseOption = None) -> None:
    """Revoke an API key, for good.

    Within three seconds it opens nothing any more.
    """
    from models import keys, schema

    with opened(data, database_url) as database:
        schema.check(database)
        with database.transaction() as tx:
            revoked = keys.revoke(tx, ident)
            closed = keys.any_exist(tx)
    typer.echo(f"{ident} is revoked" if revoked else f"{ident} was revoked already")
    if not closed:
        typer.echo("this was the last key: on 127.0.0.1 the service is now open to this machine without one", err=True)


@app.command(epilog=examples(_FOUND, "stoker keys rotate $id --overlap 7d"))
def rotate(
    ident: KeyArgument,
    *,
    overlap: Annotated[str, typer.Option(metavar="TIME", help="How long the old key still works.")] = "24h",
    data: DataOption = None,
    database_url: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a new key in place of one, and print it, once.

    The old one expires after the overlap.
    """
    from models import keys, schema

    lasts = _seconds(overlap, "--overlap")
    with opened(data, database_url) as database:
        schema.check(database)
        with database.transaction() as tx:
            made = keys.rotate(tx, ident, lasts)
    _show(made, as_json=as_json)


@app.command(epilog=examples("export STOKER_WEBHOOK_SECRET=$(stoker keys webhook-secret)"))
def webhook_secret() -> None:
    """Print a new STOKER_WEBHOOK_SECRET, which signs webhooks."""
    from stoker.local import new_webhook_secret

    typer.echo(new_webhook_secret())


@app.command(epilog=examples("export STOKER_SECRET_KEY=$(stoker keys secret-key)"))
def secret_key() -> None:
    """Print a new STOKER_SECRET_KEY, which seals stored secrets.

    Keep a copy of it apart from backups.
    """
    from models.sealing import new_key

    typer.echo(new_key())


def _show(made: NewKey, *, as_json: bool) -> None:
    typer.echo(json.dumps({"id": made.id, "owner": made.owner, "key": made.secret}) if as_json else made.secret)


def _seconds(text: str, option: str) -> float:
    found = re.fullmatch(r"(\d{1,9})([smhd])", text.strip())
    if found is None or int(found[1]) * _UNITS[found[2]] > _LONGEST:
        fail(f"{option} takes a time like 90d, 12h, 30m or 45s, of 100 years at most", 2)
    return float(int(found[1]) * _UNITS[found[2]])


def _cells(row: dict[str, Any]) -> Iterator[str]:
    yield from (row["id"], row["state"], row["owner"], row["name"] or "-", f"{row['prefix']}...")
    yield row["scopes"].replace(" ", ",")
    yield from (_when(row[name]) for name in ("created_at", "expires_at", "last_used_at"))
    yield ",".join(f"{name}={value:g}" for name, value in (row["limits"] or {}).items()) or "-"


def _when(at: float | None) -> str:
    return "-" if at is None else datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M")
