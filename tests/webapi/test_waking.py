"""Waiting threads are woken a few at a time, and none is forgotten."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial

import pytest

from webapi import waking
from webapi.waking import MOST_AWAKE, Waking


class Sleepers:
    """Sleepers that only note that they were woken."""

    def __init__(self, count: int) -> None:
        self.woken: list[int] = []
        self.all: list[Callable[[], None]] = [partial(self.woken.append, number) for number in range(count)]


def test_a_few_at_once() -> None:
    """The others come one by one, in the order in which they were to be woken, as those before fall asleep."""
    some, them = Waking(), Sleepers(MOST_AWAKE + 3)
    for sleeper in them.all:
        some.wake(sleeper)
    assert them.woken == list(range(MOST_AWAKE))
    some.asleep(them.all[3])
    assert them.woken == list(range(MOST_AWAKE + 1))
    some.left(them.all[0])
    some.asleep(them.all[1])
    assert them.woken == list(range(MOST_AWAKE + 3))


def test_one_that_is_awake_is_woken_again() -> None:
    """What comes while somebody is at work is not missed, and costs nobody's turn."""
    some, them = Waking(), Sleepers(MOST_AWAKE + 1)
    for sleeper in them.all[:MOST_AWAKE]:
        some.wake(sleeper)
    some.wake(them.all[0])
    assert them.woken == [*range(MOST_AWAKE), 0]


def test_one_that_looked_by_itself_is_woken_all_the_same() -> None:
    """Who wakes up by time alone may have looked too early: its turn is still to come."""
    some, them = Waking(), Sleepers(MOST_AWAKE + 1)
    for sleeper in them.all:
        some.wake(sleeper)
    some.asleep(them.all[MOST_AWAKE])
    assert MOST_AWAKE not in them.woken
    some.asleep(them.all[0])
    assert them.woken[-1] == MOST_AWAKE


def test_one_that_has_left_is_not_woken() -> None:
    """And its turn goes to the next."""
    some, them = Waking(), Sleepers(MOST_AWAKE + 2)
    for sleeper in them.all:
        some.wake(sleeper)
    some.left(them.all[MOST_AWAKE])
    some.asleep(them.all[0])
    assert them.woken == [*range(MOST_AWAKE), MOST_AWAKE + 1]


def test_one_that_does_not_come_back_holds_up_nobody_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """It may write to a client that does not read."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    some, them = Waking(), Sleepers(MOST_AWAKE + 2)
    for sleeper in them.all:
        some.wake(sleeper)
    now[0] += 2 * waking.LAPSE
    some.asleep(them.all[0])
    assert them.woken == list(range(MOST_AWAKE + 2))


@pytest.mark.parametrize("work", [0.0, 0.0005])
def test_no_thread_is_forgotten(work: float) -> None:
    """A hundred threads, each told of two hundred things: each hears of the last one without looking by itself."""
    some = Waking()
    told, heard = [0] * 100, [0] * 100
    events = [threading.Event() for _ in told]
    all_told = threading.Event()

    def sleep(number: int) -> None:
        while heard[number] < 200:
            some.asleep(events[number].set)
            assert events[number].wait(60), "forgotten"
            events[number].clear()
            heard[number] = told[number]
            time.sleep(work)
        # As a hub does: nobody is woken who has left.
        all_told.wait(60)
        some.left(events[number].set)

    threads = [threading.Thread(target=sleep, args=(number,)) for number in range(len(told))]
    for thread in threads:
        thread.start()
    for _ in range(200):
        for number, event in enumerate(events):
            told[number] += 1
            some.wake(event.set)
    all_told.set()
    for thread in threads:
        thread.join(100)
    assert heard == [200] * len(told)
