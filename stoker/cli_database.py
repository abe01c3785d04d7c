"""How commands open the database: by its settings, and what goes wrong is one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from stoker.console import fail, settings_errors

if TYPE_CHECKING:
    from models.db import Database
    from stoker.settings import Settings


@contextmanager
def opened(data: Path | None, database_url: str | None) -> Iterator[Database]:
    """Open the database of the settings; what goes wrong with it is one line."""
    from models.db import Database

    settings = settings_of(data, database_url)
    with database_errors(), closing(Database(settings.database, pool_size=1)) as database:
        yield database


def settings_of(data: Path | None, database_url: str | None) -> Settings:
    """Return the settings of the environment and of a command's options; what is wrong with them is one line."""
    from stoker.settings import load

    given = {name: value for name, value in (("data", data), ("database_url", database_url)) if value}
    with settings_errors():
        return load(**given)


@contextmanager
def database_errors() -> Iterator[None]:
    """End the program with one line when something is wrong with the database."""
    from alembic.util import CommandError
    from sqlalchemy.exc import SQLAlchemyError

    from models.errors import StokerError

    try:
        yield
    except (SQLAlchemyError, StokerError, CommandError) as error:
        fail(str(getattr(error, "orig", None) or error).strip().partition("\n")[0])
