"""The commands that look after a service and its database."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from stoker.cli_database import database_errors, opened, settings_of
from stoker.console import (
    DatabaseOption,
    DataOption,
    JsonOption,
    examples,
    fail,
    json_line,
    say,
    settings_errors,
    tell,
    words,
)
from stoker.progress import working

db = typer.Typer(help="The database's tables.", no_args_is_help=True)
care = typer.Typer()


_NAMES = words("web", "collector", "worker", "bulk", "engine", "beat", "redis")
_SIGNS = {"ok": "ok", "warning": "warning", "problem": "PROBLEM"}


@care.command(epilog=examples("stoker doctor --data /srv/stoker", "stoker doctor --json --min-free 0.5"))
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
    """Look at every part of a service, and say what to do.

    It changes nothing. The status is 1 when there is a problem, 0 when there are at most warnings.
    """
    from stoker import doctor as doctors
    from stoker.finding import worst

    options = {"data": data, "database_url": database_url, "redis_url": redis_url}
    given = {name: value for name, value in options.items() if value}
    with settings_errors(), working("looking at every part"):
        found = doctors.examine(given, url=url, min_free=min_free, patience=timeout)
    status = worst(found)
    if as_json:
        typer.echo(json_line({"status": status, "checks": [asdict(finding) for finding in found]}))
    else:
        for finding in found:
            say(f"{_SIGNS[finding.status]:<8} {finding.check:<13} {finding.says}")
            if finding.do:
                say(f"{'':<22} -> {finding.do}")
    raise typer.Exit(1 if status == "problem" else 0)


@care.command(epilog=examples("stoker restart --data /srv/stoker", "stoker restart web worker"))
def restart(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME]...", help="As `stoker ps` has them.  [default: all but redis]", autocompletion=_NAMES
        ),
    ] = None,
    data: DataOption = None,
) -> None:
    """Restart processes of a `stoker up`, one after the other.

    Each does its work again before the next one is restarted: no job is lost, and the service goes on.
    """
    from stoker.restart import RestartError
    from stoker.restart import restart as run

    try:
        with working("restarting"):
            run((data or Path("var")).expanduser().absolute(), names or (), tell)
    except RestartError as error:
        fail(str(error))


@db.command(epilog=examples("stoker db upgrade --data /srv/stoker"))
def upgrade(data: DataOption = None, database_url: DatabaseOption = None) -> None:
    """Bring the database's tables up to this version.

    Nothing happens when they are. The service may run meanwhile.
    """
    from models import schema
    from stoker.local import secret_key

    settings = settings_of(data, database_url)
    if not settings.database_url:
        settings.data.mkdir(mode=0o700, parents=True, exist_ok=True)
    with opened(data, database_url) as database, working("bringing the tables up"):
        schema.upgrade(database, tell)
    if not settings.database_url and not settings.secret_key:
        # One machine, and perhaps an older `stoker up` that runs and made none: the new code finds it here.
        secret_key(settings.data)
    typer.echo("the database is up to date")


@db.command(epilog=examples("stoker db backup stoker-monday.db --data /srv/stoker"))
def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file that does not exist yet.")],
    data: DataOption = None,
    database_url: DatabaseOption = None,
) -> None:
    """Copy the database to a file, as it is at one moment.

    The service may run. Files are apart, and so is the key that secrets are sealed with: docs/operating.md.
    """
    from stoker import backup as backups

    part = file.with_name(f".{file.name}.part")
    with database_errors(), working(f"writing {file}", part):
        size = backups.backup(settings_of(data, database_url), file)
    typer.echo(f"{file}: {size:,} bytes")


@db.command(epilog=examples("stoker db restore stoker-monday.db --data /srv/new"))
def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `stoker db backup` wrote.")],
    data: DataOption = None,
    database_url: DatabaseOption = None,
) -> None:
    """Fill an empty database from a backup.

    It is for a service that does not run yet; what ran when the backup was made is queued again.
    """
    from stoker import backup as backups

    with database_errors(), working(f"reading {file}"):
        returned = backups.restore(settings_of(data, database_url), file)
    typer.echo(f"restored; batches that were under way and are queued again: {returned}")


@db.command(epilog=examples('STOKER_SECRET_KEY="$NEW $OLD" stoker db reseal --data /srv/stoker'))
def reseal(data: DataOption = None, database_url: DatabaseOption = None) -> None:
    """Seal every stored secret with the newest of the secret keys.

    The service may run. Afterwards the old keys can go.
    """
    from models import resealing, schema
    from models.sealing import seal_of

    with database_errors():
        seal = seal_of(settings_of(data, database_url))
    with opened(data, database_url) as database, working("sealing"):
        schema.check(database)
        done = resealing.reseal(database, seal)
    typer.echo(f"sealed anew: {done.changed}; with the newest key already: {done.kept}")
    if done.lost:
        fail(f"{done.lost} secrets can be opened with none of the keys: they are lost unless their key is found")


@db.command(epilog=examples("stoker db check --data /srv/stoker"))
def check(data: DataOption = None, database_url: DatabaseOption = None) -> None:
    """Fail unless this version works with the database's tables."""
    from models import schema

    with opened(data, database_url) as database:
        newer = schema.check(database)
    typer.echo(f"the database is newer ({newer}), and compatible" if newer else "the database is up to date")
