"""The engine worker over a real database: claims, outcomes, cancel, drain, lost leases, failures."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import redis
import sqlalchemy as sa

from models import batches, cohorts, due, ends, engines, jobs, results, streams, views
from models.db import Database
from models.engines import Incarnation
from models.errors import DatabaseUnavailable
from models.jobs import NewJob
from stoker.settings import Settings, load
from tasks import collector
from tasks import worker as worker_module
from tasks.engines.base import Completion, Outcome, Rejection, Request, ServedModel
from tasks.engines.fake import FakeEngine
from tasks.recording import Recorder
from tasks.worker import Worker
from tests.tasks.inprocess import Bell, end, incarnation, states, submit, until, worker

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
        end(one)


def run(one: Worker) -> threading.Thread:
    """Let a thread of the worker claim and run what is there, as a message would."""
    thread = threading.Thread(target=one.run, daemon=True)
    thread.start()
    return thread


def everything(database: Database, settings: Settings, one: Worker, *, of: int, seconds: float = 60.0) -> None:
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
    quick, slow = submit(database, "quick", "[[slow:90]]", lane="bulk")
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
    thread.join(60)
    assert not thread.is_alive()
    until(lambda: not one.in_flight())  # another thread of it may have heard of the job first
    assert states(database) == {"cancelled": 1}
    with database.reading() as tx:
        assert tx.execute(sa.select(batches.table.c.state)).scalars().all() == ["finished"]
        assert tx.execute(sa.select(sa.func.count()).select_from(results.table)).scalar_one() == 0


def test_several_batches_are_in_flight(database: Database, settings: Settings, start: Start) -> None:
    """The next batch runs while the last one's tail drains, up to the slots that are not kept for realtime."""
    one = start(fake_slots=20)
    submit(database, "[[slow:90]]", *map(str, range(15)), lane="bulk")
    until(lambda: collector.cut_all(database, settings, "fake") is None)
    run(one)
    until(lambda: states(database).get("succeeded") == 15)
    submit(database, *map(str, range(4)), lane="realtime")
    until(lambda: collector.cut_all(database, settings, "fake") is None)
    one.run()
    until(lambda: states(database) == {"succeeded": 19, "running": 1})


def test_a_realtime_batch_holds_none_of_celerys_threads(database: Database, settings: Settings, start: Start) -> None:
    """However long its stream: as many run as the engine has slots, not as Celery has threads."""
    one = start(fake_slots=8)
    for prompt in ["[[slow:90]]"] * 3:
        submit(database, prompt, lane="realtime")
        until(lambda: collector.cut_all(database, settings, "fake") is None)
    one.run()
    assert states(database) == {"running": 3}


def test_realtime_finds_its_reserve_free(database: Database, settings: Settings, start: Start) -> None:
    """While there is realtime, the others wait at the gate or in the queue, and a realtime job runs at once."""
    one = start(fake_slots=4)

    def work() -> None:
        until(lambda: collector.cut_all(database, settings, "fake") is None)
        run(one)

    submit(database, "[[slow:0.01]] first", lane="realtime")
    work()
    until(lambda: states(database) == {"succeeded": 1})
    submit(database, *["[[slow:90]]"] * 3, lane="bulk")
    work()
    until(lambda: states(database).get("running") == 3)
    submit(database, "[[slow:90]]", "later", lane="bulk")
    work()
    until(lambda: states(database).get("running") == 4)
    submit(database, "now", lane="realtime")
    work()
    until(lambda: states(database) == {"succeeded": 2, "running": 4, "queued": 1})


def test_a_drain_returns_what_is_unfinished(database: Database, settings: Settings, start: Start) -> None:
    """A draining worker takes nothing new, stores what ends in time and returns the rest uncharged."""
    one = start(drain_timeout=4.0)
    submit(database, "[[slow:0.1]]", "[[slow:60]]", lane="bulk")
    until(lambda: collector.cut_all(database, settings, "fake") is None)
    thread = run(one)
    until(lambda: "running" in states(database))  # both, but the first of them not for long
    one.drain()
    thread.join(60)
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
    submit(database, "[[slow:30]]", "[[hang]]", lane="bulk")
    until(lambda: collector.cut_all(database, settings, "fake") is None)
    thread = run(one)
    until(lambda: states(database) == {"running": 2})
    with database.transaction() as tx:
        (batch,) = tx.execute(sa.select(batches.table)).all()
        cohorts.crash(tx, batch.engine_id, batch.incarnation, "lost", max_attempts=20)
    thread.join(60)
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
    until(lambda: states(database) == {"delayed": 1})
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


def end_ears(one: Worker) -> None:
    """End what the process would have taken with it: it would hear what is said in later tests."""
    one._ears.stop()
    until(lambda: not one._ears._thread.is_alive() and not one._ears._actor.is_alive())


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
    end_ears(one)
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

    def renewed(self, batch_ids: Collection[str], at: float) -> None:
        """Pass by."""

    def offer_what_changed(self) -> None:
        """Pass by."""

    def record(self) -> None:
        """Pass by."""

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
    return worker_module.Keeper(database, settings, mine, held, Recorder(mine))


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


def test_a_heartbeat_that_fails_ends_the_process(database: Database, settings: Settings) -> None:
    """Without it every lease would run out, and the jobs in the engine be blamed for that."""
    held = Held()
    held.record = lambda: 1 / 0  # type: ignore[method-assign]
    beating = keeper(database, load(**{**settings.model_dump(), "cancel_poll": 0.05}), incarnation(), held)
    beating.start()
    until(lambda: held.failed, 30)
    beating.stop()
    assert "the heartbeat failed: ZeroDivisionError" in held.failed


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
    end_ears(one)  # when they begin to listen they serve what is queued, and would take the second job
    (first,) = submit(database, "[[hang]] first", lane="realtime")
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
    everything(database, settings, one, of=1)
    with database.transaction() as tx:
        ends.cancel(tx, "owner", first)
    until(lambda: not one._flights)
    thread.join(60)
    with database.reading() as tx:
        how = tx.execute(sa.select(batches.table.c.state).order_by(batches.table.c.created_at)).scalars().all()
        assert tx.execute(sa.select(sa.func.count(jobs.table.c.cohort_id))).scalar_one() == 0
    assert how == ["finished", "returned", "finished"]


def serving(one: Worker, database: Database, *prompts: str) -> list[str]:
    """Submit realtime jobs and page for them, as a web server does."""
    ids = submit(database, *prompts, lane="realtime")
    one.serve("fake")
    return ids


def test_a_page_is_served_at_once(database: Database, start: Start, bell: Bell) -> None:
    """Cut and claimed in one go: no collector, and no message."""
    one = start()
    bell.rung.clear()
    serving(one, database, "now")
    until(lambda: states(database) == {"succeeded": 1})
    until(lambda: not one.in_flight())
    with database.reading() as tx:
        (batch,) = tx.execute(sa.select(batches.table)).all()
    assert (batch.state, batch.lane, batch.size) == ("finished", "realtime", 1)
    assert {what for what, _ in bell.rung} <= {"deliver"}


def test_a_page_for_nothing_does_nothing(database: Database, start: Start) -> None:
    """Pages come twice, late, and for models that are not served here."""
    one = start()
    for model in ("fake", "other", ""):
        one.serve(model)
    submit(database, "not for a page", lane="bulk")
    one.serve("fake")
    assert states(database) == {"queued": 1}
    until(lambda: not one._claims._passed_over)  # a thread that has begun to listen may be looking, too


def test_many_are_served_at_once(database: Database, start: Start) -> None:
    """More than a batch, paged for by many at the same time: each runs once."""
    one = start()
    submit(database, *map(str, range(100)), lane="realtime")
    threads = [threading.Thread(target=one.serve, args=("fake",)) for _ in range(8)]
    for thread in threads:
        thread.start()
    until(lambda: states(database) == {"succeeded": 100})
    for thread in threads:
        thread.join(60)
    with database.reading() as tx:
        assert set(tx.execute(sa.select(jobs.table.c.attempts)).scalars()) == {1}
    until(lambda: not one._claims._passed_over)


def test_whoever_found_no_room_is_served_when_it_comes(database: Database, start: Start) -> None:
    """As soon as one job of a batch ends, though the others go on: no ring is needed."""
    one = start(fake_slots=4, ready_backlog=0.0)
    _, *others = serving(one, database, "[[slow:4]]", *["[[slow:90]]"] * 3)
    until(lambda: states(database) == {"running": 4})
    serving(one, database, "next")
    assert states(database) == {"running": 4, "queued": 1}
    until(lambda: states(database) == {"succeeded": 2, "running": 3})
    _end_all(database, one, others)


def test_room_that_a_cancelled_job_leaves_is_used(database: Database, start: Start) -> None:
    """A client hangs up: the next is served at once."""
    one = start(fake_slots=2, ready_backlog=0.0)
    first, second = serving(one, database, "[[hang]] 1", "[[hang]] 2")
    until(lambda: states(database) == {"running": 2})
    serving(one, database, "next")
    with database.transaction() as tx:
        ends.cancel(tx, "owner", first)
    one.look_for_stopped()
    until(lambda: states(database) == {"cancelled": 1, "succeeded": 1, "running": 1})
    _end_all(database, one, [second])


def _end_all(database: Database, one: Worker, ids: Sequence[str]) -> None:
    for job_id in ids:
        with database.transaction() as tx:
            ends.cancel(tx, "owner", job_id)
    until(lambda: not one.in_flight())


def test_static_batching_serves_one_batch_after_the_other(database: Database, start: Start, bell: Bell) -> None:
    """With one batch in flight a page waits for its end, and is served then."""
    one = start(batches_in_flight=1)
    serving(one, database, "[[slow:4]]")
    until(lambda: states(database) == {"running": 1})
    serving(one, database, "next")
    assert states(database) == {"running": 1, "queued": 1}
    until(lambda: states(database) == {"succeeded": 2})


def test_what_lies_ready_is_rung_for_behind_a_page(
    database: Database, settings: Settings, start: Start, bell: Bell
) -> None:
    """Static batching: a batch that was turned away while a page was served is not left lying."""
    one = start(batches_in_flight=1)
    serving(one, database, "[[slow:5]]")
    until(lambda: states(database) == {"running": 1})
    submit(database, "lower", lane="bulk")
    until(lambda: collector.cut_all(database, settings, "fake") is None)
    one.run()
    assert states(database) == {"running": 1, "batched": 1}
    bell.rung.clear()
    until(lambda: ("engine", settings.engine_name) in bell.rung)
    one.run()
    assert states(database) == {"succeeded": 2}


def test_a_cohort_is_not_kept_waiting_by_pages(database: Database, settings: Settings, start: Start) -> None:
    """An engine that a cohort waits for takes no new realtime jobs until it had its turn."""
    one = start()
    serving(one, database, "[[slow:4]]")
    until(lambda: states(database) == {"running": 1})
    (suspect,) = submit(database, "suspect", lane="bulk")
    with database.transaction() as tx:
        alone = jobs.table.c.id == suspect
        tx.execute(sa.update(jobs.table).where(alone).values(cohort_id="cohort_1"))
    collector.cut_all(database, settings, "fake")
    serving(one, database, "now")
    assert states(database) == {"running": 1, "batched": 1, "queued": 1}
    until(lambda: not one._flights)
    one.run()
    until(lambda: states(database).get("succeeded", 0) >= 2)
    until(lambda: not one._flights)
    one.serve("fake")
    until(lambda: states(database) == {"succeeded": 3})


def test_a_drain_returns_what_pages_brought(database: Database, start: Start) -> None:
    """Closed at once, as Celery does that knows nothing of it: returned uncharged, and the process does not fail."""
    one = start(drain_timeout=0.2)
    serving(one, database, "[[slow:60]]")
    until(lambda: states(database) == {"running": 1})
    one.drain()
    one.close()
    assert states(database) == {"queued": 1}
    with database.reading() as tx:
        assert tx.execute(sa.select(batches.table.c.state)).scalars().all() == ["returned"]
        (left,) = tx.execute(sa.select(jobs.table)).all()
    assert (left.cohort_id, left.lone_deaths) == (None, 0)
    one.serve("fake")
    assert states(database) == {"queued": 1}


def test_realtime_without_end_leaves_the_lanes_below_their_share(
    database: Database, settings: Settings, start: Start
) -> None:
    """However many realtime jobs wait, those of a lower lane end before they do."""
    one = start(fake_slots=4)
    urgent = submit(database, *["[[slow:0.02]]"] * 600, lane="realtime")
    patient = submit(database, *["[[slow:0.02]]"] * 4, lane="bulk")
    done = threading.Event()

    def celery() -> None:
        while not done.wait(0.05):
            collector.cut_all(database, settings, "fake")
            one.run()

    def left(ids: Sequence[str]) -> int:
        open_ = sa.select(sa.func.count()).where(jobs.table.c.id.in_(ids), jobs.table.c.state != "succeeded")
        with database.reading() as tx:
            return tx.execute(open_).scalar_one()

    one.serve("fake")
    thread = threading.Thread(target=celery)
    thread.start()
    try:
        until(lambda: not left(patient), 90)
        assert left(urgent) > 0
    finally:
        done.set()
        thread.join(30)


def test_a_page_that_found_no_room_is_served_behind_a_bulk(
    database: Database, settings: Settings, start: Start
) -> None:
    """Static batching: nobody need ring for what came while a batch of another lane was in flight."""
    one = start(batches_in_flight=1)
    submit(database, "[[slow:4]]", lane="bulk")
    until(lambda: collector.cut_all(database, settings, "fake") is None)
    run(one)
    until(lambda: states(database) == {"running": 1})
    serving(one, database, "next")
    assert states(database) == {"running": 1, "queued": 1}
    until(lambda: states(database) == {"succeeded": 2})


def test_the_next_cohort_is_asked_for_behind_a_realtime_one(
    database: Database, settings: Settings, start: Start, bell: Bell
) -> None:
    """It is in no lane, and would wait for the sweeper."""
    suspect, other = submit(database, "suspect", "other", lane="realtime")
    with database.transaction() as tx:
        for job_id, cohort in ((suspect, "cohort_1"), (other, "cohort_2")):
            tx.execute(sa.update(jobs.table).where(jobs.table.c.id == job_id).values(cohort_id=cohort))
    one = start()  # only now: it serves what is queued when it begins to listen
    collector.cut_all(database, settings, "fake")
    bell.rung.clear()
    one.run()
    until(lambda: states(database) == {"succeeded": 1, "queued": 1})
    until(lambda: ("collector", "fake/") in bell.rung)


def test_only_queues_with_work_are_rung_for(database: Database, settings: Settings, bell: Bell) -> None:
    """A router in front of a hosted service has hundreds of models: a batch is not worth a message for each."""
    engine = Changing(settings)
    engine.changed = "new"
    engine.start()
    one = worker(database, settings, bell, engine)
    submit(database, "a", "b", lane="bulk")
    until(lambda: collector.cut_all(database, settings, "fake") is None)
    submit(database, "c", lane="bulk")
    bell.rung.clear()
    one.run()
    assert ("collector", "fake/") in bell.rung
    assert ("collector", "new/") not in bell.rung
    end(one)


def test_a_batch_that_cannot_be_run_ends_the_process(
    database: Database, settings: Settings, bell: Bell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In flight for ever it would keep its lease, and its jobs would never end."""

    def end(status: int) -> None:
        raise Ended(status)

    monkeypatch.setattr(worker_module.os, "_exit", end)
    one = worker(database, settings, bell)
    monkeypatch.setattr(one._recorder, "claimed", lambda _: 1 / 0)
    submit(database, "a", lane="bulk")
    until(lambda: collector.cut_all(database, settings, "fake") is None)
    with pytest.raises(Ended):
        one.run()
    end_ears(one)
    assert states(database) == {"queued": 1}


@pytest.mark.parametrize("name", ["x" * 256, "nul \0", "half \ud800"])
def test_what_no_database_stores_of_a_model_is_not_offered(
    database: Database, settings: Settings, bell: Bell, name: str
) -> None:
    """Upstreams tell what they like: the other models are served, a context beyond all bounds is cut."""
    engine = Changing(settings)
    engine.start()
    one = worker(database, load(**{**settings.model_dump(), "cancel_poll": 0.05}), bell, engine)
    engine.length = 10**30
    engine.changed = f"{name},new"
    until(lambda: "new" in served(database), 30)
    assert served(database) == {"fake": engine.models[0].max_model_len, "new": 2**31 - 1}
    assert one._keeper._thread.is_alive()
    end(one)


def served(database: Database) -> dict[str, int | None]:
    """Return the models that are served, with their contexts."""
    with database.reading() as tx:
        return {row.name: row.max_model_len for row in engines.served(tx, 60.0)}


def test_what_an_engine_offers_may_change(database: Database, settings: Settings, bell: Bell) -> None:
    """New models are stored and what waits for them looked at; nothing is written while all stays as it was."""
    engine = Changing(settings)
    engine.start()
    one = worker(database, load(**{**settings.model_dump(), "cancel_poll": 0.05}), bell, engine)
    with database.transaction() as tx:
        new = NewJob(owner="owner", model="new", endpoint="/v1/chat/completions", body="{}", lane="bulk")
        jobs.submit(tx, new)
    bell.rung.clear()
    engine.changed = "new"
    until(lambda: ("collector", "new/") in bell.rung)
    with database.reading() as tx:
        assert [row.name for row in engines.served(tx, 15.0)] == ["fake", "new"]
    submit(database, "hi", lane="realtime")
    one.serve("fake")
    until(lambda: states(database) == {"succeeded": 1, "queued": 1})
    end(one)


class Changing(FakeEngine):
    """An engine that serves one more model when it is told to."""

    changed = ""
    length: int | None = None

    @property
    def models(self) -> tuple[ServedModel, ...]:
        """Return what it serves by now."""
        names = [name for name in self.changed.split(",") if name]
        return (*super().models, *(ServedModel(name, self.length, slots=1) for name in names))


def test_tokens_end_only_with_the_answer(database: Database, start: Start, redis_url: str, settings: Settings) -> None:
    """What a streamed job says is in Redis, in order and with its end; a job that is put off has no end."""
    one = start()
    with database.transaction() as tx:
        body = json.dumps({"model": "fake", "stream": True, "messages": [{"role": "user", "content": "a b c"}]})
        new = NewJob(owner="owner", model="fake", endpoint="/v1/chat/completions", body=body, lane="realtime")
        job_id = jobs.submit(tx, new).id
        cut = jobs.submit(tx, replace(new, body=body.replace("a b c", "[[cut]] a b c"))).id
    one.serve("fake")
    until(lambda: states(database) == {"succeeded": 1, "delayed": 1})
    with redis.Redis.from_url(redis_url) as store:
        until(lambda: _said(store, job_id)[-1:] == [streams.END])  # another thread writes it
        said = "".join(
            json.loads(event)["choices"][0]["delta"].get("content", "") for event in _said(store, job_id)[:-1]
        )
        assert said == "echo: a b c"
        assert streams.END not in _said(store, cut)
    until(lambda: not one._tokens._waiting)


def _said(store: Any, job_id: str) -> list[str]:
    pieces = [streams.decode_one(fields[streams.FIELD]) for _, fields in store.xrange(streams.key(job_id))]
    return [event for piece in pieces if piece is not None for event in piece.events]
