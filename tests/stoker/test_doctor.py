"""`stoker doctor`: names each thing that is broken and what to do, never hangs, never tells a secret."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import psycopg
import pytest
import redis
import sqlalchemy as sa
from typer.testing import CliRunner, Result

from models import batches, bulks, deliveries, engines, jobs, sweeps
from models.bulks import NewBulk
from models.db import Database, now
from models.engines import Incarnation
from models.sending import Ended, Try, record
from stoker import checks_database, checks_queue, checks_redis, doctor
from stoker.checks_host import host
from stoker.checks_web import web
from stoker.cli import app
from stoker.finding import Finding, problem, worst
from stoker.processes import Ledger, Recorded, locked
from stoker.settings import Settings, load
from tasks import reaper
from tasks.proc import look
from tests import receivers, servers
from tests.journeys.running import stands_still
from tests.models import given
from tests.models.test_bulks import made
from tests.models.test_deliveries import claim, told
from tests.tasks.inprocess import until

Change = Callable[[Database], object]


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look again after a moment only."""
    monkeypatch.setattr(checks_queue, "LOOK_AGAIN", 0.05)
    monkeypatch.setattr(checks_redis, "LOOK_AGAIN", 0.05)


@pytest.fixture
def well(database: Database, settings: Settings) -> Database:
    """Return the database of a service that is well: one live engine, a sweep just now."""
    given.engine(database)
    with database.transaction() as tx:
        sweeps.begin(tx, settings.lease)
    return database


def not_well(findings: Iterator[Finding] | list[Finding]) -> list[Finding]:
    """Return what is to be looked at."""
    return [finding for finding in findings if finding.status != "ok"]


def the_one(findings: Iterator[Finding] | list[Finding], check: str, status: str, *words: str) -> Finding:
    """Return the only thing that is not well; it must say these words, and what to do."""
    found = not_well(findings)
    assert [(one.check, one.status) for one in found] == [(check, status)], found
    (one,) = found
    assert one.do
    for word in words:
        assert word in f"{one.says}; {one.do}", one
    return one


def lasting(finding: Finding, what: str) -> int:
    """Return for how many seconds something is said to be so; it went on until it was looked at."""
    (seconds,) = re.findall(rf"{what} for (\d+) s", finding.says)
    return int(seconds)


def stoker(*arguments: object, **environment: str) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(app, [str(part) for part in arguments], env=environment, catch_exceptions=False)


# The queue


def test_a_queue_that_is_well(well: Database, settings: Settings) -> None:
    """Jobs that wait, run and are on their way out are no reason to complain."""
    mine = given.engine(well)
    given.submitted(well, 3)
    given.running(well, mine, 2)
    told(well)
    found = list(checks_queue.queue(settings))
    assert not_well(found) == []
    (says,) = [one.says for one in found if one.check == "queue"]
    assert says == "3 queued, 2 running"


def aged(table: sa.Table, column: str, seconds: float, *where: sa.ColumnElement[bool]) -> Change:
    """Return what brings a time of rows into the past."""
    return lambda database: _update(database, table, {column: now() - seconds}, *where)


def _update(database: Database, table: sa.Table, values: dict[str, object], *where: sa.ColumnElement[bool]) -> None:
    with database.transaction() as tx:
        assert tx.execute(sa.update(table).where(*where).values(values)).rowcount


@pytest.mark.parametrize("age", [60.0, None])
def test_a_sweeper_that_is_gone(age: float | None, well: Database, settings: Settings) -> None:
    """No sweep for a minute, or never: beat, Redis and the collector are named."""
    with well.transaction() as tx:
        tx.execute(sa.delete(sweeps.table) if age is None else sa.update(sweeps.table).values(last_at=now() - age))
    the_one(checks_queue.queue(settings), "sweeper", "problem", "beat", "collector")


def test_a_silent_engine(well: Database, settings: Settings) -> None:
    """It says that it is live, and gave no sign of life for half a minute."""
    aged(engines.table, "seen_at", 30.0)(well)
    one = the_one(checks_queue.queue(settings), "engine", "problem", "engine (process 1 on host)", "frozen")
    assert 30 <= lasting(one, "silent") < 60


def test_an_engine_that_was_taken_away(well: Database, settings: Settings) -> None:
    """One that nobody saw for hours was perhaps taken away on purpose."""
    given.engine(well, "other")
    aged(engines.table, "seen_at", 7200.0, engines.table.c.id == "other")(well)
    the_one(checks_queue.queue(settings), "engine", "warning", "other", "2 h ago")


@pytest.mark.parametrize(("age", "status"), [(10.0, "warning"), (1000.0, "problem")])
def test_an_engine_that_loads(age: float, status: str, well: Database, settings: Settings) -> None:
    """It may take its time, not for ever."""
    _update(well, engines.table, {"state": "starting", "started_at": now() - age})
    one = the_one(checks_queue.queue(settings), "engine", status)
    assert age <= lasting(one, "loading") < age + 30


def test_no_engine(well: Database, settings: Settings) -> None:
    """None was ever started, or all have left."""
    _update(well, engines.table, {"state": "gone"})
    the_one(checks_queue.queue(settings), "engine", "problem", "no engine runs", "stoker engine NAME")


def test_jobs_that_no_engine_serves(well: Database, settings: Settings) -> None:
    """The model is named, and how many wait for it."""
    given.submitted(well, 2, model="llama")
    the_one(
        checks_queue.queue(settings), "queue", "problem", "serves llama; jobs that wait for it: 2", "start an engine"
    )


def test_jobs_that_wait_while_the_engine_is_idle(well: Database, settings: Settings) -> None:
    """The collector does not do its work."""
    given.submitted(well)
    _update(well, jobs.table, {"pos": int((time.time() - 120) * 1e6)})
    the_one(checks_queue.queue(settings), "queue", "problem", "jobs wait for 12", "collector")


def test_a_job_whose_batch_is_over(well: Database, settings: Settings) -> None:
    """A running job of which no lease tells is stuck for ever."""
    given.running(well, given.engine(well))
    _update(well, batches.table, {"state": "finished"})
    the_one(checks_queue.queue(settings), "jobs", "problem", "running in a batch that is over: 1")


def test_a_lease_that_nobody_swept(well: Database, settings: Settings) -> None:
    """A batch runs on whose lease ran out minutes ago."""
    given.running(well, given.engine(well))
    aged(batches.table, "lease_until", 120.0)(well)
    the_one(checks_queue.queue(settings), "jobs", "problem", "batches whose lease ran out")


def test_a_batch_that_nobody_claims(well: Database, settings: Settings) -> None:
    """It lies READY beyond the time after which it is given back."""
    given.cut(well, given.submitted(well))
    aged(batches.table, "created_at", 120.0)(well)
    the_one(checks_queue.queue(settings), "jobs", "warning", "lie READY for over 90 s: 1", "stoker restart engine")


def test_a_delay_that_nobody_ended(well: Database, settings: Settings) -> None:
    """A delayed job that was to go on a minute ago."""
    given.submitted(well)
    _update(well, jobs.table, {"state": "delayed", "run_at": now() - 120.0})
    the_one(checks_queue.queue(settings), "jobs", "problem", "delayed beyond their time: 1")


def test_engines_that_died(well: Database, settings: Settings) -> None:
    """Lately, with jobs: how often, and how many are suspected."""
    given.running(well, given.engine(well))
    _update(well, batches.table, {"state": "crashed"})
    _update(well, jobs.table, {"state": "queued", "batch_id": None, "cohort_id": "cohort_1"})
    the_one(checks_queue.queue(settings), "deaths", "warning", "engine: 1", "tried in small groups: 1")


def test_a_bulk_that_nobody_tends(well: Database, settings: Settings) -> None:
    """Something is to be done, and nobody holds it, twice in a row."""
    with well.transaction() as tx:
        row = bulks.create(tx, NewBulk(owner="alice", kind="bulk", lane="bulk"))
    the_one(checks_queue.queue(settings), "bulks", "problem", f"what is next for {row.id}: start", "restart bulk")


def test_a_bulk_that_moves(well: Database, settings: Settings) -> None:
    """Lines that are queued are no duty of anybody's."""
    made(well, 3)
    assert not_well(checks_queue.queue(settings)) == []


def test_deliveries_that_nobody_sends(well: Database, settings: Settings) -> None:
    """Due for minutes, not tried: the worker is at fault, not the receiver."""
    told(well, 2)
    aged(deliveries.table, "next_at", 120.0)(well)
    the_one(
        checks_queue.queue(settings),
        "webhooks",
        "problem",
        "deliveries that are due for over 60 s and not sent: 2",
        "restart worker",
    )


FAULTS = [
    ("the receiver answered 500", 3600.0, "warning", "0 given up", "tried again"),
    ("the receiver answered 410", None, "warning", "1 given up", "see to the receiver"),
    ("x resolves to an internal address, which webhooks may not reach", None, "warning", "STOKER_WEBHOOK_ALLOW_CIDRS"),
    ("there is no STOKER_WEBHOOK_SECRET to sign with", 3600.0, "problem", "webhook-secret"),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault[0].split()[-1])
def test_deliveries_that_do_not_get_through(fault: tuple[str, ...], well: Database, settings: Settings) -> None:
    """Summed up by host, with the reason; the URL's path, which may hold a secret, is not told."""
    error, retry_in, status, *words = fault
    told(well, webhook=replace(given.HOOK, url="http://hooks.example:8080/T0/secret"))
    (sent,) = claim(well)
    with well.transaction() as tx:
        record(tx, [Ended(sent, Try(ok=False, status=500, latency=1.0, error=error), retry_in)])  # type: ignore[arg-type]  # the table above
    one = the_one(checks_queue.queue(settings), "webhooks", status, "hooks.example:8080: 1 not delivered", *words)
    assert "T0" not in one.says


@pytest.fixture
def dead_engine(well: Database) -> Iterator[int]:
    """Plant an engine of this machine whose process is dead, and whose child lives on; return the child's pid."""
    script = "import subprocess; print(subprocess.Popen(['sleep', '60'], stdout=-3).pid, flush=True); input()"
    parent = subprocess.Popen([sys.executable, "-c", script], stdin=-1, stdout=-1, text=True, start_new_session=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    start = reaper.process_start(parent.pid)
    old = Incarnation("engine", "run_1", "fake", socket.gethostname(), parent.pid, parent.pid, start)
    with well.transaction() as tx:
        engines.register(tx, old)
        engines.go_live(tx, old, 1, 0, {"fake": None})
    parent.kill()
    parent.communicate()
    yield child
    os.kill(child, signal.SIGKILL)


def test_what_a_dead_engine_left(dead_engine: int, settings: Settings) -> None:
    """Its child may hold the GPU's memory: the pid is named."""
    the_one(
        checks_queue.queue(settings), "engine", "problem", f"may hold a GPU: {dead_engine}", f"kill -9 {dead_engine}"
    )


# The database


def test_a_database_that_is_well(database: Database, settings: Settings) -> None:
    """It answers, its tables are right, its clock is ours, nobody is held up."""
    assert not_well(checks_database.database(settings)) == []


@pytest.mark.parametrize(("ahead", "status"), [(20.0, "warning"), (-600.0, "problem")])
def test_clocks_that_differ(ahead: float, status: str, database: Database, settings: Settings) -> None:
    """By how much and in which direction."""
    found = checks_database.database(settings, lambda: time.time() - ahead)
    word = "ahead of" if ahead > 0 else "behind"
    the_one(found, "clock", status, f"{abs(ahead):.1f} s {word} this machine's", "NTP")


@pytest.mark.parametrize(("revision", "do"), [("0001", "stoker db upgrade"), ("0099", "a newer version made")])
def test_tables_of_another_version(revision: str, do: str, database: Database, settings: Settings) -> None:
    """Older ones, and newer ones that this version does not know."""
    with database.transaction() as tx:
        mine = tx.exec_driver_sql("SELECT version_num FROM alembic_version").scalar_one()
        tx.execute(_REVISION, {"revision": revision})
    try:
        the_one(checks_database.database(settings), "schema", "problem", revision, do)
        assert list(checks_queue.queue(settings)) == []
    finally:
        with database.transaction() as tx:
            tx.execute(_REVISION, {"revision": mine})


_REVISION = sa.text("UPDATE alembic_version SET version_num = :revision")


def test_a_database_that_is_not_there(tmp_path: Path) -> None:
    """A missing file is told, and not made."""
    settings = load(data=tmp_path)
    the_one(checks_database.database(settings), "database", "problem", f"no database {tmp_path}/stoker.db")
    assert list(checks_queue.queue(settings)) == []
    assert list(tmp_path.iterdir()) == []


def test_a_held_write_lock(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody is frozen while it has SQLite's only write lock."""
    monkeypatch.setattr(checks_database, "_LOCK_PATIENCE", 0.1)
    holder = sqlite3.connect(sqlite_url.removeprefix("sqlite:///"), isolation_level=None)
    with closing(holder):
        holder.execute("BEGIN IMMEDIATE")
        the_one(
            checks_database.database(load(database_url=sqlite_url)), "writes", "problem", "write lock", "kill -CONT"
        )


def test_a_log_that_grows(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite's log cannot shrink while somebody reads."""
    monkeypatch.setattr(checks_database, "LARGE_LOG", -1)
    the_one(checks_database.database(load(database_url=sqlite_url)), "wal", "warning", "stoker.db-wal")


def test_who_holds_others_up(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A transaction that others wait for, with how to end it; then one that is only long."""
    monkeypatch.setattr(checks_database, "_LOCK_PATIENCE", 0.0)
    settings = load(database_url=postgres_url)
    with psycopg.connect(postgres_url) as holder, psycopg.connect(postgres_url, autocommit=True) as waiter:
        holder.execute("LOCK TABLE jobs")
        waiter.execute("SET lock_timeout = '20s'")
        waiting = threading.Thread(target=partial(_lock, waiter), daemon=True)
        waiting.start()
        pid = holder.info.backend_pid
        with psycopg.connect(postgres_url, autocommit=True) as eye:
            blocked = "SELECT count(*) FROM pg_stat_activity WHERE %s = ANY (pg_blocking_pids(pid))"
            while eye.execute(blocked, (pid,)).fetchone() == (0,):
                time.sleep(0.01)
        the_one(
            checks_database.database(settings),
            "transactions",
            "problem",
            f"process {pid}",
            f"pg_terminate_backend({pid})",
        )
        monkeypatch.setattr(checks_database, "LONG", 0.0)
        holder.rollback()
        waiting.join()
        holder.execute("SELECT 1")
        the_one(checks_database.database(settings), "transactions", "warning", f"process {pid}", "idle in transaction")


def _lock(waiter: psycopg.Connection) -> None:
    with waiter.transaction():
        waiter.execute("LOCK TABLE jobs")


@pytest.fixture
def own_postgres() -> Iterator[servers.Postgres]:
    """Run a PostgreSQL that the test may break."""
    with servers.postgres() as server:
        yield server


def test_a_postgres_that_is_gone_or_frozen(own_postgres: servers.Postgres) -> None:
    """Refused at once; frozen, the rest is still looked at, within the time that is given; no password is told."""
    url = own_postgres.create("stoker").replace("stoker@", "stoker:tops3cret@")
    settings = load(database_url=url)
    os.killpg(own_postgres.pid, signal.SIGSTOP)
    try:
        began = time.monotonic()
        groups = {
            "database": partial(checks_database.database, settings),
            "queue": partial(checks_queue.queue, settings),
        }
        found = doctor.in_time(groups, 1.0)
        assert [(one.check, one.status) for one in found] == [("database", "problem"), ("queue", "problem")]
        assert time.monotonic() - began < 60
    finally:
        os.killpg(own_postgres.pid, signal.SIGCONT)
    own_postgres.stop(signal.SIGQUIT)
    one = the_one(checks_database.database(settings), "database", "problem", "does not answer", "start the database")
    the_one(checks_queue.queue(settings), "queue", "warning", "see to the database first")
    assert "tops3cret" not in one.says


# Redis


def test_a_redis_that_is_well(redis_url: str) -> None:
    """It answers, takes what it is told, and nothing lies there."""
    assert not_well(checks_redis.broker(load(redis_url=redis_url))) == []


@pytest.mark.redis
def test_a_redis_that_is_gone_or_frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Named, with its address, without its password."""
    monkeypatch.setattr(checks_redis, "TIMEOUT", 0.2)
    with servers.redis() as server:
        settings = load(redis_url=server.url.replace("//", "//:tops3cret@"))
        os.kill(server.pid, signal.SIGSTOP)
        the_one(checks_redis.broker(settings), "redis", "problem", f"127.0.0.1:{server.port}", "start Redis")
        server.stop(signal.SIGKILL)
        one = the_one(checks_redis.broker(settings), "redis", "problem", "does not answer", "STOKER_REDIS_URL")
    assert "tops3cret" not in one.says + one.do


@pytest.mark.redis
def test_a_redis_that_forgets_or_refuses() -> None:
    """A policy that throws doorbells away, memory that is nearly full, and a Redis that takes no writes."""
    with servers.redis(
        options=("--appendonly", "no", "--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru")
    ) as it:
        settings = load(redis_url=it.url)
        the_one(checks_redis.broker(settings), "redis-memory", "warning", "allkeys-lru", "noeviction")
        it.command(b"CONFIG SET maxmemory-policy noeviction")
        assert not_well(checks_redis.broker(settings)) == []
        it.command(b"CONFIG SET maxmemory 1mb")
        found = not_well(checks_redis.broker(settings))
        assert [(one.check, one.status) for one in found] == [("redis-writes", "problem"), ("redis-memory", "warning")]


@pytest.mark.parametrize(("count", "status"), [(3, "warning"), (200, "problem")])
def test_a_queue_that_nobody_listens_to(count: int, status: str, redis_url: str) -> None:
    """Messages of which the first is not taken: which process should."""
    with redis.Redis.from_url(redis_url) as client:
        client.lpush("default", *(f"message {number}" for number in range(count)))
    found = checks_redis.broker(load(redis_url=redis_url))
    the_one(found, "queues", status, f"default, where {count} messages", "restart worker")


# The web server


def answering(status: int, body: dict[str, object]) -> receivers.Reply:
    """Return an answer in JSON."""
    return receivers.Reply(status, body=json.dumps(body).encode())


def test_a_web_server_that_answers_or_not() -> None:
    """Ready, degraded, without its database, silent, and gone."""
    settings = load()
    with receivers.receiver() as server:
        server.answer = lambda _: answering(200, {"status": "ok"})
        assert not_well(web(settings, server.url, known=False)) == []
        server.answer = lambda _: answering(200, {"status": "degraded"})
        the_one(web(settings, server.url, known=False), "ready", "warning", "Redis")
        server.answer = lambda _: answering(503, {"detail": "the database does not answer"})
        the_one(web(settings, server.url, known=False), "ready", "problem", "the database does not answer")
    the_one(web(settings, server.url, known=False), "web", "problem", server.url, "stoker restart web")
    gone = settings.model_copy(update={"port": server.port})
    the_one(web(gone, None, known=True), "web", "problem", "does not answer")
    the_one(web(gone, None, known=False), "web", "warning", "--url")


# This machine


@pytest.fixture
def here(tmp_path: Path) -> Settings:
    """Return settings with a data folder that is not there."""
    return load(data=tmp_path / "var", engine="fake")


@pytest.fixture
def folder(here: Settings) -> Path:
    """Return a data folder as `stoker up` makes it."""
    for path in (here.data, here.data / "run", here.data / "logs"):
        path.mkdir(mode=0o700)
    return here.data


def test_a_machine_that_is_well(folder: Path, here: Settings) -> None:
    """Nothing runs on the folder, and nothing is left there."""
    assert not_well(host(here, 0.0)) == []


def test_a_disk_that_is_nearly_full(folder: Path, here: Settings) -> None:
    """Less is free than is asked for."""
    the_one(host(here, 1e9), "disk", "problem", "GB free of", "STOKER_RETENTION_DAYS")


@pytest.mark.parametrize(("mode", "status"), [(0o755, "warning"), (0o777, "problem")])
def test_a_folder_that_others_get_into(mode: int, status: str, folder: Path, here: Settings) -> None:
    """Secrets and prompts lie there."""
    folder.chmod(mode)
    the_one(host(here, 0.0), "data", status, f"chmod 700 {folder}")


def test_a_folder_that_is_none(here: Settings) -> None:
    """A wrong name is told, and nothing is made."""
    the_one(host(here, 0.0), "data", "warning", f"no folder {here.data}", "--data")
    assert not here.data.exists()


@pytest.fixture
def sleeper() -> Iterator[Recorded]:
    """Start a process that is recorded as the collector."""
    process = subprocess.Popen(["sleep", "60"], start_new_session=True)
    found = look(process.pid)
    assert found is not None
    yield Recorded("collector", found.pid, found.start)
    process.kill()
    process.wait()


def test_processes_that_nobody_looks_after(folder: Path, here: Settings, sleeper: Recorded) -> None:
    """`stoker up` was killed, its processes go on."""
    Ledger(folder / "run/processes.json").write([sleeper])
    the_one(host(here, 0.0), "processes", "problem", f"collector ({sleeper.pid})", "start `stoker up` again")


def test_processes_that_are_down_or_frozen(folder: Path, here: Settings, sleeper: Recorded) -> None:
    """Of a `stoker up` that runs: which ones, and which log tells why."""
    Ledger(folder / "run/processes.json").write([sleeper])
    with locked(folder / "run/lock"):
        the_one(host(here, 0.0), "processes", "problem", "down", "engine, web, worker", "logs/engine.log")
        os.kill(sleeper.pid, signal.SIGSTOP)
        until(lambda: stands_still(sleeper.pid))
        the_one(host(here, 0.0), "processes", "problem", "collector", f"kill -CONT {sleeper.pid}")


# All of it


def test_a_part_that_hangs_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it found before counts, the others are whole, and so is one that fails in an unforeseen way."""
    never = threading.Event()

    def hangs() -> Iterator[Finding]:
        yield problem("database", "slow", "wait")
        never.wait(60)

    def fails() -> Iterator[Finding]:
        raise RuntimeError("no such thing")
        yield

    found = doctor.in_time({"database": hangs, "redis": fails, "web": lambda: iter([])}, 3.0)
    never.set()
    assert [one.check for one in found] == ["database", "database", "redis"]
    assert "did not end within 3 s" in found[1].says
    assert "RuntimeError: no such thing" in found[2].says
    assert worst(found) == "problem"


def test_no_secret_is_told() -> None:
    """Whatever a library writes into its messages."""
    secret = "whsec_" + "QUJD" * 8
    settings = load(
        database_url="postgresql://me:p%40ssword@h/d",
        redis_url="redis://:r3dis@h",
        webhook_secret=secret,
        upstream_api_key="k3y!",
    )
    told_all = problem("x", f"p%40ssword p@ssword r3dis {secret}", "k3y!")
    shown = doctor._without(doctor.secrets_of(settings), told_all)
    assert (shown.says, shown.do) == ("*** *** *** ***", "***")


def test_the_command_where_nothing_is(tmp_path: Path) -> None:
    """Status 1, each problem with what to do; as JSON the same; a bad setting is status 2."""
    where = ("--data", tmp_path / "none", "--redis-url", f"redis://127.0.0.1:{servers.free_port()}", "--timeout", 10)
    plain = stoker("doctor", *where)
    assert plain.exit_code == 1
    assert "PROBLEM  database" in plain.stdout
    assert "-> " in plain.stdout
    told_all = stoker("doctor", *where, "--json")
    assert told_all.exit_code == 1
    found = json.loads(told_all.stdout)
    assert found["status"] == "problem"
    assert {"check", "status", "says", "do"} == set(found["checks"][0])
    assert not (tmp_path / "none").exists()
    assert stoker("doctor", *where, STOKER_LEASE="soon").exit_code == 2
