"""Engines on one, two and three machines: how the rate grows with them, over Redis and over RabbitMQ.

Eight machines, each a network namespace of this one: the servers and the clients, two web servers, two collectors,
three engines. The engines' time is waited for, not computed, so that they do not need the cores that they share here.
"""

from __future__ import annotations

import argparse
import base64
import itertools
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import sqlalchemy as sa

from benchmarks import load, service
from benchmarks.hosts import Host, network
from benchmarks.report import Report, parser, percentile
from models import keys, schema
from models.db import Database
from stoker import services
from stoker.client import Client
from stoker.settings import Settings
from stoker.settings import load as settings_of
from tests import debian, rabbitmq, servers

NAMES = ("data", "web1", "web2", "col1", "col2", "eng1", "eng2", "eng3")
PARTS = {"web1": ("web",), "web2": ("web",), "col1": ("collector", "beat", "bulk", "worker"), "col2": ("collector",)}
PORT = 8000
WORDS = "seven words make an echo of eight"
POSTS = 4.0
"""Jobs a second that clients post to each web server while it is measured."""


@dataclass(frozen=True)
class Window:
    """What was seen while so many engines worked."""

    broker: str
    engines: int
    rate: float
    busy: float
    shares: dict[str, float]
    posts: list[float]


@dataclass
class Site:
    """The machines, what runs on them, and who may use it."""

    hosts: dict[str, Host]
    settings: dict[str, Any]
    folder: Path
    database: Database
    key: str = ""
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, running: ExitStack, name: str, parts: Sequence[str]) -> None:
        """Start processes of the service on a machine."""
        host = self.hosts[name]
        data = self.folder / name
        (data / "metrics").mkdir(parents=True)
        settings = self.settings_of(data=data, host=host.address, engine_name=name)
        commands = services.commands(settings)
        for part in parts:
            program, *arguments = commands[part]
            environ = services.environment(settings, service.environment({})) | {"PYTHONDONTWRITEBYTECODE": ""}
            command = host.command([sys.executable, "-m", program, *arguments])
            self.processes.append(running.enter_context(service.child(command, environ))[0])

    @contextmanager
    def ending(self) -> Iterator[None]:
        """Ask all processes at once to end; each is waited for where it was started."""
        try:
            yield
        finally:
            for process in self.processes:
                process.send_signal(signal.SIGINT)

    def settings_of(self, **more: object) -> Settings:
        """Return the settings of a machine's processes."""
        return settings_of(**self.settings, **more)

    def url(self, name: str) -> str:
        """Return where a machine's web server answers."""
        return f"http://{self.hosts[name].address}:{PORT}"

    def value(self, query: str, **values: object) -> Any:
        """Run one query and return its only value."""
        with self.database.reading() as tx:
            return tx.execute(sa.text(query), values).scalar_one()

    def done(self) -> dict[str, int]:
        """Return how many jobs each engine has ended."""
        counted = "SELECT engine_id, count(*) FROM results WHERE status = 200 GROUP BY engine_id"
        with self.database.reading() as tx:
            return {str(engine): int(count) for engine, count in tx.execute(sa.text(counted)).all()}


def main(argv: Sequence[str]) -> None:
    """Measure one to three engines over each broker, and write what came of it."""
    options = _options(argv)
    report = Report("machines", options)
    windows: list[Window] = []
    # The machines are reached as they are, whatever proxy this one has.
    os.environ["NO_PROXY"] = "*"
    with network(*NAMES) as hosts:
        if "rabbitmq" in options.brokers:
            debian.programs("rabbitmq")  # from here on nothing can be fetched
        hosts[0].enter()
        for _, broker in itertools.product(range(options.repeats), options.brokers):
            windows += _measured(report, {host.name: host for host in hosts}, broker)
    _tell(report, windows)
    report.write()


def _measured(report: Report, hosts: dict[str, Host], broker: str) -> list[Window]:
    options = report.options
    found = []
    report.say(f"{broker}: the servers start, and the machines after them")
    with _site(hosts, broker, options) as site, ExitStack() as running, site.ending():
        for name, parts in PARTS.items():
            site.start(running, name, parts)
        for name in ("web1", "web2"):
            service.answering(site.url(name))
        _fill(site, options.jobs)
        report.say(f"{broker}: {options.jobs} jobs are queued")
        for count, engine in enumerate(("eng1", "eng2", "eng3"), 1):
            site.start(running, engine, ["engine"])
            service.wait_until(partial(_are_full, site, count * options.slots), 120, f"{count} engines to be full")
            time.sleep(options.settle)
            found.append(_window(site, broker, count, options))
            report.say(
                f"{broker}, {count} engines: {found[-1].rate:.1f} jobs/s, {found[-1].busy:.0%} of the cores busy"
            )
    return found


def _are_full(site: Site, places: int) -> bool:
    running = site.value("SELECT count(*) FROM jobs WHERE state = 'running'")
    return bool(running >= places * 0.9)


def _window(site: Site, broker: str, engines: int, options: argparse.Namespace) -> Window:
    """Look at the service for a while, with clients that post all the time."""
    with ExitStack() as clients:
        took = [clients.enter_context(load.steadily(site.url(name), POSTS, site.key)) for name in ("web1", "web2")]
        before, cores, began = site.done(), _cores(), time.monotonic()
        time.sleep(options.window)
        after, spent, seconds = site.done(), _cores(), time.monotonic() - began
    if not site.value("SELECT count(*) FROM jobs WHERE state = 'queued' AND lane = 'bulk'"):
        raise service.BenchmarkError("the queue ran dry: more --jobs")
    shares = {name: (count - before.get(name, 0)) / seconds for name, count in after.items()}
    busy = 1 - (spent[0] - cores[0]) / (spent[1] - cores[1])
    return Window(broker, engines, sum(shares.values()), busy, shares, [each for one in took for _, each in one])


def _cores() -> tuple[float, float]:
    """Return the time of the cores so far that was free for us, idle or at work of a lower priority, and all of it."""
    times = [int(part) for part in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return times[1] + times[3] + times[4], sum(times)


def _fill(site: Site, count: int) -> None:
    """Queue so many jobs, half of them through each web server."""
    for name in ("web1", "web2"):
        with Client(site.url(name), api_key=site.key) as client:
            client.bulk([WORDS] * (count // 2))
    queued = "SELECT count(*) FROM jobs"
    service.wait_until(lambda: site.value(queued) >= count // 2 * 2, 300, "the jobs to be queued")


@contextmanager
def _site(hosts: dict[str, Host], broker: str, options: argparse.Namespace) -> Iterator[Site]:
    """Run the servers where this process is, and make ready what the machines share."""
    address = hosts["data"].address
    bind = ("--bind", "127.0.0.1", address, "--protected-mode", "no")
    listen = {"listen_addresses": f"127.0.0.1,{address}"}
    with ExitStack() as running:
        postgres = running.enter_context(servers.postgres(fsync=True, options=listen))
        with (postgres.folder / "data/pg_hba.conf").open("a") as access:
            access.write("host all all samenet trust\n")
        url = postgres.create("bench")
        redis = running.enter_context(servers.redis(options=(*service.REDIS_OPTIONS, *bind)))
        folder = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="stoker-machines-")))
        settings: dict[str, Any] = {
            "database_url": url.replace("127.0.0.1", address),
            "redis_url": redis.url.replace("127.0.0.1", address),
            "storage_url": str(folder / "files"),
            "secret_key": base64.urlsafe_b64encode(os.urandom(32)).decode(),
            "port": PORT,
            "log_level": "warning",
            "engine": "fake",
            "model_name": "fake",
            "fake_slots": options.slots,
            "fake_base_ms": 200,
            "fake_token_ms": 10,
            "fake_batch_factor": 0.1,
        }
        if broker == "rabbitmq":
            settings["broker_url"] = running.enter_context(rabbitmq.rabbitmq(address)).url
        database = Database(settings_of(database_url=url).database, pool_size=4)
        running.callback(database.close)
        schema.upgrade(database)
        with database.transaction() as tx:
            tx.execute(sa.select(sa.func.pg_reload_conf()))
            key = keys.create(tx, "bench").secret
        yield Site(hosts, settings, folder, database, key)


def _tell(report: Report, windows: Sequence[Window]) -> None:
    rows: list[list[object]] = []
    for broker in dict.fromkeys(window.broker for window in windows):
        mine = [window for window in windows if window.broker == broker]
        alone = median(window.rate for window in mine if window.engines == 1)
        for count in (1, 2, 3):
            same = [window for window in mine if window.engines == count]
            rate = median(window.rate for window in same)
            posts = [took for window in same for took in window.posts]
            efficiency = rate / (count * alone)
            slow = [1000 * percentile(posts, 0.5), 1000 * percentile(posts, 0.99)]
            rows.append([broker, count, rate, efficiency, 100 * median(window.busy for window in same), *slow])
            report.figures[f"{broker} {count}"] = {
                "rates": [window.rate for window in same],
                "by engine": [window.shares for window in same],
                "efficiency": efficiency,
                "posts": len(posts),
            }
    head = ["broker", "engines", "jobs/s", "efficiency", "cores busy %", "POST p50 ms", "p99 ms"]
    slots = report.options.slots
    report.table(f"Engines on machines of their own, {slots} places each; {os.cpu_count()} cores for all", head, rows)


def _options(argv: Sequence[str]) -> argparse.Namespace:
    wanted = parser("machines", __doc__)
    wanted.add_argument("--brokers", nargs="+", choices=("redis", "rabbitmq"), default=["redis", "rabbitmq"])
    wanted.add_argument("--jobs", type=int, default=25_000, help="queued before the first engine is started")
    wanted.add_argument("--slots", type=int, default=96, help="places of each engine")
    wanted.add_argument("--settle", type=float, default=5, help="seconds of work before it is looked at")
    wanted.add_argument("--window", type=float, default=20, help="seconds that it is looked at")
    wanted.add_argument("--repeats", type=int, default=2)
    return wanted.parse_args(argv)
