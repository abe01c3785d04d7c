"""The engine worker over a real database: claims, outcomes, cancel, drain, lost leases, failures."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import sqlalchemy as sa

from models import batches, cohorts, due, ends, jobs, results, views
from models.db import Database
from models.engines import Incarnation
from models.errors import DatabaseUnavailable
from stoker.settings import Settings, load
from tasks import collector
from tasks import worker as worker_module
from tasks.engines.base import Completion, Outcome, Rejection, Request
from tasks.engines.fake import FakeEngine
from tasks.worker import Worker
from tests.tasks.inprocess import Bell, incarnation, states, submit, until, worker

Start = Callable[..., Worker]


@pytest.fixture
def bell(monkeypatch: pytest.MonkeyPatch) -> Bell:
    """Record all doorbells."""
    made = Bell()
    monkeypatch.setattr(collector, "doorbell", lambda: made)
    return made


@pytest.fixture
def start(database: Database, settings: Settings, bell: Bell) -> Iterator[Start]:
    """Start workers, and end them with the test."""
    made: list[Worker] = []

    def begin(**more: Any) -> Worker:
        more = {"cancel_poll": 0.05, "drain_timeout": 0.2, **more}
        made.append(worker(database, load(**{**settings.model_dump(), **more}), bell))
        return made[-1]

    yield begin
    for one in made:
        one.drain()
        until(lambda one=one: not one.in_flight())  # type: ignore[misc]  # binds the loop's variable
        one.close()


def run(one: Worker) -> threading.Thread:
    """Let a thread of the worker claim and run what is there, as a message would."""
    thread = threading.Thread(target=one.run, daemon=True)
    thread.start()
    return thread


def everything(database: Database, settings: Settings, one: Worker, *, of: int, seconds: float = 20.0) -> None:
    """Collect and run until so many jobs have ended."""
    ended = {"succeeded", "failed", "cancelled", "expired"}

    def step() -> bool:
        collector.cut_all(database, settings, "fake")
        one.run()
        return sum(count for state, count in states(database).items() if state in ended) == of

    until(step, seconds)


def test_every_job_gets_its_own_answer(database: Database, settings: Settings, start: Start, bell: Bell) -> None:
    """Each job's stored result is the engine's answer to that job, and waiting clients are told."""
    prompts = [f"word{n}" for n in range(100)]
    ids = submit(database, *prompts, lane="bulk")
    everything(database, settings, start(), of=100)
    with database.reading() as tx:
        for job_id, prompt in zip(ids, prompts, strict=True):
            row = views.get(tx, "owner", job_id)
            assert (row.state, row.attempts) == ("succeeded", 1)
            assert f"echo: {prompt}" in row.body
            assert row.completion_tokens == 2
    assert sorted(bell.told) == sorted(ids)


def test_a_rejected_job_fails_alone(database: Database, settings: Settings, start: Start) -> None:
    """What the engine refuses is failed with its reason; the others of the batch succeed."""
    bad, *good = submit(database, "[[reject]]", "a", "b", lane="bulk")
    everything(database, settings, start(), of=3)
    with database.reading() as tx:
        row = views.get(tx, "owner", bad)
        assert (row.state, row.status) == ("failed", 400)
        assert row.error_code
        assert {views.get(tx, "owner", job_id).state for job_id in good} == {"succeeded"}


def test_garbage_is_stored_escaped(database: Database, settings: Settings, start: Start) -> None:
    """NUL, lone surrogates and megabytes in an answer end the job as succeeded on either database."""
    (job_id,) = submit(database, "[[garbage]]")
    everything(database, settings, start(), of=1)
    with database.reading() as tx:
        row = views.get(tx, "owner", job_id)
    assert row.state == "succeeded"
    assert len(row.body) > 1_000_000
    assert "\x00" not in row.body


def test_outcomes_are_stored_as_they_come(database: Database, settings: Settings, start: Start) -> None:
    """A finished job of a batch is stored while its neighbour still runs."""
    one = start()
    quick, slow = submit(database, "quick", "[[slow:30]]", lane="bulk")
    until(lambda: collector.cut_all(database, settings, "fake") is None)
    run(one)
    until(lambda: states(database) == {"succeeded": 1, "running": 1})
    with database.transaction() as tx:
        assert views.get(tx, "owner", quick).state == "succeeded"
        ends.cancel(tx, "owner", slow)
    until(lambda: not one.in_flight())


def test_a_cancelled_job_is_aborted_in_the_engine(database: Database, settings: Settings, start: Start) -> None:
    """The heartbeat sees that a job was cancelled; the engine drops it and the batch ends without it."""
    one = start()
    (job_id,) = submit(database, "[[hang]]", lane="realtime")
    collector.cut_all(database, settings, "fake")
    thread = run(one)
    until(lambda: states(database) == {"running": 1})
    with database.transaction() as tx:
        ends.cancel(tx, "owner", job_id)
    thread.join(5)
    assert not thread.is_alive()
    assert states(database) == {"cancelled": 1}
    with database.reading() as tx:
        assert tx.execute(sa.select(batches.table.c.state)).scalars().all() == ["finished"]
        assert tx.execute(sa.select(sa.func.count()).select_from(results.table)).scalar_one() == 0


def test_several_batches_are_in_flight(database: Database, settings: Settings, start: Start) -> None:
    """The next batch runs while the last one's tail drains, up to the slots that are not kept for realtime."""
    one = start(fake_slots=20)
    submit(database, "[[slow:30]]", *map(str, range(15)), lane="bulk")
    until(lambda: collector.cut_all(database, settings, "fake") is None)
    run(one)
    until(lambda: states(database).get("succeeded") == 15)
    submit(database, *map(str, range(4)), lane="realtime")
    until(lambda: collector.cut_all(database, settings, "fake") is None)
    one.run()
    assert states(database) == {"succeeded": 19, "running": 1}


def test_realtime_finds_its_reserve_free(database: Database, settings: Settings, start: Start) -> None:
    """While there is realtime, the others wait at the gate or in the queue, and a realtime job runs at once."""
    one = start(fake_slots=4)

    def work() -> None:
        until(lambda: collector.cut_all(database, settings, "fake") is None)
        run(one)

    submit(database, "[[slow:0.01]] first", lane="realtime")
    work()
    until(lambda: states(database) == {"succeeded": 1})
    submit(database, *["[[slow:30]]"] * 3, lane="bulk")
    work()
    until(lambda: states(database).get("running") == 3)
    submit(database, "[[slow:30]]", "later", lane="bulk")
    work()
    until(lambda: states(database).get("running") == 4)
    submit(database, "now", lane="realtime")
    work()
    until(lambda: states(database) == {"succeeded": 2, "running": 4, "queued": 1})


def test_a_drain_returns_what_is_unfinished(database: Database, settings: Settings, start: Start) -> None:
    """A draining worker takes nothing new, stores what ends in time and returns the rest uncharged."""
    one = start(drain_timeout=0.3)
    submit(database, "[[slow:0.1]]", "[[slow:60]]", lane="bulk")
    until(lambda: collector.cut_all(database, settings, "fake") is None)
    thread = run(one)
    until(lambda: states(database) == {"running": 2})
    one.drain()
    thread.join(5)
    assert not thread.is_alive()
    assert states(database) == {"succeeded": 1, "queued": 1}
    with database.reading() as tx:
        (left,) = tx.execute(sa.select(jobs.table).where(jobs.table.c.state == "queued")).all()
    assert (left.batch_id, left.cohort_id, left.lone_deaths) == (None, None, 0)
    submit(database, "later", lane="realtime")
    collector.cut_all(database, settings, "fake")
    one.run()
    assert "running" not in states(database)


def test_a_lost_lease_stops_the_batch(database: Database, settings: Settings, start: Start) -> None:
    """A worker whose batch was given to another writes nothing of it, and stops running it."""
    one = start(heartbeat=0.1, lease=1.0)
    submit(database, "[[slow:0.5]]", "[[hang]]", lane="bulk")
    until(lambda: collector.cut_all(database, settings, "fake") is None)
    thread = run(one)
    until(lambda: states(database) == {"running": 2})
    with database.transaction() as tx:
        (batch,) = tx.execute(sa.select(batches.table)).all()
        cohorts.crash(tx, batch.engine_id, batch.incarnation, "lost", max_attempts=20)
    thread.join(5)
    assert not thread.is_alive()
    assert states(database) == {"queued": 2}
    with database.reading() as tx:
        assert tx.execute(sa.select(sa.func.count()).select_from(results.table)).scalar_one() == 0


def test_deferred_jobs_are_put_off_and_then_fail(database: Database, settings: Settings, start: Start) -> None:
    """An engine's "not now" delays a job; after too many of them it fails as upstream_unavailable."""
    one = start(max_deferrals=2)
    (job_id,) = submit(database, "[[defer:0]]", lane="realtime")
    collector.cut_all(database, settings, "fake")
    one.run()
    assert states(database) == {"delayed": 1}
    with database.transaction() as tx:
        tx.execute(sa.update(jobs.table).values(run_at=0.0))
        assert due.release_due(tx) == {"fake"}
    everything(database, settings, one, of=1)
    with database.reading() as tx:
        row = views.get(tx, "owner", job_id)
    assert (row.state, row.error_code) == ("failed", "upstream_unavailable")


class Broken(FakeEngine):
    """An engine that raises what no engine should."""

    def generate(self, requests: Sequence[Request], stop: threading.Event) -> Iterator[Outcome]:
        """Answer one request, then break."""
        yield Completion(requests[0].id, "{}")
        raise ZeroDivisionError


class Ended(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize("prompt", ["[[raise]]", "broken"])
def test_a_broken_engine_gives_its_batches_back(
    database: Database, settings: Settings, bell: Bell, monkeypatch: pytest.MonkeyPatch, prompt: str
) -> None:
    """What arrived is stored, the rest goes back in cohorts, and the process ends with a status for a restart."""

    def end(status: int) -> None:
        raise Ended(status)

    monkeypatch.setattr(worker_module.os, "_exit", end)
    engine = FakeEngine(settings) if prompt == "[[raise]]" else Broken(settings)
    engine.start()
    one = worker(database, settings, bell, engine)
    submit(database, "good", prompt, "other", lane="bulk")
    until(lambda: collector.cut_all(database, settings, "fake") is None)
    with pytest.raises(Ended) as ended:
        one.run()
    assert ended.value.args == (70,)
    assert states(database) == {"succeeded": 1, "queued": 2}
    with database.reading() as tx:
        assert tx.execute(sa.select(batches.table.c.state)).scalars().all() == ["crashed"]
        cohort = tx.execute(sa.select(jobs.table.c.cohort_id).where(jobs.table.c.state == "queued")).scalars().all()
    assert len(set(cohort)) == 2
    assert None not in cohort


def test_a_hung_engine_is_found_out(database: Database, settings: Settings, start: Start) -> None:
    """Without progress the time grows; while nothing runs there is nothing to wait for."""
    one = start()
    assert one.hung_for() == 0.0
    (job_id,) = submit(database, "[[hang]]", lane="realtime")
    collector.cut_all(database, settings, "fake")
    run(one)
    until(lambda: one.hung_for() > 0.2)
    with database.transaction() as tx:
        ends.cancel(tx, "owner", job_id)
    until(lambda: one.hung_for() == 0.0)


class Held:
    """What a heartbeat looks after, recorded."""

    def __init__(self, *, hung: float = 0.0) -> None:
        self.hung = hung
        self.failed: list[str] = []
        self.lost: list[str] = []

    def in_flight(self) -> dict[str, list[str]]:
        """Return one batch that the database does not know."""
        return {"batch_unknown": ["job_unknown"]}

    def lose(self, batch_ids: Sequence[str]) -> None:
        """Record."""
        self.lost.extend(batch_ids)

    def abort(self, job_ids: Sequence[str]) -> None:
        """Pass by."""

    def hung_for(self) -> float:
        """Return what the test says."""
        return self.hung

    def fail(self, why: str) -> None:
        """Record."""
        self.failed.append(why)


def keeper(database: Database, settings: Settings, mine: Incarnation, held: Held) -> Any:
    """Return a heartbeat that the test beats by hand."""
    return worker_module.Keeper(database, settings, mine, held)


def test_the_heartbeat_ends_a_hung_engine(database: Database, settings: Settings) -> None:
    """A live heartbeat does not keep a hung engine leased for ever."""
    held = Held(hung=settings.run_timeout + 1)
    keeper(database, settings, incarnation(), held).beat(time.monotonic())
    assert "no sign of progress" in held.failed[0]


def test_the_heartbeat_ends_an_engine_whose_name_was_taken(database: Database, settings: Settings) -> None:
    """Two processes with one engine name: the older one ends itself and its batches count no more."""
    held = Held()
    keeper(database, settings, incarnation(), held).beat(time.monotonic())
    assert "taken this engine's name" in held.failed[0]
    assert held.lost == ["batch_unknown"]


def test_rejections_keep_their_status() -> None:
    """A rejection is stored with the status and code that the engine gave it."""
    stored = worker_module.outcomes.settled(
        Rejection("job", "too_long", "Too long.", 400, "{}"), 0, load(engine="fake")
    )
    assert stored.result is not None
    assert (stored.state, stored.result.status, stored.result.code) == ("failed", 400, "too_long")


def test_a_claim_whose_commit_is_in_doubt_is_given_back(
    database: Database, settings: Settings, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch that was claimed without the worker's knowing is returned, uncharged; the worker's others go on."""
    one = start()
    submit(database, "[[slow:2]] first", lane="realtime")
    collector.cut_all(database, settings, "fake")
    thread = run(one)
    until(lambda: states(database) == {"running": 1})
    real, lost = database.retrying, threading.Event()

    def unsure(work: Callable[[sa.Connection], Any]) -> Any:
        done = real(work)
        if isinstance(done, batches.Claimed) and not lost.is_set():
            lost.set()
            raise DatabaseUnavailable("the answer was lost")
        return done

    monkeypatch.setattr(database, "retrying", unsure)
    submit(database, "second", lane="realtime")
    until(lambda: collector.cut_all(database, settings, "fake") is None)
    with pytest.raises(DatabaseUnavailable):
        one.run()
    assert states(database) == {"running": 1, "queued": 1}
    everything(database, settings, one, of=2)
    thread.join(5)
    with database.reading() as tx:
        ends = tx.execute(sa.select(batches.table.c.state).order_by(batches.table.c.created_at)).scalars().all()
        assert tx.execute(sa.select(sa.func.count(jobs.table.c.cohort_id))).scalar_one() == 0
    assert ends == ["finished", "returned", "finished"]
