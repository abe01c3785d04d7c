"""What `stoker doctor` looks at in the tables: does work move from POST to webhook, and where does it not."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from urllib.parse import urlsplit

import sqlalchemy as sa

from models import bulk_leases, census, diagnosis, engines, resealing, schema
from models.census import Census
from models.db import AnyRow, Database
from models.engines import Incarnation
from models.errors import DatabaseUnavailable
from models.sealing import NoSecretKey, seal_of
from stoker.checks_database import missing_file
from stoker.finding import Finding, ok, problem, warning
from stoker.settings import LANES, Settings
from tasks.reaper import may_live, survivors

SWEEP_LATE = 30.0
OLD = 60.0
"""Seconds after which what should have gone on at once counts as stuck."""
FORGOTTEN = 3600.0
"""Seconds of silence after which an engine was taken away rather than lost."""
RECENT = 600.0
FAILING_FOR = 86_400.0
LOOK_AGAIN = 5.0
_MOST_HOSTS = 5


def queue(settings: Settings) -> Iterator[Finding]:
    """Look at sweeper, engines, jobs, bulks and deliveries."""
    if missing_file(settings) is not None:
        return
    with closing(Database(settings.database, pool_size=1)) as db:
        try:
            schema.check(db)
            with db.reading() as tx:
                counted = census.take(tx, settings.engine_gone_after)
                yield _sweeper(tx, settings)
                yield from _engines(tx, settings)
                yield from _served(tx, settings, counted)
                yield from _jobs(tx, settings)
                yield from _deaths(tx)
                yield from _deliveries(tx)
                yield from _sealed(tx, settings)
            yield from _bulks(db)
        except schema.SchemaOutdated:
            return  # the database's own check tells it
        except DatabaseUnavailable as error:
            yield warning("queue", f"not looked at: {error}", "see to the database first")


def _sweeper(tx: sa.Connection, settings: Settings) -> Finding:
    age = diagnosis.last_sweep(tx)
    late = SWEEP_LATE + settings.sweep_every
    if age is not None and 0 <= age <= late:
        return ok("sweeper", f"last sweep {age:.1f} s ago: beat, Redis and the collector work together")
    says = "there was no sweep yet" if age is None else f"the last sweep was {age:.0f} s ago"
    do = (
        "see that beat, Redis and the collector run, and none is frozen: `stoker ps`, logs/beat.log, logs/collector.log"
    )
    return problem("sweeper", f"{says}: leases, delays and lost doorbells are not looked after", do)


def _engines(tx: sa.Connection, settings: Settings) -> Iterator[Finding]:
    rows = diagnosis.all_engines(tx)
    for row in rows:
        if row.state != "gone":
            yield _engine(row, settings)
        me = Incarnation(row.id, row.incarnation, row.kind, row.host, row.pid, row.process_group, row.process_start)
        if not may_live(me) and (left := survivors(me)):
            pids = " ".join(map(str, left))
            says = f"{row.id} is dead, but processes of its group live on and may hold a GPU: {pids}"
            yield problem("engine", says, f"start the engine again, which ends them, or kill -9 {pids}")
    if not any(row.state != "gone" for row in rows):
        yield problem("engine", "no engine runs", "start one: `stoker up`, or `stoker engine NAME`")


def _engine(row: AnyRow, settings: Settings) -> Finding:
    where = f"{row.id} (process {row.pid} on {row.host})"
    if row.state == "starting":
        if row.age <= settings.start_timeout:
            return warning("engine", f"{where} is loading for {row.age:.0f} s", "wait, or read its log")
        do = "read its log: does the model fit, is it being downloaded? Then start it again"
        return problem("engine", f"{where} is loading for {row.age:.0f} s", do)
    if row.silent <= settings.engine_gone_after:
        return ok("engine", f"{where} is {row.state}, last sign of life {row.silent:.1f} s ago")
    if row.silent > FORGOTTEN:
        do = "if it was taken away for good, all is well; else start it again"
        return warning("engine", f"{where} was last seen {row.silent / 3600:.0f} h ago", do)
    do = "is its process frozen, or its machine cut off? kill -CONT it, or start it again; its jobs are queued again"
    return problem("engine", f"{where} is silent for {row.silent:.0f} s", do)


def _served(tx: sa.Connection, settings: Settings, counted: Census) -> Iterator[Finding]:
    """Look whether somebody works on what is queued."""
    state: Counter[str] = Counter()
    queued: Counter[str] = Counter()
    for one, lane, model, count in counted.jobs:
        state[one] += count
        if one == "queued" and lane in LANES:
            queued[model] += count
    busy = {load.model for load in counted.running} | {model for model, _, _ in counted.ready}
    oldest: dict[str, float] = {}
    for model, lane, age in counted.ages:
        if lane in LANES:
            oldest[model] = max(age, oldest.get(model, 0.0))
    for model, count in sorted(queued.items()):
        if not engines.live(tx, settings.engine_gone_after, model):
            do = f"start an engine that serves {model}, or cancel them"
            yield problem("queue", f"no live engine serves {model}; jobs that wait for it: {count}", do)
        elif model not in busy and oldest.get(model, 0.0) > OLD:
            do = "the collector does not cut batches: read logs/collector.log, restart it (`stoker restart collector`)"
            yield problem("queue", f"{model}: jobs wait for {oldest[model]:.0f} s while its engine is idle", do)
    total = ", ".join(f"{count} {name}" for name, count in sorted(state.items())) or "no open jobs"
    yield ok("queue", total)


def _jobs(tx: sa.Connection, settings: Settings) -> Iterator[Finding]:
    """Look for jobs that nobody would ever touch again."""
    sweeper = "the sweeper should have seen to it: read logs/collector.log"
    stuck = [
        (diagnosis.without_batch(tx), "jobs batched or running in a batch that is over", "report this as a defect"),
        (
            diagnosis.lapsed(tx, settings.lease + OLD),
            "batches whose lease ran out long ago, and which nobody ended",
            sweeper,
        ),
        (diagnosis.overdue(tx, OLD), "jobs that are delayed beyond their time", sweeper),
    ]
    for count, says, do in stuck:
        if count:
            yield problem("jobs", f"{says}: {_many(count)}", do)
    old = diagnosis.unclaimed(tx, settings.ready_timeout + OLD)
    if old:
        do = "is the engine busy with long jobs, or deaf? Look at its log; `stoker restart engine` costs no job"
        yield warning("jobs", f"batches that lie READY for over {settings.ready_timeout + OLD:.0f} s: {_many(old)}", do)
    if not old and not any(count for count, _, _ in stuck):
        yield ok("jobs", "none is stuck between two states")


def _deaths(tx: sa.Connection) -> Iterator[Finding]:
    died = diagnosis.deaths(tx, RECENT)
    suspects = diagnosis.suspected(tx)
    if died:
        named = ", ".join(f"{engine}: {count}" for engine, count in sorted(died.items()))
        says = f"batches that ended with their engine's death in {RECENT / 60:.0f} minutes: {named}"
        do = "read the engine's log of that time: a prompt that kills it is found by itself, a lack of memory is not"
        yield warning("deaths", f"{says}; jobs tried in small groups: {suspects}", do)
    else:
        yield ok("deaths", f"no engine died with jobs in {RECENT / 60:.0f} minutes")


def _deliveries(tx: sa.Connection) -> Iterator[Finding]:
    late = diagnosis.unsent(tx, OLD)
    if late and diagnosis.any_sent(tx):
        do = "see to the receivers that are named below; the others' deliveries go on meanwhile"
        yield warning("webhooks", f"deliveries that wait for their turn at a slow receiver: {_many(late)}", do)
    elif late:
        do = "see that the process `worker` runs and is not frozen: logs/worker.log, `stoker restart worker`"
        yield problem("webhooks", f"deliveries that are due for over {OLD:.0f} s and not sent: {_many(late)}", do)
    failing = diagnosis.failing(tx, FAILING_FOR)
    if not failing:
        yield ok("webhooks", "none failed in the last day")
        return
    by_host: dict[str, list[AnyRow]] = {}
    for row in failing:
        by_host.setdefault(_host(row.url), []).append(row)
    worst = sorted(by_host.items(), key=lambda item: -len(item[1]))
    for host, rows in worst[:_MOST_HOSTS]:
        yield _failing(host, rows)
    if len(worst) > _MOST_HOSTS:
        yield warning("webhooks", f"and {len(worst) - _MOST_HOSTS} more hosts", "the table `deliveries` has them")


def _failing(host: str, rows: Sequence[AnyRow]) -> Finding:
    why, _ = Counter(row.error or "no reason is stored" for row in rows).most_common(1)[0]
    given_up = sum(row.state == "failed" for row in rows)
    says = f"{host}: {_many(len(rows))} not delivered, of which {given_up} given up: {why}"
    if "STOKER_WEBHOOK_SECRET" in why or "signing secret" in why:
        return problem("webhooks", says, "set STOKER_WEBHOOK_SECRET for the workers (`stoker keys webhook-secret`)")
    if "internal" in why:
        do = "if it is a receiver of yours: name its network in STOKER_WEBHOOK_ALLOW_CIDRS; nothing was sent there"
        return warning("webhooks", says, do)
    return warning("webhooks", says, "see to the receiver; what is not given up is tried again by itself")


def _sealed(tx: sa.Connection, settings: Settings) -> Iterator[Finding]:
    """Look whether the webhooks' secrets can be opened; of a service that keeps none, nothing is said."""
    try:
        seal = seal_of(settings)
        lost, tried = resealing.locked_out(tx, seal)
    except NoSecretKey as error:
        yield problem("secrets", str(error), "without it no secret can be stored, nor a stored one be used")
        return
    if lost:
        says = f"{lost} of {tried} stored secrets of webhooks cannot be opened with the keys that are known here"
        do = (
            "set STOKER_SECRET_KEY to the service's keys, or put its file secret-key back from the backup; "
            "deliveries wait for it"
        )
        yield problem("secrets", says, do)
    elif tried:
        yield ok("secrets", f"{tried} stored secrets of webhooks were tried, and can be opened")


def _host(url: str) -> str:
    """Return a receiver's host: its path and query may hold a secret."""
    try:
        parts = urlsplit(url)
        return f"{parts.hostname}:{parts.port}" if parts.port else str(parts.hostname)
    except ValueError:
        return "a URL that is none"


def _bulks(db: Database) -> Iterator[Finding]:
    """Look for bulks for which something is to be done, and which nobody has touched when they are looked at again."""
    before = _unattended(db)
    if before:
        time.sleep(LOOK_AGAIN)
        before = {bulk: place for bulk, place in _unattended(db).items() if before.get(bulk) == place}
    for bulk, duty in before:
        do = "see that the process `bulk` runs: logs/bulk.log, `stoker restart bulk`"
        if duty == "ingest":
            yield warning("bulks", f"{bulk} is not read on; it may wait for room in the queue", do)
        else:
            yield problem("bulks", f"nobody does what is next for {bulk}: {duty}", do)
    if not before:
        yield ok("bulks", "none waits for anybody")


def _unattended(db: Database) -> Mapping[tuple[str, str], tuple[int, int]]:
    with db.reading() as tx:
        ids = bulk_leases.unattended(tx)[: diagnosis.MOST // 100]
        rows = [row for row in (bulk_leases.look(tx, bulk) for bulk in ids) if row is not None]
    return {(row.id, str(bulk_leases.duty(row))): (row.offset, row.done) for row in rows}


def _many(count: int) -> str:
    return f"{count} or more" if count >= diagnosis.MOST else str(count)
