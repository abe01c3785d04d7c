"""Sweeps: one sweeper at a time, and grace when the clock is not to be trusted."""

from __future__ import annotations

import math
import time

import pytest

from models import sweeps
from models.db import Database
from tests.models import given

LEASE = 15.0


def sweep(database: Database) -> bool | None:
    """Begin a sweep."""
    with database.transaction() as tx:
        return sweeps.begin(tx, LEASE)


def test_the_first_sweep_gives_grace(database: Database) -> None:
    """Nobody knows how long the service was down: for one lease nothing is taken away."""
    assert sweep(database) is False
    assert sweep(database) is False
    (row,) = given.rows(database, sweeps.table)
    assert row.grace_until == pytest.approx(time.time() + LEASE, abs=5)


def test_leases_may_expire_once_the_grace_is_over(database: Database) -> None:
    """Sweep follows sweep, the grace lies behind."""
    sweep(database)
    given.change(database, sweeps.table, grace_until=time.time() - 0.1, last_at=time.time() - 2)
    assert sweep(database) is True
    assert sweep(database) is True


@pytest.mark.parametrize("since", [sweeps.MOST_GAP + 5, 3600.0, -5.0, -7200.0])
def test_a_gap_or_a_clock_that_went_back_gives_grace_anew(database: Database, since: float) -> None:
    """After a pause, a suspend, or a jump of the clock either way every lease only looks expired."""
    sweep(database)
    given.change(database, sweeps.table, grace_until=1.0, last_at=time.time() - since)
    assert sweep(database) is False
    assert sweep(database) is False


def test_grace_never_lasts_longer_than_a_lease_from_now(database: Database) -> None:
    """A clock that stood far ahead when the grace was given, and was set right since, does not block for ever."""
    sweep(database)
    given.change(database, sweeps.table, grace_until=time.time() + 7200, last_at=time.time() - 1)
    assert sweep(database) is False
    (row,) = given.rows(database, sweeps.table)
    assert row.grace_until <= time.time() + LEASE + 1


def test_a_second_sweeper_is_sent_away(postgres_database: Database) -> None:
    """While one sweeps, the other does not wait (SQLite has one writer at a time anyway)."""
    sweep(postgres_database)
    with postgres_database.transaction() as tx:
        assert sweeps.begin(tx, LEASE) is not None
        assert sweep(postgres_database) is None
    assert sweep(postgres_database) is not None


@pytest.mark.parametrize(
    ("known", "behind"), [(None, math.inf), (90.0, 10.0), (100.5, -0.5), (102.0, math.inf), (3700.0, math.inf)]
)
def test_how_far_a_replica_is_behind(known: float | None, behind: float) -> None:
    """A sweep of the future is no sign of life: the clock was set back, or it is of another database."""
    assert sweeps.lag(known, 100.0) == behind
