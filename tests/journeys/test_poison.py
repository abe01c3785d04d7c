"""Prompts that break the engine, and killers that only look like one: who fails, and who does not."""

from __future__ import annotations

import os
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa

from models import batches, engines, jobs, results
from models.db import now
from tests.journeys.running import STOKER, end_whatever_is_left, left_of, stands_still
from tests.journeys.test_faults import QUICK, Run, words
from tests.tasks.inprocess import until

pytestmark = [pytest.mark.journey, pytest.mark.timeout(600)]


@pytest.fixture
def run(data: Path) -> Iterator[Run]:
    """Run a service with the fake engine on SQLite."""
    with Run(data) as running:
        yield running


def codes(run: Run) -> Counter[str | None]:
    """Return why jobs ended as they did; None: well."""
    with run.database.reading() as tx:
        return Counter(tx.execute(sa.select(results.table.c.error_code)).scalars())


def crashes(run: Run) -> int:
    """Return how many engine processes left a batch that crashed."""
    died = sa.select(sa.func.count(batches.table.c.incarnation.distinct()))
    with run.database.reading() as tx:
        return int(tx.execute(died.where(batches.table.c.state == "crashed")).scalar_one())


def lone_deaths(run: Run) -> int:
    """Return how often any job was blamed."""
    with run.database.reading() as tx:
        return int(tx.execute(sa.select(sa.func.sum(jobs.table.c.lone_deaths))).scalar_one())


def end_rest(run: Run) -> None:
    """Let whoever was put aside after it died alone come back now: this long is enough for a test."""
    with run.database.transaction() as tx:
        tx.execute(sa.update(jobs.table).where(jobs.table.c.state == "delayed").values(run_at=0.0))


@pytest.mark.parametrize("mark", ["[[kill]]", "[[raise]]"])
def test_a_prompt_that_ends_the_engine_fails_alone(run: Run, mark: str) -> None:
    """Whether the process dies or says that it is broken: one is poison, 31 succeed, within eight deaths."""
    run.submit(*words(13), mark, *words(18))
    assert run.check(400) == {"succeeded": 31, "failed": 1}
    assert codes(run) == {None: 31, "poison": 1}
    assert crashes(run) <= 8


def test_a_prompt_that_hangs_while_others_go_on_is_timed_out(data: Path) -> None:
    """The engine is well, so it stays: the one that gets nowhere ends with 408, and nobody is interrupted for it."""
    with Run(data, STOKER_REQUEST_TIMEOUT="8", STOKER_RUN_TIMEOUT="60") as run:
        run.submit(*words(5, "[[slow:1]]"), "[[hang]]", *words(5, "[[slow:12]]"))
        assert run.check() == {"succeeded": 5, "failed": 6}
        assert set(codes(run)) == {None, "request_timeout"}
        assert crashes(run) == 0


def test_a_prompt_that_hangs_the_whole_engine_is_poison(data: Path) -> None:
    """Without any sign of progress for `run_timeout` the engine is started again; what hung it every time fails."""
    with Run(data, STOKER_RUN_TIMEOUT="2", STOKER_CANCEL_POLL="0.5") as run:
        run.submit(*words(5), "[[hang]]", *words(5))
        for rests in ((1, 1), (2, 1)):
            # Not by its state alone: it stays delayed until the sweeper has seen that its rest is over.
            until(lambda rests=rests: (lone_deaths(run), run.count("delayed")) == rests, 240)  # type: ignore[misc]
            end_rest(run)
        assert run.check(240) == {"succeeded": 10, "failed": 1}
        assert codes(run) == {None: 10, "poison": 1}
        assert crashes(run) <= 5


def test_an_answer_that_no_database_takes_is_no_poison(run: Run) -> None:
    """NUL, lone surrogates and 5 MB are stored as what JSON can say; two kinds of poison at once are both found."""
    run.submit(*words(6), "[[garbage]]", *words(6), "[[kill]]", "[[raise]]", "[[garbage]]")
    assert run.check(500) == {"succeeded": 14, "failed": 2}
    assert codes(run) == {None: 14, "poison": 2}


@pytest.mark.parametrize("stream", [False, True])
def test_who_waits_for_a_poisoned_answer_gets_an_error(run: Run, stream: bool) -> None:
    """An interactive request that kills the engine ends with an error, and its job is not tried for ever."""
    body = {"model": "fake", "messages": [{"role": "user", "content": "[[kill]]"}], "stream": stream}
    with httpx.Client(base_url=run.url, timeout=200) as http:
        answer = http.post("/v1/chat/completions", json=body)
    assert answer.status_code >= 500 or '"error"' in answer.text
    until(lambda: run.count("failed") + run.count("cancelled") == 1, 200)
    with run.database.reading() as tx:
        assert tx.execute(sa.select(jobs.table.c.attempts)).scalar_one() <= 4
    run.accepted = []
    run.submit(*words(3))
    until(lambda: run.count("succeeded") == 3, 90)


def has_run(run: Run, seconds: float) -> bool:
    """Tell whether the only job runs, and has for so long."""
    ran = sa.select(now() - jobs.table.c.started_at).where(jobs.table.c.state == "running")
    with run.database.reading() as tx:
        return (tx.execute(ran).scalar_one_or_none() or 0.0) > seconds


def test_a_killer_of_engines_brands_nobody(data: Path) -> None:
    """`kill -9` of the engine over and over, while it runs one slow job and while it does not: that is no poison.

    Every kill finds the same job alone; a real poison would have failed at the fourth.
    """
    with Run(data) as run:
        run.submit("[[slow:12]] innocent")
        for rounds in range(6):
            until(lambda: has_run(run, 3.0), 120)
            killed = run.kill("engine")
            until(lambda killed=killed: run.opened(killed), 120)  # type: ignore[misc]  # the loop's variable
            if rounds:
                assert run.count("delayed") == 1
                idle = run.kill("engine")
                until(lambda idle=idle: run.opened(idle), 120)  # type: ignore[misc]  # as above
                until(lambda: lone_deaths(run) == 0)
                end_rest(run)
        assert run.check() == {"succeeded": 1}
        assert run.starts().total() == 7


def test_freezes_pauses_and_drains_blame_nobody(data: Path) -> None:
    """A job alone, as a suspect, under an engine that is frozen beyond its lease, again and again, then drained."""
    with Run(data, STOKER_LEASE="3", STOKER_HEARTBEAT="0.5", STOKER_DRAIN_TIMEOUT="0.2") as run:
        run.submit("[[slow:5]] innocent")
        for _ in range(3):
            until(lambda: run.count("running") == 1, 90)
            engine = run.up.pids()["engine"]
            with run.database.transaction():
                os.killpg(engine, signal.SIGSTOP)
                until(lambda engine=engine: stands_still(engine))  # type: ignore[misc]  # the loop's variable
            until(lambda: run.count("queued") == 1, 90)
            os.killpg(engine, signal.SIGCONT)
        until(lambda: run.count("running") == 1, 90)
        run.kill("engine", signal.SIGTERM)
        until(lambda: run.count("queued") == 1 or run.count("running") == 1, 60)
        assert lone_deaths(run) == 0
        assert run.check() == {"succeeded": 1}


def test_the_whole_machine_goes_down_again_and_again(data: Path) -> None:
    """Everything is killed at once, `stoker up` too, five times while the same job runs alone: nobody is blamed."""
    for times in range(5):
        run = Run(data)
        if not times:
            run.submit("[[slow:4]] innocent")
        until(lambda run=run: run.count("running") == 1, 120)  # type: ignore[misc]  # the loop's variable
        run.up.process.kill()
        end_whatever_is_left(data)
        run.up.process.wait()
        until(lambda: left_of(data) == [])
        run.client.close()
        run.database.close()
    with Run(data) as run:
        until(lambda: run.count("succeeded") == 1, 120)
        assert lone_deaths(run) == 0


@contextmanager
def second_engine(data: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run `stoker engine second` beside a service."""
    command = [*STOKER, "engine", "second", "--engine", "fake", "--data", str(data)]
    environment = os.environ | QUICK | {"STOKER_LEASE": "120", "STOKER_FAKE_LOG": str(data.parent / "starts")}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(120)


def holders(run: Run) -> dict[str, engines.Incarnation]:
    """Return the engines that run a batch."""
    found = {}
    with run.database.reading() as tx:
        for name in tx.execute(
            sa.select(batches.table.c.engine_id).where(batches.table.c.state == "running")
        ).scalars():
            mine = engines.predecessor(tx, name)
            assert mine is not None
            found[name] = mine
    return found


def test_a_second_engine_goes_on_before_the_lease_is_over(data: Path) -> None:
    """What a killed engine left goes to the other as soon as its process is seen to be gone; the lease is minutes."""
    with Run(data, STOKER_LEASE="120") as run, second_engine(data):
        until(lambda: run.live() == 2, 120)
        run.submit(*words(4, "[[slow:8]]"))
        until(lambda: run.count("running") == 4, 60)
        (name, holder), *_ = holders(run).items()
        os.killpg(holder.process_group, signal.SIGKILL)
        until(lambda: set(holders(run)) - {name}, 60)
        assert run.check() == {"succeeded": 4}
        assert "lost" not in run.batches()
