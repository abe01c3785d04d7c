"""Samples: written whole, read by stretch, forgotten in time."""

from __future__ import annotations

from collections import Counter

import pytest

from models import samples
from models.db import Database
from models.engines import Incarnation
from models.errors import DatabaseUnavailable
from models.measures import Measures
from tasks.sampling import Sampler
from tests.models import given

MINE = Incarnation("engine", "run_1", "fake", "host", 1, 1, "boot:1")


def ended(count: int) -> Measures:
    """Return that so many jobs succeeded."""
    return Measures(ended=Counter(succeeded=count))


def stored(database: Database, width: int = 10) -> list[tuple[int, str, int]]:
    """Return (at, model, ended jobs) of all samples of a width."""
    with database.reading() as tx:
        return [(one.at, one.model, one.measures.ended["succeeded"]) for one in samples.read(tx, width, 0)]


def test_a_stretch_is_written_again_and_again(database: Database) -> None:
    """With all that is in it so far: what is written twice counts once."""
    for count in (1, 5, 5):
        with database.transaction() as tx:
            samples.write(tx, MINE, 10, 20, {("m", "bulk"): ended(count), ("n", "bulk"): ended(1)})
    assert stored(database) == [(20, "m", 5), (20, "n", 1)]


def test_what_is_added_is_stored_by_the_databases_clock(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stretch grows until the next one begins."""
    sampler = Sampler(MINE)
    for at in (101.0, 108.0, 111.0):
        monkeypatch.setattr(samples, "clock", lambda _tx, at=at: at)
        sampler.add("m", "bulk", ended(2))
        sampler.store(database)
    assert stored(database) == [(100, "m", 4), (110, "m", 2)]
    assert stored(database, 300) == [(0, "m", 6)]


def test_nothing_is_lost_while_the_database_is_away(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it did not take is stored the next time, once."""
    sampler = Sampler(MINE)
    sampler.add("m", "bulk", ended(2))
    with monkeypatch.context() as patch:

        def away(*_: object) -> None:
            raise DatabaseUnavailable

        patch.setattr(samples, "write", away)
        with pytest.raises(DatabaseUnavailable):
            sampler.store(database)
    sampler.add("m", "bulk", ended(1))
    sampler.store(database)
    assert sum(count for _, _, count in stored(database)) == 3


def test_what_a_clock_that_was_ahead_has_left_is_not_read(database: Database) -> None:
    """A stretch in the future is no window's, and the way to it is not gone in slices."""
    with database.transaction() as tx:
        samples.write(tx, MINE, 10, 20, {("m", "bulk"): ended(1)})
        samples.write(tx, MINE, 10, 100_000_000_000, {("m", "bulk"): ended(1)})
    assert stored(database) == [(20, "m", 1)]


def test_two_incarnations_keep_apart(database: Database) -> None:
    """The next start of an engine does not write over what the last one counted."""
    for run in ("run_1", "run_2"):
        mine = Incarnation("engine", run, "fake", "host", 1, 1, "boot:1")
        with database.transaction() as tx:
            samples.write(tx, mine, 10, 20, {("m", "bulk"): ended(1)})
    assert stored(database) == [(20, "m", 1)] * 2


def test_what_is_old_is_forgotten(database: Database) -> None:
    """Each width in its own time, the oldest first, a slice at a time."""
    with database.reading() as tx:
        now = samples.start(300, samples.clock(tx))
    for width, kept in samples.WIDTHS.items():
        for age in (0, kept - 600, kept + 600, kept + 1200):
            with database.transaction() as tx:
                samples.write(tx, MINE, width, now - age, {("m", "bulk"): ended(1)})
    with database.transaction() as tx:
        assert samples.forget(tx, 1) == 2
        assert samples.forget(tx, 100) == 2
        assert samples.forget(tx, 100) == 0
    for width, kept in samples.WIDTHS.items():
        assert [now - at for at, *_ in stored(database, width)] == [kept - 600, 0]


def test_an_engine_tells_of_itself(database: Database) -> None:
    """As long as it has its name; its next start begins with nothing."""
    mine = given.engine(database)
    sampler = Sampler(mine)
    sampler.store(database, '{"upstreams": []}')
    assert given.rows(database, given.engines.table)[0].detail == '{"upstreams": []}'
    given.engine(database)
    sampler.store(database, '{"upstreams": [1]}')
    assert given.rows(database, given.engines.table)[0].detail is None
