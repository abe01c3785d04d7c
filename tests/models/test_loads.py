"""What engines are doing, as the collector counts it."""

from __future__ import annotations

import pytest

from models import batches, loads
from models.db import Database
from tests.models import given


def test_running_and_ready_count_what_engines_have_and_could_take(database: Database) -> None:
    """Open jobs of running batches by engine, model and lane; jobs of a model's READY batches by lane."""
    mine = given.engine(database)
    got = given.running(database, mine, 3)
    given.settled(database, got.id, [given.answered(got.jobs[0].id)])
    given.cut(database, given.submitted(database), rank=0)
    given.claimed(database, mine, idle=False)
    given.cut(database, given.submitted(database, 2))
    given.cut(database, given.submitted(database, 5), lane="bulk", rank=2)
    given.cut(database, given.submitted(database, model="other"), model="other")
    given.cut(database, given.submitted(database), cohort="cohort_1", engine="engine")
    with database.reading() as tx:
        counted = {(one.engine, one.model, one.rank): one.jobs for one in loads.running(tx, ["engine", "none"])}
        assert counted == {("engine", "fake", 1): 2, ("engine", "fake", 0): 1}
        assert loads.ready(tx, "fake") == {"standard": 2, "bulk": 5}
        assert loads.ready(tx, "none") == {}
        assert loads.running(tx, []) == []


def test_batches_are_measured_from_claim_to_end(database: Database) -> None:
    """Newest first; one that still runs is measured until now, one that nobody took not at all, nor what is old."""
    mine = given.engine(database)
    old, done = given.running(database, mine), given.running(database, mine, 2)
    given.settled(database, done.id, [given.answered(job.id) for job in done.jobs])
    with database.transaction() as tx:
        assert batches.finish(tx, done.id)
    given.change(database, batches.table, batches.table.c.id == old.id, created_at=1.0)
    given.running(database, mine)
    given.cut(database, given.submitted(database))
    with database.reading() as tx:
        running, finished = loads.measured(tx)
    assert (running.size, running.done) == (1, False)
    assert (finished.engine, finished.model, finished.lane) == ("engine", "fake", "standard")
    assert (finished.size, finished.tokens, finished.done) == (2, 2, True)
    assert 0 <= finished.ended - finished.began <= 10
    assert running.ended == pytest.approx(finished.ended, abs=10)
