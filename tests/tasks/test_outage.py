"""Sitting out an outage: work goes on when the database is back, unless it was given up."""

from __future__ import annotations

import threading
from collections import deque
from types import SimpleNamespace

import pytest

from models.errors import DatabaseUnavailable
from tasks import outage
from tasks.outage import sit_out


class Work:
    """Fails with the errors it was given, one a call, then returns 'done'."""

    def __init__(self, *errors: Exception) -> None:
        """Prepare; nothing was called yet."""
        self.left = deque(errors)
        self.calls = 0

    def __call__(self) -> str:
        """Fail, or return."""
        self.calls += 1
        if self.left:
            raise self.left.popleft()
        return "done"


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return the pauses that were made, none of which takes time."""
    made: list[float] = []
    # There alone: other threads sleep as well.
    monkeypatch.setattr(outage, "time", SimpleNamespace(sleep=made.append))
    return made


def test_work_is_done_again_until_it_is_done(pauses: list[float]) -> None:
    """Each failure waits longer, up to a few seconds; the result is the work's own."""
    work = Work(*[DatabaseUnavailable("away")] * 8)
    assert sit_out(work, "waiting", batch="b") == "done"
    assert work.calls == 9
    assert pauses == sorted(pauses)
    assert pauses[0] < 0.3
    assert 3 < pauses[-1] <= 5


def test_another_error_is_nobodys_outage(pauses: list[float]) -> None:
    """What is not an outage is raised at once."""
    work = Work(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        sit_out(work, "waiting")
    assert (work.calls, pauses) == (1, [])


def test_who_gives_up_is_told(pauses: list[float]) -> None:
    """Given up, the work is not tried again, and the caller learns that it was not done."""
    given_up = threading.Event()
    given_up.set()
    work = Work(DatabaseUnavailable("away"), DatabaseUnavailable("still away"))
    with pytest.raises(DatabaseUnavailable, match=r"^away"):
        sit_out(work, "waiting", given_up=given_up)
    assert (work.calls, len(pauses)) == (1, 1)
