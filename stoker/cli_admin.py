"""The commands that look after the database and its keys."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stoker.console import DatabaseOption, DataOption, JsonOption, fail, settings_errors, tell

if TYPE_CHECKING:
    from models.db import Database
    from stoker.settings import Settings

db = typer.Typer(help="The database's tables.", no_args_is_help=True)
care = typer.Typer()
keys = typer.Typer(help="API keys and secrets.", no_args_is_help=True)


_SIGNS = {"ok": "ok", "warning": "warning", "problem": "PROBLEM"}


@care.command(epilog="Examples:\n\n  stoker doctor --data /srv/stoker\n\n  stoker doctor --json --min-free 20")
def doctor(
    *,
    data: DataOption = None,
    database_url: DatabaseOption = None,
    redis_url: Annotated[
        str | None, typer.Option(envvar="STOKER_REDIS_URL", help="Redis to look at.  [default: that of the service]")
    ] = None,
    url: Annotated[str | None, typer.Option(help="Address of the web server.  [default: that of the service]")] = None,
    min_free: Annotated[float, typer.Option(min=0, help="Gigabytes of disk below which it is a problem.")] = 1.0,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds that each part may take to be looked at.")] = 20.0,
    as_json: JsonOption = False,
) -> None:
    """Look at every part of a service and say what to do; changes nothing. Status 1: there is a problem."""
    from stoker import doctor as doctors
    from stoker.finding import worst

    options = {"data": data, "database_url": database_url, "redis_url": redis_url}
    given = {name: value for name, value in options.items() if value}
    with settings_errors():
        found = doctors.examine(given, url=url, min_free=min_free, patience=timeout)
    status = worst(found)
    if as_json:
        typer.echo(json.dumps({"status": status, "checks": [asdict(finding) for finding in found]}))
    else:
        for finding in found:
            typer.echo(f"{_SIGNS[finding.status]:<8} {finding.check:<13} {finding.says}")
            if finding.do:
                typer.echo(f"{'':<22} -> {finding.do}")
    raise typer.Exit(1 if status == "problem" else 0)


@care.command(epilog="Examples:\n\n  stoker restart --data /srv/stoker\n\n  stoker restart web worker")
def restart(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="As `stoker ps` has them.  [default: all but redis]")
    ] = None,
    data: DataOption = None,
) -> None:
    """Restart the processes of a `stoker up` one after the other, each well again before the next: no job is lost."""
    from stoker.restart import RestartError
    from stoker.restart import restart as run

    try:
        run((data or Path("var")).expanduser().absolute(), names or (), tell)
    except RestartError as error:
        fail(str(error))


@db.command()
def upgrade(data: DataOption = None, database_url: DatabaseOption = None) -> None:
    """Bring the database's tables up to this version; nothing happens when they are."""
    from models import schema

    with _database(data, database_url) as database:
        schema.upgrade(database, tell)
    typer.echo("the database is up to date")


@db.command(epilog="Example: stoker db backup /backup/stoker-monday.db --data /srv/stoker")
def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file that does not exist yet.")],
    data: DataOption = None,
    database_url: DatabaseOption = None,
) -> None:
    """Copy the database to a file, as it is at one moment; the service may run. Files are apart: docs/operating.md."""
    from stoker import backup as backups

    with _errors():
        size = backups.backup(_settings(data, database_url), file)
    typer.echo(f"{file}: {size:,} bytes")


@db.command(epilog="Example: stoker db restore /backup/stoker-monday.db --data /srv/new")
def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `stoker db backup` wrote.")],
    data: DataOption = None,
    database_url: DatabaseOption = None,
) -> None:
    """Fill an empty database from a backup, before the service is started; what ran then is queued again."""
    from stoker import backup as backups

    with _errors():
        returned = backups.restore(_settings(data, database_url), file)
    typer.echo(f"restored; batches that were under way and are queued again: {returned}")


@db.command()
def check(data: DataOption = None, database_url: DatabaseOption = None) -> None:
    """Fail unless this version works with the database's tables."""
    from models import schema

    with _database(data, database_url) as database:
        newer = schema.check(database)
    typer.echo(f"the database is newer ({newer}), and compatible" if newer else "the database is up to date")


@keys.command(epilog="Example: stoker keys create --owner alice")
def create(
    owner: Annotated[str, typer.Option(help="Who the key is for; sees only its own jobs.")],
    *,
    data: DataOption = None,
    database_url: DatabaseOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make an API key and print it, once. From the first key on, every request needs one."""
    from models import keys as api_keys
    from models import schema

    with _database(data, database_url) as database:
        schema.check(database)
        with database.transaction() as tx:
            made = api_keys.create(tx, owner)
    typer.echo(json.dumps({"id": made.id, "owner": made.owner, "key": made.secret}) if as_json else made.secret)


@keys.command()
def webhook_secret() -> None:
    """Print a new secret for STOKER_WEBHOOK_SECRET, with which webhooks are signed."""
    from stoker.local import new_webhook_secret

    typer.echo(new_webhook_secret())


@contextmanager
def _database(data: Path | None, database_url: str | None) -> Iterator[Database]:
    """Open the database of the settings; what goes wrong with it is one line."""
    from models.db import Database

    settings = _settings(data, database_url)
    with _errors(), closing(Database(settings.database, pool_size=1)) as database:
        yield database


def _settings(data: Path | None, database_url: str | None) -> Settings:
    from stoker.settings import load

    given = {name: value for name, value in (("data", data), ("database_url", database_url)) if value}
    with settings_errors():
        return load(**given)


@contextmanager
def _errors() -> Iterator[None]:
    """End the program with one line when something is wrong with the database."""
    from alembic.util import CommandError
    from sqlalchemy.exc import SQLAlchemyError

    from models.errors import StokerError

    try:
        yield
    except (SQLAlchemyError, StokerError, CommandError) as error:
        fail(str(getattr(error, "orig", None) or error).strip().partition("\n")[0])
