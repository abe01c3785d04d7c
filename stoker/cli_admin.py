"""The commands that look after the database and its keys."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stoker.console import DatabaseOption, DataOption, JsonOption, fail, settings_errors

if TYPE_CHECKING:
    from models.db import Database

db = typer.Typer(help="The database's tables.", no_args_is_help=True)
keys = typer.Typer(help="API keys and secrets.", no_args_is_help=True)


@db.command()
def upgrade(data: DataOption = None, database_url: DatabaseOption = None) -> None:
    """Bring the database's tables up to this version; nothing happens when they are."""
    from models import schema

    with _database(data, database_url) as database:
        schema.upgrade(database)
    typer.echo("the database is up to date")


@db.command()
def check(data: DataOption = None, database_url: DatabaseOption = None) -> None:
    """Fail unless the database's tables are those of this version."""
    from models import schema

    with _database(data, database_url) as database:
        schema.check(database)
    typer.echo("the database is up to date")


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
    from alembic.util import CommandError
    from sqlalchemy.exc import SQLAlchemyError

    from models.db import Database
    from models.errors import StokerError
    from stoker.settings import load

    given = {name: value for name, value in (("data", data), ("database_url", database_url)) if value}
    with settings_errors():
        settings = load(**given)
    try:
        with closing(Database(settings.database, pool_size=1)) as database:
            yield database
    except (SQLAlchemyError, StokerError, CommandError) as error:
        fail(str(getattr(error, "orig", None) or error).strip().partition("\n")[0])
