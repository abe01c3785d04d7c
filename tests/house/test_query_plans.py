"""Every query of the queue's path goes by its index, whatever has gathered in the tables.

The SQL is that of the real functions, captured while they run; PostgreSQL plans it both with the values and without
(a generic plan, which it takes up for a statement that is run often).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
import sqlalchemy as sa

from models import (
    batches,
    bulk_leases,
    bulk_lines,
    bulk_results,
    bulk_views,
    bulks,
    census,
    cohorts,
    deliveries,
    delivery_log,
    diagnosis,
    due,
    endpoint_health,
    endpoints,
    ends,
    engines,
    idempotency,
    jobs,
    keys,
    loads,
    overview,
    owed,
    queue,
    results,
    retention,
    samples,
    schema,
    sending,
    timeline,
    usage,
    views,
    waiting,
)
from models.db import Database, new_id, now
from models.ends import Settled
from models.engines import Incarnation
from models.errors import NotFound
from stoker import settings
from tests import servers
from tests.house import plans

ENDED, QUEUED, DELAYED, COHORT, BATCHES = 6400, 3000, 600, 40, 10
ME = Incarnation("engine", "run_1", "fake", "host", 1, 1, "boot:1")
KINDS = [
    pytest.param((kind, analyzed), marks=getattr(pytest.mark, kind), id=f"{kind}-{'analyzed' if analyzed else 'fresh'}")
    for kind in ("sqlite", "postgres")
    for analyzed in (False, True)
]
LARGE = frozenset(
    {"jobs", "bodies", "results", "deliveries", "batches", "bulks", "idempotency_keys", "usage", "api_keys", "samples"}
)
PARTIAL = {
    *("jobs_queue", "jobs_cohorts", "jobs_batch", "jobs_delayed", "jobs_expiry"),
    *("batches_ready", "batches_running", "batches_cohorts", "deliveries_due", "bulks_unfinished"),
    *("deliveries_hosts", "deliveries_company"),
}
"""They hold only what is open, so that reading one from end to end may be right."""
BULK = new_id("bulk")
DELIVERED = new_id("msg")
RUNNING = [new_id("batch") for _ in range(BATCHES)]
IN_FLIGHT = [new_id("job") for _ in range(32 * BATCHES)]
Work = Callable[[sa.Connection], object]


@pytest.fixture(scope="module", params=KINDS)
def stocked(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    """Return a database in which thousands of jobs have ended, wait, are delayed, or run; it knows that, or not yet."""
    kind, analyzed = request.param
    server: servers.Postgres | None = None
    if kind == "postgres":
        server = request.getfixturevalue("postgres_server")
        database = Database(settings.load(database_url=server.create("plans")).database)
    else:
        database = Database(f"sqlite:///{tmp_path_factory.mktemp('plans') / 'stoker.db'}")
    schema.upgrade(database)
    with database.transaction() as tx:
        _stock(tx)
        if analyzed:
            tx.exec_driver_sql("ANALYZE")
    yield database
    database.close()
    if server is not None:
        server.drop("plans")


def _stock(tx: sa.Connection) -> None:
    chance = random.Random(7)
    engines.register(tx, ME)
    engines.go_live(tx, ME, 256, 1, {"fake": None})
    queue.lock(tx, "fake")
    past = [_batch("finished") for _ in range(ENDED // 32)]
    ended = [_job(chance, "succeeded", batch_id=past[nth // 32]["id"]) for nth in range(ENDED)]
    rows = [
        *ended,
        *(_job(chance, "queued", expires_at=5e9 if nth % 2 else None) for nth in range(QUEUED)),
        *(_job(chance, "delayed", run_at=1.0 if nth < 5 else 5e9) for nth in range(DELAYED)),
        *(_job(chance, "queued", cohort_id=f"cohort_{nth % 4}") for nth in range(COHORT)),
        *(_job(chance, "running", id=job_id, batch_id=RUNNING[n % BATCHES]) for n, job_id in enumerate(IN_FLIGHT)),
    ]
    rows[-1]["expires_at"] = 1.0
    for row in ended[::200]:
        row["owner"] = "small"
    tx.execute(sa.insert(jobs.table), rows)
    bodies = [
        {"job_id": row["id"], "body": "{}", "webhook_url": "http://127.0.0.1/", "webhook_include_result": False}
        for row in rows
    ]
    tx.execute(sa.insert(jobs.bodies), bodies)
    _stock_bulks(tx)
    results.store(tx, None, [results.Ended(row["id"], "succeeded", results.NewResult(200, "{}")) for row in ended], {})
    ready = [_batch("ready"), _batch("ready", engine_id=ME.engine, cohort_id="cohort_9")]
    running = [_batch("running", id=batch_id, lease_until=5e9) for batch_id in RUNNING]
    running[-1]["lease_until"] = 1.0
    tx.execute(sa.insert(batches.table), [*ready, *running, *past, *(_batch("finished") for _ in range(3000))])
    told = [_delivery(row["id"], nth) for nth, row in enumerate(ended)]
    told[-1] |= {"id": DELIVERED, "owner": "o7"}
    endpoint: dict[str, Any] = {"id": "whe_1", "owner": "o7", "name": "", "url": "http://x", "event_types": []}
    endpoint |= {"include_result": True, "coalesce": 1.0, "secret": "", "secret_hint": "", "created_at": 1.0}
    endpoint |= {"updated_at": 1.0}
    tx.execute(sa.insert(endpoints.table), endpoint)
    others = [endpoint | {"id": f"whe_{nth}", "owner": f"o{nth}", "coalesce": None} for nth in range(100, 1100)]
    tx.execute(sa.insert(endpoints.table), others)
    tx.execute(sa.insert(deliveries.table), told)
    old = [{"owner": "o1", "key": f"k{n}", "fingerprint": "f", "created_at": 1.0 * n} for n in range(2000)]
    tx.execute(sa.insert(idempotency.table), old)
    counts = dict.fromkeys(usage.STATES + usage.TOKENS, 1)
    used = [
        {"owner": f"o{n % 50}", "day": n // 50, "model": "fake", "engine": "engine"} | counts for n in range(50 * 100)
    ]
    tx.execute(sa.insert(usage.table), used)
    same = {"width": 10, "engine": "e", "incarnation": "run_1", "model": "fake", "lane": "bulk", "data": "{}"}
    tx.execute(sa.insert(samples.table), [same | {"at": 10 * n} for n in range(5000)])
    made = [
        {"id": new_id("key"), "owner": "o1", "hash": f"{n:064}", "prefix": "sk", "created_at": 1.0} for n in range(2000)
    ]
    tx.execute(sa.insert(keys.table), made)
    tx.execute(sa.update(idempotency.table).where(idempotency.table.c.key > "k3").values(created_at=now()))


def _stock_bulks(tx: sa.Connection) -> None:
    """Store ended bulks, and one whose lines have ended in part."""
    for number in range(1000):
        row = bulks.create(tx, bulks.NewBulk(f"o{number % 50}", "bulk", "bulk"))
        tx.execute(sa.update(bulks.table).where(bulks.table.c.id == row.id).values(state="completed"))
    row = bulks.create(tx, bulks.NewBulk("o7", "bulk", "bulk"))
    tx.execute(sa.update(bulks.table).where(bulks.table.c.id == row.id).values(id=BULK))
    lines = [bulk_lines.NewLine(number, f"n{number}", "fake", "/v1/completions", "{}", 1) for number in range(2000)]
    held = tx.execute(sa.select(bulks.table).where(bulks.table.c.id == BULK)).one()
    bulk_lines.insert(tx, bulk_lines.rows(tx.dialect.name, held, "bulk", lines, 1.0))
    first = jobs.table.c.line_no < 1000
    tx.execute(sa.update(jobs.table).where(jobs.table.c.bulk_id == BULK, first).values(state="failed", finished_at=1.0))
    bulk_lines.end_unread(
        tx, BULK, [bulk_lines.EndedLine(number, None, "failed", "bad", "no") for number in range(3000, 4000)]
    )


def _job(chance: random.Random, state: str, **values: Any) -> dict[str, Any]:
    blank = dict.fromkeys(("batch_id", "cohort_id", "run_at", "expires_at"))
    return {
        "id": new_id("job"),
        "owner": f"o{chance.randrange(50)}",
        "model": "fake" if chance.random() < 0.9 else "other",
        "lane": chance.choice(("realtime", "standard", "bulk")),
        "endpoint": "/v1/chat/completions",
        "state": state,
        "pos": chance.randrange(10**15),
        "tokens": 10,
        "notify": True,
        "attempts": 1,
        "deferrals": 0,
        "lone_deaths": 0,
        "created_at": 1.0,
        **blank,
        **values,
    }


def _batch(state: str, **values: Any) -> dict[str, Any]:
    taken = {} if state == "ready" else {"engine_id": ME.engine, "incarnation": ME.id}
    blank = dict.fromkeys(("engine_id", "incarnation", "lease_until", "cohort_id"))
    row = {"id": new_id("batch"), "model": "fake", "lane": "standard", "rank": 1, "state": state, "reason": "full"}
    return {**row, "size": 32, "tokens": 320, "created_at": 1.0, **blank, **taken, **values}


def _delivery(job_id: str, nth: int) -> dict[str, Any]:
    state = "pending" if nth < 500 else "delivered"
    row = {"id": new_id("msg"), "owner": f"o{nth % 50}", "job_id": job_id, "event": "job.succeeded", "url": "http://x"}
    due = 1.0 if nth < 5 else 5e9
    row["endpoint_id"] = f"whe_{nth % 50}" if nth % 2 else ""
    row |= {"host": f"h{nth % 40}", "group_id": f"msg_{nth // 4}" if nth % 4 == 0 else None}
    return {**row, "include_result": False, "state": state, "try": 0, "next_at": due, "created_at": 1.0}


def _get(tx: sa.Connection) -> None:
    with suppress(NotFound):
        views.get(tx, "o7", IN_FLIGHT[0])


def _timeline(tx: sa.Connection) -> None:
    ended = (jobs.table.c.owner == "o7", jobs.table.c.id > "job_", jobs.table.c.batch_id == RUNNING[0])
    one = tx.execute(sa.select(jobs.table.c.id).where(*ended).order_by(jobs.table.c.id).limit(1)).scalar_one()
    timeline.of(tx, "o7", one, 15.0, 900.0)


def _position(tx: sa.Connection) -> object:
    job = {"state": "queued", "model": "fake", "lane": "standard", "owner": "o7"}
    row = sa.select(*(sa.literal(value).label(name) for name, value in job.items()), sa.literal(10**15).label("pos"))
    return views.queue_position(tx, tx.execute(row).one())


def _aged(kind: retention.Kind) -> dict[str, tuple[Work, set[str]]]:
    """Return how rows of a kind are looked for and ended when all of them are past their time."""
    return {
        f"old {kind.prefix}, {kind.name}": (lambda tx: retention.page(tx, kind, kind.start, 5e9, 1000), set()),
        f"end {kind.prefix}, {kind.name}": (lambda tx: retention.retire(tx, kind, IN_FLIGHT[:50], 5e9), set()),
        f"purge {kind.prefix}, {kind.name}": (lambda tx: kind.purge(tx, IN_FLIGHT[:50]), set()),
    }


WANTED = [
    owed.Due("msg_f", "h1", None, None, "o7", ""),
    owed.Due("msg_f", "h1", "msg_0", None, "o7", ""),
    owed.Due("", "x", None, "whe_1", "o7", "whe_1"),
]
MOVED = [owed.Due("msg_f", "h1", None, None, "o7", "whe_1")]
FAILED = sending.Try(ok=False, status=500, latency=1.0)
TRIED = [
    sending.Ended(
        sending.Delivery(f"msg_{n}", "job", "job.failed", "", include_result=False, created_at=1.0, attempt=1),
        FAILED,
        5.0,
    )
    for n in range(64)
]
NEWS = endpoint_health.News(*(frozenset({(one, "http://h1/")}) for one in ("whe_1", "whe_2", "whe_3")))
LOGGED = delivery_log.Filters("delivered", since=1.0, until=5e9)
OF_ENDPOINT = delivery_log.Filters(endpoint_id="whe_7")
OUTCOMES = [Settled(job_id, "succeeded", results.NewResult(200, "{}")) for job_id in IN_FLIGHT[:640:BATCHES]]
CUT = batches.Cut("fake", "standard", 1, "full", IN_FLIGHT[:64], 640)

BY_INDEX: dict[str, tuple[Work, set[str]]] = {
    "waiting": (lambda tx: queue.waiting(tx, "fake"), {"jobs_queue"}),
    "candidates": (lambda tx: queue.candidates(tx, "fake", "standard", "o7", 33), {"jobs_queue"}),
    "models with work": (queue.models_with_work, {"jobs_queue", "jobs_cohorts"}),
    "gather": (lambda tx: batches.gather(tx, CUT), set()),
    "claimable": (lambda tx: batches.claimable(tx, ME.engine), {"batches_ready"}),
    "claim": (lambda tx: batches.claim(tx, ME, [0, 1, 2], 15.0, idle=True), {"batches_ready", "jobs_batch"}),
    "renew": (lambda tx: batches.renew(tx, ME, RUNNING, 15.0), set()),
    "stopped": (lambda tx: jobs.stopped(tx, {RUNNING[0]: IN_FLIGHT[:32]}), set()),
    "settle": (lambda tx: ends.settle(tx, ME.engine, {RUNNING[0]: OUTCOMES}), set()),
    "finish": (lambda tx: batches.finish(tx, RUNNING[0]), {"jobs_batch"}),
    "give back": (lambda tx: batches.give_back(tx, batches.table.c.id == RUNNING[0]), {"jobs_batch"}),
    "running": (lambda tx: loads.running(tx, [ME.engine]), {"jobs_batch"}),
    "ready": (lambda tx: loads.ready(tx, "fake"), {"batches_ready"}),
    "measured": (loads.measured, {"batches_recent"}),
    "expired leases": (batches.expired, {"batches_running"}),
    "crash": (lambda tx: cohorts.crash(tx, ME.engine, ME.id, "lost", max_attempts=20), {"jobs_batch"}),
    "stranded": (lambda tx: batches.give_back_stranded(tx, 15.0, 30.0), {"batches_ready"}),
    "next cohort": (lambda tx: cohorts.next_waiting(tx, "fake"), {"jobs_cohorts"}),
    "expire": (due.expire, {"jobs_expiry"}),
    "release due": (due.release_due, {"jobs_delayed"}),
    "anything due": (due.any_due, {"jobs_expiry", "jobs_delayed"}),
    "deliveries due": (owed.any_due, {"deliveries_due"}),
    "the oldest deliveries due": (lambda tx: owed.due(tx, 512), {"deliveries_due"}),
    "hosts with deliveries due": (lambda tx: owed.due_hosts(tx, "h3", 16), {"deliveries_hosts"}),
    "deliveries due of hosts": (lambda tx: owed.due_of(tx, ["h1", "h2"], 8), {"deliveries_hosts"}),
    "claim deliveries": (lambda tx: sending.claim(tx, WANTED, 30.0), {"deliveries_group", "deliveries_company"}),
    "deliveries follow their endpoint": (lambda tx: sending.claim(tx, MOVED, 30.0), {"deliveries_hosts"}),
    "record deliveries": (lambda tx: sending.record(tx, TRIED), set()),
    "health of endpoints": (lambda tx: endpoint_health.tell(tx, NEWS, 5.0), set()),
    "census": (lambda tx: census.take(tx, 15.0), {"jobs_queue", "jobs_cohorts", "jobs_delayed", "jobs_batch"}),
    "waiting of an owner": (
        lambda tx: waiting.of_owner(tx, "o7", 10**6),
        {"jobs_queue", "jobs_cohorts", "jobs_delayed"},
    ),
    "waiting of all": (lambda tx: waiting.of_all(tx, 10**6), {"jobs_queue", "jobs_cohorts", "jobs_delayed"}),
    "rings": (lambda tx: batches.engines_to_ring(tx, 15.0), {"batches_ready"}),
    "busy engines": (cohorts.busy_engines, {"batches_cohorts"}),
    "list": (lambda tx: views.page(tx, "small", views.Filters(), after=None, limit=20), {"jobs_owner"}),
    "next page": (lambda tx: views.page(tx, "small", views.Filters(), after="job_f", limit=20), {"jobs_owner"}),
    "list what failed": (
        lambda tx: views.page(tx, "o7", views.Filters(state="failed"), after="job_f", limit=20),
        {"jobs_unsuccessful"},
    ),
    "list by the beginning of an id": (
        lambda tx: views.page(tx, "small", views.Filters(begins="job_0"), after=None, limit=20),
        set(),
    ),
    "one job": (_get, set()),
    "states": (lambda tx: views.states(tx, IN_FLIGHT[:200]), set()),
    "queue position": (_position, {"jobs_queue"}),
    "bulk results": (
        lambda tx: bulk_results.page(tx, BULK, ok=False, after=10, limit=50, details=True),
        {"results_bulk"},
    ),
    "sizes of bulk results": (
        lambda tx: bulk_results.fitting(tx, BULK, ok=False, after=10, limit=50, details=True),
        {"results_bulk"},
    ),
    "columns of a bulk": (lambda tx: bulk_views.columns(tx, BULK), {"jobs_bulk"}),
    "unattended bulks": (bulk_leases.unattended, {"bulks_unfinished"}),
    "cancel a bulk": (lambda tx: bulk_lines.end_slice(tx, BULK, "cancelled", 0, 200), {"jobs_bulk"}),
    "pause a bulk": (lambda tx: bulk_lines.relane_slice(tx, BULK, "paused", 0, 200), {"jobs_bulk"}),
    "failed lines": (lambda tx: bulk_lines.failed_jobs(tx, BULK, 10, 200), {"jobs_bulk"}),
    "delete a bulk": (lambda tx: bulk_lines.delete_slice(tx, BULK, 200), {"jobs_bulk", "results_bulk"}),
    "running lines": (lambda tx: bulk_lines.running(tx, BULK), {"jobs_batch"}),
    "list bulks": (lambda tx: bulks.page(tx, "o7", kind="bulk"), {"bulks_owner"}),
    "find bulks": (lambda tx: bulks.page(tx, "o7", begins=["bulk_01", "batch_01"]), {"bulks_owner"}),
    "list a bulk's jobs": (
        lambda tx: views.page(tx, "o7", views.Filters(bulk_id=BULK), after=None, limit=20),
        set(),
    ),
    "deliveries of an owner": (
        lambda tx: delivery_log.page(tx, "o7", LOGGED, after=None, limit=20),
        {"deliveries_owner"},
    ),
    "deliveries of an endpoint": (
        lambda tx: delivery_log.page(tx, "o7", OF_ENDPOINT, after="msg_f", limit=20),
        {"deliveries_endpoint"},
    ),
    "deliveries of a job": (
        lambda tx: delivery_log.page(tx, "o7", delivery_log.Filters(job_id=IN_FLIGHT[0]), after=None, limit=20),
        set(),
    ),
    "redeliver a range": (
        lambda tx: delivery_log.redeliver_some(tx, "o7", LOGGED, after=None, limit=50),
        {"deliveries_owner"},
    ),
    "redeliver one": (lambda tx: delivery_log.redeliver(tx, "o7", DELIVERED), set()),
    "subscribers": (lambda tx: endpoints.subscribers(tx, ["o7", "o8"]), {"webhook_endpoints_owner"}),
    "list endpoints": (lambda tx: endpoints.page(tx, "o7", after="whe_f"), {"webhook_endpoints_owner"}),
    "old keys": (lambda tx: idempotency.any_older(tx, 3600.0), {"idempotency_keys_age"}),
    **{name: work for kind in retention.KINDS for name, work in _aged(kind).items()},
    "fading files": (lambda tx: retention.fading(tx, 5e9, 0.0, 100), {"files_expiry", "files_leftover"}),
    "removable files": (lambda tx: retention.removable(tx, (0.0, ""), 100), {"files_leftover"}),
    "doctor: jobs without a batch": (diagnosis.without_batch, {"jobs_batch"}),
    "doctor: lapsed leases": (lambda tx: diagnosis.lapsed(tx, 60.0), {"batches_running"}),
    "doctor: unclaimed batches": (lambda tx: diagnosis.unclaimed(tx, 60.0), {"batches_ready"}),
    "doctor: overdue jobs": (lambda tx: diagnosis.overdue(tx, 60.0), {"jobs_delayed"}),
    "doctor: suspected jobs": (diagnosis.suspected, {"jobs_cohorts"}),
    "doctor: deaths": (lambda tx: diagnosis.deaths(tx, 600.0), {"batches_recent"}),
    "doctor: unsent deliveries": (lambda tx: diagnosis.unsent(tx, 60.0), {"deliveries_due"}),
    "doctor: failing deliveries": (lambda tx: diagnosis.failing(tx, 86_400.0), set()),
    "a key": (lambda tx: keys.find(tx, "sk-stoker-none"), set()),
    "a key by its id": (lambda tx: keys.find_by_id(tx, "key_none"), set()),
    "keys of an owner": (lambda tx: keys.page(tx, "o7", 20, after="key_f"), set()),
    "keys of everybody": (lambda tx: keys.page(tx, None, 20, after="key_f"), set()),
    "keys that were used": (lambda tx: keys.note_used(tx, [f"key_{nth}" for nth in range(40)]), set()),
    "tokens of a day": (lambda tx: usage.today(tx, "o7"), set()),
    "usage of an owner": (lambda tx: usage.page(tx, "o7", 90, 99), set()),
    "usage of everybody": (lambda tx: usage.page(tx, None, 95, 99), set()),
    "overview": (overview.look, {"batches_running"}),
    "latest failures": (lambda tx: overview.failures(tx, "o7"), {"jobs_unsuccessful"}),
    "samples": (lambda tx: list(samples.read(tx, 10, 49_000)), set()),
    "old samples": (lambda tx: samples.forget(tx, 100), set()),
    "timeline": (_timeline, {"jobs_owner"}),
    "old usage": (lambda tx: usage.any_before(tx, 3), {"usage_day"}),
    "forget usage": (lambda tx: usage.forget(tx, 3, 100), {"usage_day"}),
    "waiting tokens of an owner": (lambda tx: waiting.tokens_of_owner(tx, "o1", 100), {"jobs_queue", "jobs_delayed"}),
}
BOUNDED = {
    "expire": "expires_at",
    "release due": "run_at",
    "anything due": "run_at",
    "the oldest deliveries due": "next_at",
    "hosts with deliveries due": "host",
    "deliveries due of hosts": "next_at",
    "deliveries follow their endpoint": "next_at",
    "expired leases": "lease_until",
    "waiting of an owner": "owner",
    "waiting tokens of an owner": "owner",
    "tokens of a day": "day",
    "usage of everybody": "day",
    "old usage": "day",
}
"""The index is searched up to now, or of each owner the head, not read through with a filter."""
HOPS = frozenset({"hosts with deliveries due"})
"""Not even a partial index is read from end to end."""


@pytest.mark.parametrize("name", BY_INDEX)
def test_no_query_of_the_path_reads_a_whole_table(stocked: Database, name: str) -> None:
    """Each is answered by an index, the one that was made for it, however many jobs have ended or wait."""
    work, wanted = BY_INDEX[name]
    for generic in (False, True) if stocked.dialect == "postgresql" else (False,):
        found = plans.accesses(stocked, work, generic=generic)
        whole = [access for access in found if access.whole and (access.index not in PARTIAL or name in HOPS)]
        assert [access for access in whole if access.table in LARGE] == []
        assert wanted <= {access.index for access in found}
        if name in BOUNDED:
            assert any(BOUNDED[name] in access.bounds for access in found)
