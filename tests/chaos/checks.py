"""The invariants, checked from outside: by the client's ledger, the engines' log, the receiver's log and SQL."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from tests.chaos.faults import Injected
from tests.chaos.load import FINAL, Load
from tests.chaos.receiving import ALONE, TOGETHER
from tests.chaos.service import Service

_OWN_FAULT = frozenset({"invalid_request", "upstream_unavailable", "cancelled", "expired", None})
"""How a job may fail that asked for it (marks of the prompt), or end otherwise."""
OPEN_BULKS = "('validating', 'running', 'finalizing', 'cancelling')"


@dataclass
class Findings:
    """What a run came to. Every list but `recoveries` has to be empty."""

    accepted: int = 0
    jobs: int = 0
    executions: int = 0
    extra: int = 0
    events: int = 0
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    stuck: list[str] = field(default_factory=list)
    half_accepted: list[str] = field(default_factory=list)
    mixed_up: list[str] = field(default_factory=list)
    blamed: list[str] = field(default_factory=list)
    webhooks_missing: list[str] = field(default_factory=list)
    webhooks_doubled: list[str] = field(default_factory=list)
    bulks_broken: list[str] = field(default_factory=list)
    seen_by_clients: list[str] = field(default_factory=list)
    recoveries: list[tuple[float, float]] = field(default_factory=list)
    """Seconds from each death of an engine until the first, and until the last, of its jobs ran again."""

    LISTS = (
        "lost",
        "doubled",
        "stuck",
        "half_accepted",
        "mixed_up",
        "blamed",
        "webhooks_missing",
        "webhooks_doubled",
        "bulks_broken",
        "seen_by_clients",
    )

    def broken(self) -> dict[str, list[str]]:
        """Return each promise that was broken, with what broke it."""
        return {name: getattr(self, name) for name in self.LISTS if getattr(self, name)}


@dataclass(frozen=True, slots=True)
class _Job:
    id: str
    state: str
    key: str | None
    bulk_id: str | None
    notify: bool
    code: str | None
    answer: str | None


def check(service: Service, load: Load, faults: Sequence[Injected]) -> Findings:
    """Look whether every promise was kept."""
    found = Findings(seen_by_clients=list(load.violations))
    jobs = _jobs(service)
    ledger = load.ledger
    accepted = {line["key"]: line["id"] for line in ledger.read("accepted") if line["kind"] == "job"}
    found.accepted, found.jobs = len(accepted), len(jobs)
    found.lost = [job_id for job_id in accepted.values() if job_id not in jobs]
    found.stuck = [job.id for job in jobs.values() if job.state not in FINAL]
    _keys(found, jobs, accepted, load)
    _ends(found, service, jobs)
    _starts(found, service, jobs, faults)
    _webhooks(found, service, jobs)
    _bulks(found, service, load)
    return found


def _jobs(service: Service) -> dict[str, _Job]:
    rows = service.rows(
        "SELECT jobs.id, jobs.state, bodies.metadata, jobs.bulk_id, jobs.notify, results.error_code, results.body "
        "FROM jobs LEFT JOIN bodies ON bodies.job_id = jobs.id LEFT JOIN results ON results.job_id = jobs.id"
    )
    found = {}
    for job_id, state, metadata, bulk_id, notify, code, answer in rows:
        tags = json.loads(metadata) if isinstance(metadata, str) else metadata
        found[job_id] = _Job(job_id, state, (tags or {}).get("key"), bulk_id, bool(notify), code, answer)
    return found


def _keys(found: Findings, jobs: dict[str, _Job], accepted: dict[str, str], load: Load) -> None:
    """One key has one job, the one that was promised; what was refused has none."""
    asked = {line["key"] for line in load.ledger.read("asked") if line["kind"] == "job"}
    by_key: dict[str, list[str]] = defaultdict(list)
    for job in jobs.values():
        if job.key is not None:
            by_key[job.key].append(job.id)
    found.doubled += [f"{key} has {len(ids)} jobs" for key, ids in by_key.items() if len(ids) > 1]
    found.half_accepted += [f"{key}: nobody asked for it" for key in by_key.keys() - asked]
    found.lost += [f"{key}: promised another job" for key, its in accepted.items() if its not in by_key.get(key, [])]
    told: dict[str, set[str]] = defaultdict(set)
    for line in load.ledger.read("accepted", "refused", "unknown", "unanswered"):
        told[line["key"]].add(line["what"])
    # An answer that was lost, or said that nobody knows, promises nothing either way.
    refused = {key for key, answers in told.items() if answers == {"refused"}}
    found.half_accepted += [f"{key}: refused and stored" for key in refused & by_key.keys()]


def _ends(found: Findings, service: Service, jobs: dict[str, _Job]) -> None:
    """Each job has one end and at most one result, which answers its own question, and is blamed for nothing."""
    seen = service.rows("SELECT what, job_id, count(*) FROM witnessed GROUP BY what, job_id HAVING count(*) > 1")
    found.doubled += [f"{job_id}: {count} times {what}" for what, job_id, count in seen]
    for job in jobs.values():
        if job.state in {"succeeded", "failed"} and job.answer is None and job.code is None:
            found.lost.append(f"{job.id}: {job.state} without a result")
        if service.engine != "vllm" and job.state == "succeeded" and job.key and job.key not in str(job.answer):
            found.mixed_up.append(f"{job.id}: {str(job.answer)[:200]}")
        if job.state == "failed" and job.code not in _OWN_FAULT:
            found.blamed.append(f"{job.id}: {job.code}")


def _starts(found: Findings, service: Service, jobs: dict[str, _Job], faults: Iterable[Injected]) -> None:
    """Nothing ran that was not asked for; how long what was interrupted took to run again."""
    starts = service.started_at()
    unknown = starts.keys() - jobs.keys()
    # A chat's job whose POST was never answered is a job all the same.
    found.half_accepted += [f"{job_id}: ran and is not stored" for job_id in unknown]
    found.executions = sum(map(len, starts.values()))
    found.extra = found.executions - len(starts)
    for fault in faults:
        again = [min((at for at in starts.get(job, []) if at > fault.at), default=0.0) for job in fault.interrupted]
        waits = [at - fault.at for at in again if at]
        if waits:
            found.recoveries.append((min(waits), max(waits)))


def _webhooks(found: Findings, service: Service, jobs: dict[str, _Job]) -> None:
    """Each end that somebody wanted to hear of was told, under one id, and nothing else was."""
    # By whom it was told to: the job's own webhook (""), or an endpoint.
    messages: dict[tuple[str, str, str], set[str]] = defaultdict(set)
    for line in service.receiving.log.read("taken"):
        whom = line["path"] if line["path"] in {ALONE, TOGETHER} else ""
        messages[whom, line["subject"], line["event"]].add(line["message"])
    found.events = len(messages)
    ended = [job for job in jobs.values() if job.state in FINAL]
    expected = {("", job.id, f"job.{job.state}") for job in ended if job.notify}
    expected |= {(whom, job.id, f"job.{job.state}") for job in ended for whom in (ALONE, TOGETHER)}
    bulks = service.rows(f"SELECT id, state FROM bulks WHERE webhook_url IS NOT NULL AND state NOT IN {OPEN_BULKS}")  # noqa: S608
    expected |= {("", bulk_id, f"bulk.{state}") for bulk_id, state in bulks}
    found.webhooks_missing = [" ".join(one) for one in expected - messages.keys()]
    found.webhooks_doubled = [f"{' '.join(one)}: {len(ids)} ids" for one, ids in messages.items() if len(ids) > 1]
    found.webhooks_doubled += [f"{' '.join(one)}: not so" for one in messages.keys() - expected]


def _bulks(found: Findings, service: Service, load: Load) -> None:
    """Each bulk that was accepted has ended, with one result for each of its lines."""
    accepted = {line["id"]: line["key"] for line in load.ledger.read("accepted") if line["kind"] != "job"}
    rows = service.rows("SELECT id, state, total, done, succeeded, failed FROM bulks")
    known = {row[0]: row for row in rows}
    found.lost += [bulk_id for bulk_id in accepted if bulk_id not in known]
    found.stuck += [
        f"{row[0]} is {row[1]}" for row in rows if row[1] in {"validating", "running", "finalizing", "cancelling"}
    ]
    results = service.rows(
        "SELECT bulk_id, count(*), count(DISTINCT line_no), count(DISTINCT seq) FROM results "
        "WHERE bulk_id IS NOT NULL GROUP BY bulk_id"
    )
    by_bulk = {row[0]: tuple(row[1:]) for row in results}
    for bulk_id, state, total, done, _succeeded, _failed in rows:
        lines = by_bulk.get(bulk_id, (0, 0, 0))
        if state == "completed" and (set(lines) != {total} or done != total):
            found.bulks_broken.append(f"{bulk_id}: {total} lines, {done} done, results {lines}")
    keys = Counter(accepted.values())
    found.doubled += [f"{key}: {count} bulks" for key, count in keys.items() if count > 1]
