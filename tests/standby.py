"""A standby of a PostgreSQL, by streaming replication, for tests: it can be read, and be held up."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg

from tests import servers


class Standby(servers.Postgres):
    """A server that repeats what its primary does, unless it is paused."""

    def pause(self) -> None:
        """Repeat nothing from now on."""
        self._ask("SELECT pg_wal_replay_pause()")

    def resume(self) -> None:
        """Repeat what has come meanwhile, and go on."""
        self._ask("SELECT pg_wal_replay_resume()")

    def _ask(self, statement: str) -> None:
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(statement.encode())


@contextmanager
def standby(primary: servers.Postgres) -> Iterator[Standby]:
    """Run a standby of a server that runs. Raises ServerError."""
    account = servers.nobody()
    with servers.own_folder("standby") as folder:
        programs = servers.postgres_programs(folder, account)
        data = folder / "data"
        data.mkdir(mode=0o700)
        if account is not None:
            account.own(data)
        _copy(programs, primary, data, account)
        options = {"listen_addresses": "127.0.0.1", "unix_socket_directories": "", "fsync": "off"}
        options |= {"max_connections": "200", "hot_standby": "on"}
        run = [str(programs / "postgres"), "-D", str(data)]
        run += [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        with servers.running(Standby(lambda port: [*run, "-p", str(port)], folder, account)) as server:
            yield server


def _copy(programs: Path, primary: servers.Postgres, data: Path, account: servers.Account | None) -> None:
    command = [str(programs / "pg_basebackup"), "-D", str(data), "-h", "127.0.0.1", "-p", str(primary.port)]
    command += ["-U", "stoker", "--write-recovery-conf", "--wal-method=stream", "--checkpoint=fast", "--no-sync"]
    made = servers.spawn(command, account, subprocess.PIPE)
    said, _ = made.communicate(timeout=servers.PATIENCE)
    if made.returncode:
        raise servers.ServerError(f"pg_basebackup failed:\n{said.decode(errors='replace')[-2000:]}")
