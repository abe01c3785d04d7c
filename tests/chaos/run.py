"""One run of chaos: load, faults drawn from a seed, mending, waiting for quiet, checking."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from statistics import median
from typing import Any

import httpx

from stoker.settings import load
from tests.chaos import faults
from tests.chaos.checks import OPEN_BULKS, Findings, check
from tests.chaos.faults import Fault, Injected
from tests.chaos.ledger import Ledger
from tests.chaos.load import FINAL, PATIENCE, Load
from tests.chaos.receiving import ALONE, TOGETHER
from tests.chaos.service import Service

QUIET_WITHIN = 240.0
_REPORT_EVERY = 10.0
_BOTH = 0.25
"""Of the faults come two at a time."""

FAILPOINTS = (
    "accept.storing=kill@0.002",
    "accept.committed=kill@0.002",
    "upload.receiving=kill@0.02",
    "upload.stored=kill@0.02",
    "collector.cut=kill@0.01",
    "worker.claimed=kill@0.01",
    "settle.storing=kill@0.003",
    "settle.committed=kill@0.003",
    "batch.ending=kill@0.005",
    "lease.renewing=pause:17@0.01",
    "webhook.claimed=kill@0.01",
    "webhook.sent=kill@0.01",
    "ingest.committed=kill@0.05",
    "export.written=kill@0.1",
    "export.committed=kill@0.1",
    "sweeper.swept=kill@0.01",
    "engine.took_over=kill@0.1",
)


def armed(seed: int, most: int = 5) -> str:
    """Return the failpoints of a seed, as STOKER_FAILPOINTS takes them."""
    return ",".join(Random(f"failpoints-{seed}").sample(FAILPOINTS, most))


@dataclass
class Run:
    """A run while it goes on, and what came of it."""

    service: Service
    seed: int
    say: Callable[[str], None] = lambda _text: None
    injected: list[Injected] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    quiet_within: float = QUIET_WITHIN
    quiet_after: float = 0.0
    load: Load | None = None

    def go(
        self, seconds: float, chosen: Sequence[Fault] | None = None, *, threads: int = 4, most_rest: float = 6.0
    ) -> Findings:
        """Load it and break it for so long, with rests of a second or more between; then mend, wait and check."""
        until = time.monotonic() + seconds

        def break_it(chance: Random) -> None:
            usable = list(chosen if chosen is not None else faults.usable(self.service))
            while time.monotonic() < until:
                self._break(chance, usable)
                time.sleep(chance.uniform(1.0, most_rest))

        return self._under_load(break_it, threads)

    def go_through(self, chosen: Sequence[Fault]) -> Findings:
        """Load it, and break it in each of these ways, once something runs; then mend, wait and check."""

        def break_it(chance: Random) -> None:
            for fault in chosen:
                self._wait_until_something_runs()
                self._break(chance, [fault])

        return self._under_load(break_it, threads=2)

    def go_until(self, done: Callable[[], bool], most: float) -> Findings:
        """Load it until something has happened, for so many seconds at most; then mend, wait and check."""
        until = time.monotonic() + most

        def wait(_chance: Random) -> None:
            while not done() and time.monotonic() < until:
                time.sleep(0.5)

        return self._under_load(wait, threads=4)

    def _under_load(self, break_it: Callable[[Random], None], threads: int) -> Findings:
        service, chance = self.service, Random(self.seed)
        url, hook = (f"http://127.0.0.1:{edge.port}" for edge in (service.web, service.hooks))
        self._make_endpoints(url, hook)
        ledger = Ledger(service.witness / f"ledger-{self.seed}")
        self.load = Load(url, ledger, self.seed, hook=hook, threads=threads, model=self._model())
        self.load.start()
        time.sleep(2.0)
        break_it(chance)
        # Their chances are small, but who has much to catch up with comes by often.
        service.disarm()
        service.mend()
        self.load.stop()
        self.say("mended; waiting for quiet")
        self._wait_for_quiet()
        findings = check(service, self.load, self.injected)
        ledger.close()
        return findings

    def _make_endpoints(self, url: str, hook: str) -> None:
        """Ask, once for each service and before it has a job, to be told of every end of one."""
        events = [f"job.{state}" for state in sorted(FINAL)]
        for path, coalesce in ((ALONE, None), (TOGETHER, 0.5)):
            wanted = {"name": path, "url": f"{hook}{path}", "event_types": events, "coalesce": coalesce}
            headers = {"Idempotency-Key": path}
            until = time.monotonic() + self.quiet_within
            while True:
                # A failpoint may kill the web server in the middle of this as well.
                try:
                    made = httpx.post(f"{url}/v1/webhook_endpoints", json=wanted, headers=headers, timeout=PATIENCE)
                    made.raise_for_status()
                    break
                except httpx.HTTPError:
                    if time.monotonic() > until:
                        raise
                    time.sleep(0.5)

    def _model(self) -> str:
        return "" if self.service.engine != "vllm" else load(engine=self.service.engine).served_name

    def _break(self, chance: Random, usable: Sequence[Fault]) -> None:
        count = 2 if chance.random() < _BOTH else 1
        begun: list[tuple[Fault, object, float]] = []
        for fault in chance.choices(usable, [one.weight for one in usable], k=count):
            if any(fault is other for other, _, _ in begun):
                continue
            injected, token = faults.inject(self.service, fault)
            self.injected.append(injected)
            self.counts[fault.name] += 1
            begun.append((fault, token, fault.hold(chance)))
        self.say(f"{' and '.join(fault.name for fault, _, _ in begun)} ({len(self.injected)})")
        started = time.monotonic()
        for fault, token, hold in sorted(begun, key=lambda one: one[2]):
            time.sleep(max(0.0, started + hold - time.monotonic()))
            fault.end(self.service, token)

    def _wait_until_something_runs(self) -> None:
        """Wait until an engine is up and in the middle of a batch."""
        until = time.monotonic() + self.quiet_within
        query = (
            "SELECT count(*) FROM batches JOIN engines ON engines.incarnation = batches.incarnation "
            "WHERE batches.state = 'running' AND engines.state = 'live'"
        )
        while not self.service.rows(query)[0][0] and time.monotonic() < until:
            time.sleep(0.1)

    def _wait_for_quiet(self) -> None:
        """Wait until nothing is open any more, as long as that may take; what is still open then is stuck."""
        started = reported = time.monotonic()
        while time.monotonic() - started < self.quiet_within:
            left = self.open()
            if not sum(left.values()):
                break
            if time.monotonic() - reported > _REPORT_EVERY:
                reported = time.monotonic()
                self.say(", ".join(f"{count} {name}" for name, count in left.items() if count) + " still open")
            time.sleep(0.5)
        self.quiet_after = time.monotonic() - started

    def open(self) -> dict[str, int]:
        """Return how much of each kind is under way."""
        queries = {
            "jobs": "SELECT count(*) FROM jobs WHERE state IN ('batched', 'delayed', 'queued', 'running')",
            "bulks": f"SELECT count(*) FROM bulks WHERE state IN {OPEN_BULKS}",  # noqa: S608  # a constant
            "deliveries": "SELECT count(*) FROM deliveries WHERE state IN ('pending', 'sending')",
        }
        return {name: self.service.rows(query)[0][0] for name, query in queries.items()}

    def hits(self) -> Counter[str]:
        """Return how often each failpoint acted."""
        if not self.service.hits.exists():
            return Counter()
        return Counter(line.split()[0] for line in self.service.hits.read_text().splitlines())

    def headline(self, findings: Findings) -> str:
        """Return the figures of a run in a line."""
        told = self.summary(findings)
        names = ("seed", "engine", "database", "accepted", "jobs", "lost", "doubled", "stuck", "webhooks_missing")
        figures = ", ".join(f"{name} {told[name]}" for name in (*names, "extra_executions_percent"))
        return f"chaos: {figures}, faults {sum(self.counts.values())}, failpoints hit {self.hits().total()}"

    def summary(self, findings: Findings) -> dict[str, Any]:
        """Return what is published of a run."""
        assert self.load is not None
        distinct = max(1, findings.executions - findings.extra)
        return {
            "seed": self.seed,
            "engine": self.service.engine,
            "database": "sqlite" if self.service.postgres is None else "postgresql",
            "accepted": findings.accepted,
            "jobs": findings.jobs,
            "faults": dict(sorted(self.counts.items())),
            "failpoints": dict(self.hits()),
            **{name: len(getattr(findings, name)) for name in Findings.LISTS},
            "executions": findings.executions,
            "extra_executions_percent": round(100 * findings.extra / distinct, 2),
            "webhook_events": findings.events,
            "recoveries": len(findings.recoveries),
            "recovery_first_job_s": _spread([first for first, _ in findings.recoveries]),
            "recovery_last_job_s": _spread([last for _, last in findings.recoveries]),
            "quiet_after_s": round(self.quiet_after, 1),
            "slowest_answer_s": round(self.load.slowest, 2),
            "answers": dict(sorted(self.load.statuses.items())),
        }


def _spread(seconds: Sequence[float]) -> dict[str, float]:
    return {"median": round(median(seconds), 2), "worst": round(max(seconds), 2)} if seconds else {}
