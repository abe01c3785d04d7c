"""A PgBouncer in transaction mode before a PostgreSQL, for tests: nothing of it outlives the run."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg

from models import pooling, postgres_session
from tests import servers
from tests.debian import programs

_INI = """\
[databases]
* = host=127.0.0.1 port={port} user=stoker{query}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {own}
unix_socket_dir =
auth_type = trust
auth_file = {folder}/users
admin_users = stoker
pool_mode = transaction
default_pool_size = {size}
max_client_conn = 1000
"""


class PgBouncer(servers.Server):
    """A pool on a loopback port, before every database of one PostgreSQL."""

    def url(self, database: str) -> str:
        """Return the URL of a database, as STOKER_DATABASE_URL takes it."""
        return f"postgresql://stoker@127.0.0.1:{self.port}/{database}?pgbouncer=true"

    def answers(self) -> bool:
        """Tell whether it takes connections."""
        with suppress(psycopg.OperationalError), psycopg.connect(f"{self._admin()} connect_timeout=5", autocommit=True):
            return True
        return False

    def shown(self, what: str) -> list[dict[str, object]]:
        """Return what a SHOW command of its console tells."""
        with psycopg.connect(self._admin(), autocommit=True, row_factory=psycopg.rows.dict_row) as console:
            # Its console knows simple queries only.
            return psycopg.ClientCursor(console).execute(f"SHOW {what}".encode()).fetchall()

    def _admin(self) -> str:
        return f"host=127.0.0.1 port={self.port} user=stoker dbname=pgbouncer"


@contextmanager
def pgbouncer(before: servers.Postgres, *, size: int = 20, telling: bool = True) -> Iterator[PgBouncer]:
    """Run a PgBouncer with so many sessions a database; `telling`: it tells them what it should."""
    query = f" connect_query='{pooling.connect_query(postgres_session.POOLED)}'" if telling else ""
    account = servers.nobody()
    with servers.own_folder("pgbouncer") as folder:
        program = _program(folder)
        (folder / "users").write_text('"stoker" ""\n')
        ini = folder / "pgbouncer.ini"

        def command(own: int) -> list[str]:
            ini.write_text(_INI.format(port=before.port, own=own, folder=folder, size=size, query=query))
            return [str(program), str(ini)]

        with servers.running(PgBouncer(command, folder, account)) as server:
            yield server


def _program(folder: Path) -> Path:
    """Return the program, where the account can run it: under root's home, say, nobody else may."""
    found = programs("pgbouncer")
    if not (found.parent / "usr").is_dir():
        return found / "pgbouncer"
    shutil.copytree(found.parent, folder / "installed", symlinks=True)
    return folder / "installed" / "bin" / "pgbouncer"
