"""The service under test: a real `stoker up` and a second engine, with a proxy on each of its network edges."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from models import failpoints, schema
from models.db import Database
from stoker.processes import Ledger, kill_session
from stoker.settings import load
from tests import servers, upstreams
from tests.chaos import witnesses
from tests.chaos.clock import Clock
from tests.chaos.disk import Disk
from tests.chaos.proxy import Proxy
from tests.chaos.receiving import Receiving, receiving
from tests.journeys.running import STOKER, Up, end_whatever_is_left

_SLOW = re.compile(r"\[\[slow:([0-9.]+)\]\]")
SECOND = "second"
SCHEDULE = ",".join(["0", "0.5", "1", *["2"] * 10, *["5"] * 60])
SETTINGS = {
    "STOKER_FAKE_SLOTS": "24",
    "STOKER_RUN_TIMEOUT": "20",
    "STOKER_WEBHOOK_SCHEDULE": SCHEDULE,
    "STOKER_WEBHOOK_TIMEOUT": "3",
    "STOKER_WEBHOOK_ALLOW_CIDRS": "127.0.0.0/8",
    "STOKER_DRAIN_TIMEOUT": "3",
    "STOKER_WAIT_FOR": "8",
    "STOKER_MAX_DEFERRALS": "2",
}


@dataclass
class Service:
    """Everything that can be broken, and the way to it."""

    folder: Path
    witness: Path
    environment: Mapping[str, str]
    database_url: str
    web: Proxy
    redis_edge: Proxy
    hooks: Proxy
    redis: servers.Redis
    receiving: Receiving
    database_edge: Proxy | None = None
    postgres: servers.Postgres | None = None
    engine: str = "fake"
    upstream_edges: Sequence[Proxy] = ()
    up: Up | None = None
    second: subprocess.Popen[bytes] | None = None
    direct: Database = field(init=False)
    disk: Disk | None = None
    clock: Clock | None = None
    frozen: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.direct = Database(load(database_url=self.database_url).database, pool_size=2)

    @property
    def data(self) -> Path:
        """Return the service's data folder."""
        return self.folder / "var"

    @property
    def starts(self) -> Path:
        """Return the engines' own log of what they started."""
        return self.witness / "starts"

    @property
    def hits(self) -> Path:
        """Return the log of the failpoints."""
        return self.witness / "failpoints"

    def start(self) -> None:
        """Start it, or start it again after `stoker up` was killed."""
        options = ["--engine", self.engine, "--redis-url", self._redis_url()]
        self.up = Up(self.data, *options, "--database-url", self._seen_database(), **self.environment)
        # A port of its own each time: a free one of ours could be anybody's by now.
        self.web.target = int(self.up.url().rpartition(":")[2])
        if self.engine == "fake" and (self.second is None or self.second.poll() is not None):
            self._start_second()

    def _start_second(self) -> None:
        command = [*STOKER, "engine", SECOND, "--engine", "fake", "--data", str(self.data)]
        command += ["--database-url", self._seen_database(), "--redis-url", self._redis_url()]
        with (self.folder / "second.log").open("ab") as log:
            self.second = subprocess.Popen(
                command, env=os.environ | dict(self.environment), stdout=log, stderr=log, start_new_session=True
            )

    def _redis_url(self) -> str:
        return f"redis://127.0.0.1:{self.redis_edge.port}/0"

    def _seen_database(self) -> str:
        """Return the database as the service sees it: behind the proxy."""
        if self.postgres is None or self.database_edge is None:
            return self.database_url
        return self.database_url.replace(f":{self.postgres.port}/", f":{self.database_edge.port}/")

    def pids(self) -> dict[str, int]:
        """Return what runs, by name; the second engine's worker is `second`."""
        assert self.up is not None
        found = self.up.pids()
        listed = Ledger(self.data / f"engines/{SECOND}/processes.json").read()
        for process in listed:
            if process.name == "engine" and process.alive:
                found[SECOND] = process.pid
        return found

    def signal(self, name: str, how: signal.Signals, *, group: bool = True) -> int | None:
        """Send a signal to a process or its whole group; return its pid, None when it is down."""
        pid = self.pids().get(name)
        if pid is None:
            return None
        with suppress(ProcessLookupError):
            (os.killpg if group else os.kill)(pid, how)
        return pid

    def freeze(self, pid: int) -> None:
        """Stop a process and its children."""
        for each in (pid, *children(pid)):
            with suppress(ProcessLookupError):
                os.kill(each, signal.SIGSTOP)
                self.frozen.add(each)

    def thaw(self) -> None:
        """Let everything go on that was stopped."""
        for pid in self.frozen:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        self.frozen.clear()

    def started_at(self) -> dict[str, list[float]]:
        """Return when the engines started each job, by their own log; nothing of an engine that keeps none."""
        found: dict[str, list[float]] = defaultdict(list)
        if self.starts.exists():
            for line in self.starts.read_text(errors="replace").splitlines():
                job_id, _, at = line.split()
                # On SQLite the engines go by the clock that is shifted.
                right = self.clock.real(float(at)) if self.clock is not None and self.postgres is None else float(at)
                found[job_id].append(right)
        return found

    def rows(self, text: str, **values: Any) -> list[Any]:
        """Ask the database directly, not by the way the service takes; again while it is away."""
        until = time.monotonic() + 60
        while True:
            try:
                with self.direct.reading() as tx:
                    return list(tx.execute(sa.text(text), values))
            except Exception:  # an outage of any kind: this is only a look
                if time.monotonic() > until:
                    raise
                time.sleep(0.3)

    def disarm(self) -> None:
        """Let every failpoint be passed from now on."""
        Path(f"{self.hits}{failpoints.OFF}").touch()

    def mend(self) -> None:
        """Let everything work again."""
        self.thaw()
        if self.disk is not None:
            self.disk.empty()
        for edge in (self.web, self.redis_edge, self.hooks, self.database_edge, *self.upstream_edges):
            if edge is not None:
                edge.heal()
        self.receiving.behave("well")
        for server in (self.redis, self.postgres):
            if server is not None and not server.answers():
                server.stop(signal.SIGKILL)
                server.start()

    def stop(self) -> None:
        """End it."""
        for process in (self.second, self.up.process if self.up else None):
            if process is not None and process.poll() is None:
                process.send_signal(signal.SIGINT)
        for process in (self.second, self.up.process if self.up else None):
            if process is not None:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(60)
        if self.second is not None:
            kill_session(self.second.pid)
        end_whatever_is_left(self.data)
        self.direct.close()


def children(parent: int) -> list[int]:
    """Return the living children of a process."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = entry.read_text(errors="replace").rpartition(")")[2].split()
            if int(fields[1]) == parent:
                found.append(int(entry.parent.name))
    return found


def _upstreams(stack: ExitStack) -> Iterator[int]:
    """Run two OpenAI-compatible servers that repeat their prompts and take the time that a mark says."""
    for _ in range(2):
        server = stack.enter_context(upstreams.upstream("fake"))
        server.answer = _taking_time
        yield server.port


def _taking_time(body: dict[str, Any]) -> upstreams.Reply:
    found = _SLOW.search(str(body.get("messages") or body.get("prompt")))
    if "[[reject]]" in str(body):
        return upstreams.error(400, "the prompt asked to be rejected", code="invalid_request")
    return upstreams.Reply(delay=float(found[1]) if found else 0.0)


@contextmanager
def service(
    *,
    sqlite: bool = False,
    environment: Mapping[str, str] | None = None,
    disk: Disk | None = None,
    engine: str = "fake",
) -> Iterator[Service]:
    """Run a service with servers and proxies of its own, all of it in temporary folders.

    The engine `vllm` is the real one with the demo model, `upstream` a router over two servers; `fake` has a second
    one beside it.
    """
    with ExitStack() as stack:
        folder, witness = (
            Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="stoker-chaos-", dir=where)))
            for where in (None, disk and disk.outside)
        )
        redis = stack.enter_context(servers.redis())
        receiver = stack.enter_context(receiving(witness / "webhooks"))
        folder.chmod(0o755)
        clock = Clock(folder)
        postgres = None
        if not sqlite:
            options = {"max_wal_size": "64MB", "min_wal_size": "32MB"}
            started = servers.postgres(fsync=True, options=options, environment=clock.environment)
            postgres = stack.enter_context(started)
        url = f"sqlite:///{folder / 'stoker.db'}" if postgres is None else postgres.create("stoker")
        edges = [stack.enter_context(Proxy(port)) for port in (0, redis.port, receiver.port)]
        edge = None if postgres is None else stack.enter_context(Proxy(postgres.port))
        chosen = {
            **SETTINGS,
            "STOKER_FAKE_LOG": str(witness / "starts"),
            "STOKER_FAILPOINTS_LOG": str(witness / "failpoints"),
            **(environment or {}),
        }
        if sqlite and engine != "vllm":  # which does not start with it
            chosen |= clock.environment
        upstream_edges = (
            [stack.enter_context(Proxy(port)) for port in _upstreams(stack)] if engine == "upstream" else []
        )
        if upstream_edges:
            urls = ",".join(f"http://127.0.0.1:{edge.port}" for edge in upstream_edges)
            chosen |= {"STOKER_UPSTREAMS": urls, "STOKER_MODEL_NAME": "fake", "STOKER_UPSTREAM_CHECK_EVERY": "2"}
            chosen |= {"STOKER_MAX_DEFERRALS": "50"}
        found = Service(
            folder,
            witness,
            chosen,
            url,
            *edges,
            redis,
            receiver,
            edge,
            postgres,
            engine,
            upstream_edges,
            disk=disk,
            clock=clock,
        )
        stack.callback(found.stop)
        schema.upgrade(found.direct)
        witnesses.install(found.direct)
        found.start()
        yield found
