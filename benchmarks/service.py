"""A whole service to measure: a real database and Redis, and `stoker up` in a child. Nothing of it outlives the run."""

from __future__ import annotations

import argparse
import http.client
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import sqlalchemy as sa

from benchmarks.report import ROOT
from models.db import Database
from stoker import demo_model
from stoker.processes import Ledger
from stoker.settings import load
from tests import servers

PATIENCE = 900.0
STOP_WITHIN = 90.0
TICK = os.sysconf("SC_CLK_TCK")

# As in production: what Redis holds is on the disk within a second.
REDIS_OPTIONS = ("--appendonly", "yes", "--appendfsync", "everysec")

# Ends a group of processes when this process is gone, however it went.
_GUARD = 'read -r _; kill -s INT -- "-$1" 2>/dev/null || exit 0; sleep 60; kill -s KILL -- "-$1" 2>/dev/null'

_OPEN_JOBS = sa.text(
    "SELECT EXISTS (SELECT 1 FROM jobs WHERE state = 'queued' AND cohort_id IS NULL) "
    "OR EXISTS (SELECT 1 FROM jobs WHERE state = 'queued' AND cohort_id IS NOT NULL) "
    "OR EXISTS (SELECT 1 FROM jobs WHERE state IN ('batched', 'running')) "
    "OR EXISTS (SELECT 1 FROM jobs WHERE state = 'delayed')"
)


class BenchmarkError(Exception):
    """Something did not go as the benchmark needs it; the text says what."""


@dataclass
class Service:
    """A service that answers at `url`, with everything that a benchmark looks at from outside."""

    url: str
    data: Path
    redis: servers.Redis
    database: Database
    postgres: servers.Postgres | None
    model: str
    said: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict, repr=False)

    @property
    def redis_url(self) -> str:
        """Return Redis's URL."""
        return self.redis.url

    def rows(self, query: str, **values: object) -> Sequence[sa.Row[Any]]:
        """Run one query and return its rows."""
        with self.database.reading() as tx:
            return tx.execute(sa.text(query), values).all()

    def value(self, query: str, **values: object) -> Any:
        """Run one query and return its only value."""
        return self.rows(query, **values)[0][0]

    def busy(self) -> bool:
        """Tell whether any job is open; cheap enough to be asked often."""
        with self.database.reading() as tx:
            return bool(tx.execute(_OPEN_JOBS).scalar_one())

    def drain(self, *, within: float, every: float = 0.1) -> None:
        """Wait until no job is open. Raises BenchmarkError."""
        wait_until(lambda: not self.busy(), within, "the queue to be empty", every)

    def pids(self) -> dict[str, int]:
        """Return the processes by name, as `stoker ps` lists them."""
        return {one.name: one.pid for one in Ledger(self.data / "run/processes.json").read() if one.alive}

    def cpu_seconds(self) -> dict[str, float]:
        """Return the processor time that each process and its children have used so far, the servers' too."""
        return {name: tree_cpu(pid) for name, pid in self.roots().items()}

    def roots(self) -> dict[str, int]:
        """Return the processes by name, the servers too; each may have children."""
        return self.pids() | {"redis": self.redis.pid} | ({"postgres": self.postgres.pid} if self.postgres else {})

    def remains(self) -> list[int]:
        """Return the processes that still run with this service's settings."""
        return [pid for pid in pids() if _belongs(pid, self.data)]


@contextmanager
def running(settings: Mapping[str, object], *, sqlite: bool = False, ready: bool = True) -> Iterator[Service]:
    """Run `stoker up` with these settings (by their names) on fresh servers, until the end of the `with`.

    The database syncs to the disk. Without `ready` only the web server is waited for. Raises BenchmarkError when the
    service does not start, or leaves a process behind.
    """
    with (
        nullcontext() if sqlite else servers.postgres(fsync=True) as postgres,
        servers.redis(options=REDIS_OPTIONS) as redis,
        tempfile.TemporaryDirectory(prefix="stoker-bench-") as folder,
    ):
        data = Path(folder)
        given = {"data": data, "redis_url": redis.url, "port": 0 if ready else servers.free_port(), **settings}
        given |= {"database_url": postgres.create("bench")} if postgres else {}
        made = load(**given)
        database = Database(made.database, pool_size=4)
        service = Service("", data, redis, database, postgres, made.served_name)
        try:
            # As installed: with bytecode, also from a checkout whose environment keeps Python from writing any.
            environ = environment(given) | {
                "PYTHONPYCACHEPREFIX": str(data / "bytecode"),
                "PYTHONDONTWRITEBYTECODE": "",
            }
            with child([sys.executable, "-m", "stoker.cli", "up"], environ) as (process, said):
                service.said = said
                service.url = _ready(process, said) if ready else answering(f"http://127.0.0.1:{given['port']}")
                service.environment = environ
                yield service
        finally:
            database.close()
            # Only what a broken `stoker up` left; after a clean end there is nothing.
            Ledger(data / "run/processes.json").reap()
        wait_until(lambda: not service.remains(), 5.0, "every process to end")


def environment(settings: Mapping[str, object]) -> dict[str, str]:
    """Return this process's environment with these settings and no others."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("STOKER_") or k == "STOKER_CACHE"}
    return inherited | {f"STOKER_{name.upper()}": str(value) for name, value in settings.items()}


@contextmanager
def child(command: Sequence[str], environ: Mapping[str, str]) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """Run a command in a session of its own; yield it and, growing, the lines that it wrote. It is ended at the end."""
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=dict(environ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    guard = subprocess.Popen(
        ["sh", "-c", _GUARD, "sh", str(process.pid)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    said: list[str] = []
    reader = threading.Thread(target=_read, args=(process.stdout, said), daemon=True)
    reader.start()
    try:
        yield process, said
    finally:
        _end(process)
        guard.kill()
        guard.communicate()
        reader.join(5)


def _read(stream: IO[str] | None, said: list[str]) -> None:
    said.extend(line.rstrip() for line in stream or ())


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_WITHIN)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _ready(process: subprocess.Popen[str], said: Sequence[str]) -> str:
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        for line in list(said):
            if line.startswith("ready "):
                return line.removeprefix("ready ").strip()
        if process.poll() is not None:
            break
        time.sleep(0.05)
    raise BenchmarkError("the service did not start:\n" + "\n".join(said[-20:]))


def answering(url: str) -> str:
    """Return a web server's address once it answers. Raises BenchmarkError."""

    def answers() -> bool:
        connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=1)
        try:
            connection.request("GET", "/livez")
            return connection.getresponse().status == http.client.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    wait_until(answers, PATIENCE, "the web server to answer")
    return url


def wait_until(done: Callable[[], object], within: float, what: str, every: float = 0.1) -> None:
    """Wait until `done` says so, asking every so many seconds. Raises BenchmarkError."""
    until = time.monotonic() + within
    while not done():
        if time.monotonic() > until:
            raise BenchmarkError(f"waited {within:g} s in vain for {what}")
        time.sleep(every)


def engine_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say which real model runs, so that a benchmark runs on a GPU as well."""
    parser.add_argument("--model", default="", help="folder or Hugging Face id; default: the demo model")
    parser.add_argument("--engine-args", default="", help="vLLM's flags, as STOKER_ENGINE_ARGS takes them")


def engine_settings(options: argparse.Namespace) -> dict[str, object]:
    """Return the settings of the real engine that the options ask for; the demo model is made if need be."""
    model = options.model or str(demo_model.ensure(demo_model.default_cache(os.environ), print))
    name = Path(model).name if Path(model).is_dir() else model
    return {"engine": "vllm", "model": model, "model_name": name, "engine_args": options.engine_args}


def pids() -> list[int]:
    """Return the processes of this machine."""
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def tree(pid: int) -> dict[int, list[str]]:
    """Return a process and its living descendants, each with the fields of its /proc/PID/stat behind the name."""
    children: dict[int, list[int]] = {}
    found: dict[int, list[str]] = {}
    for at in pids():
        with suppress(FileNotFoundError, ProcessLookupError):
            found[at] = Path("/proc", str(at), "stat").read_text(errors="replace").rpartition(")")[2].split()
            children.setdefault(int(found[at][1]), []).append(at)
    members, left = {}, [pid]
    while left:
        at = left.pop()
        if at in found:
            members[at] = found[at]
        left += children.get(at, [])
    return members


def tree_cpu(pid: int) -> float:
    """Return the processor seconds of a process, of its living descendants, and of those it has waited for."""
    return sum(sum(map(int, fields[11:15])) for fields in tree(pid).values()) / TICK


def _belongs(pid: int, data: Path) -> bool:
    try:
        variables = Path("/proc", str(pid), "environ").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return False
    return f"STOKER_DATA={data}".encode() in variables
