"""Upstreams killed, hung and restarted under load: which client requests fail, and how long the others take.

Clients call `/v1/chat/completions` all the time, as many as the upstreams have places. One upstream is killed, later
started again; another is frozen (it accepts and says nothing), later thawed. A request that failed is one that a client
was given an error for.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from benchmarks import service
from benchmarks.report import Report, parser, percentile
from benchmarks.router import MODEL, PATH
from tests import servers


@dataclass
class Load:
    """Clients that call again and again, and what became of their calls."""

    url: str
    answers: list[tuple[float, float]] = field(default_factory=list)
    failures: list[tuple[float, str]] = field(default_factory=list)
    stopped: threading.Event = field(default_factory=threading.Event)

    def client(self, number: int) -> None:
        """Call until the end."""
        address = urlsplit(self.url)
        body = json.dumps({"model": MODEL, "messages": [{"role": "user", "content": f"client {number}"}]})
        while not self.stopped.is_set():
            connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=120)
            began = time.monotonic()
            try:
                connection.request("POST", PATH, body, {"Content-Type": "application/json"})
                answer = connection.getresponse()
                said = answer.read()
            except (OSError, http.client.HTTPException) as error:
                self.failures.append((began, type(error).__name__))
                continue
            finally:
                connection.close()
            if answer.status == http.client.OK:
                self.answers.append((began, time.monotonic() - began))
            else:
                self.failures.append((began, f"{answer.status} {said[:200]!r}"))


def main(argv: Sequence[str]) -> None:
    """Break upstreams under load and write what the clients saw."""
    options = _options(argv)
    report = Report("failover", options)
    with ExitStack() as running:
        ports = [servers.free_port() for _ in range(options.upstreams)]
        pids = [_start(running, port, options.scale) for port in ports]
        urls = ",".join(f"http://127.0.0.1:{port}" for port in ports)
        settings: dict[str, object] = {"engine": "upstream", "upstreams": urls, "log_level": "warning"}
        settings["upstream_max_connections"] = options.limit
        up = running.enter_context(service.running(settings, sqlite=options.sqlite))
        service.wait_until(lambda: up.value("SELECT count(*) FROM engine_models"), 30, "the model to be found")
        load = Load(up.url)
        clients = [
            threading.Thread(target=load.client, args=(number,)) for number in range(options.limit * options.upstreams)
        ]
        for client in clients:
            client.start()
        try:
            spells = _break(running, report, ports, pids, options)
        finally:
            load.stopped.set()
        for client in clients:
            client.join()
        attempts = up.value("SELECT count(*) FROM jobs WHERE attempts > 1")
    _tell(report, load, spells, attempts)
    report.write()


def _start(running: ExitStack, port: int, scale: float) -> int:
    command = [sys.executable, "-m", "tests.upstreams", "--port", str(port), "--curve", "--scale", str(scale)]
    process, _ = running.enter_context(service.child(command, service.environment({})))
    return process.pid


def _break(
    running: ExitStack, report: Report, ports: list[int], pids: list[int], options: argparse.Namespace
) -> list[tuple[str, float]]:
    """Do what is done to the upstreams; return what and when."""
    spells = [("all up", time.monotonic())]

    def next_spell(what: str) -> None:
        time.sleep(options.spell)
        spells.append((what, time.monotonic()))
        report.say(what)

    next_spell("one killed")
    os.kill(pids[0], signal.SIGKILL)
    next_spell("started again")
    _start(running, ports[0], options.scale)
    next_spell("another frozen")
    os.kill(pids[1], signal.SIGSTOP)
    next_spell("thawed")
    os.kill(pids[1], signal.SIGCONT)
    time.sleep(options.spell)
    spells.append(("end", time.monotonic()))
    return spells


def _tell(report: Report, load: Load, spells: list[tuple[str, float]], attempts: int) -> None:
    rows = []
    for (what, begin), (_, end) in itertools.pairwise(spells):
        took = [took for began, took in load.answers if begin <= began < end]
        failed = [why for began, why in load.failures if begin <= began < end]
        report.figures[what] = {"answers": len(took), "failed": failed[:20], "longest": max(took, default=0)}
        rows.append([what, len(took), len(failed), percentile(took, 0.5), percentile(took, 0.99), max(took, default=0)])
    report.figures["jobs with more than one attempt"] = attempts
    head = ["requests begun while", "answered", "failed", "p50 s", "p99 s", "longest s"]
    report.table(f"{report.options.upstreams} upstreams, {report.options.limit} at once on each", head, rows)
    for began, why in load.failures[:5]:
        report.say(f"failed at {began - spells[0][1]:.1f} s: {why}")


def _options(argv: Sequence[str]) -> argparse.Namespace:
    wanted = parser("failover", __doc__)
    wanted.add_argument("--upstreams", type=int, default=3)
    wanted.add_argument("--limit", type=int, default=4)
    wanted.add_argument("--scale", type=float, default=0.5, help="of the table's latencies")
    wanted.add_argument("--spell", type=float, default=20, help="seconds of each spell")
    wanted.add_argument("--sqlite", action="store_true")
    return wanted.parse_args(argv)
