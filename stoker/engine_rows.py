"""What a supervisor reads and writes of the engine that it runs, in the database: nothing, while that is away."""

from __future__ import annotations

from contextlib import closing
from functools import partial

from stoker.settings import Settings


def give_back(settings: Settings) -> None:
    """End what an engine left that died together with its supervisor: whoever ended both, it was no prompt."""
    from models import cohorts, engines
    from models.db import Database
    from models.errors import DatabaseUnavailable
    from tasks import reaper

    with closing(Database(settings.database, pool_size=1)) as database:
        try:
            with database.reading() as tx:
                old = engines.predecessor(tx, settings.engine_name)
            if old is not None and reaper.has_died(old):
                limit = settings.max_attempts
                database.retrying(partial(cohorts.vanish, gone=old, max_attempts=limit, charge=False))
        except DatabaseUnavailable:
            return  # its next process does it, and blames the jobs that were alone there


def has_opened(settings: Settings, pid: int) -> bool:
    """Tell whether a process of the engine got as far as taking work."""
    from models import engines
    from models.db import Database
    from models.errors import DatabaseUnavailable

    with closing(Database(settings.database, pool_size=1)) as database:
        try:
            with database.reading() as tx:
                return engines.has_opened(tx, settings.engine_name, pid)
        except DatabaseUnavailable:
            return False
