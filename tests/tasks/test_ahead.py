"""The next item is made while the last one is used."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from tasks.ahead import ahead


def test_items_come_in_their_order() -> None:
    """Nothing is left out, and an iterator without items gives none."""
    assert list(ahead(iter(range(100)))) == list(range(100))
    assert list(ahead(iter(()))) == []


def test_the_next_item_is_made_meanwhile_and_no_more() -> None:
    """While the first one is used the second is made, and the third not before the second is asked for."""
    made = [threading.Event() for _ in range(3)]

    def items() -> Iterator[int]:
        for number, event in enumerate(made):
            event.set()
            yield number

    coming = ahead(items())
    assert next(coming) == 0
    assert made[1].wait(60)
    assert not made[2].wait(0.05)
    assert next(coming) == 1
    assert made[2].wait(60)
    coming.close()


def test_an_error_comes_at_its_place() -> None:
    """The items before it are all used first."""

    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise ValueError("three")

    seen = []
    with pytest.raises(ValueError, match="three"):
        seen.extend(ahead(items()))
    coming = ahead(items())
    assert [next(coming), next(coming)] == [1, 2]
    with pytest.raises(ValueError, match="three"):
        next(coming)


def test_closing_leaves_no_thread() -> None:
    """It waits for the item that is being made, so that nothing is read behind the caller's back."""
    begun, go_on = threading.Event(), threading.Event()

    def items() -> Iterator[int]:
        yield 1
        begun.set()
        go_on.wait(60)
        yield 2

    coming = ahead(items())
    assert next(coming) == 1
    assert begun.wait(60)
    threading.Timer(0.05, go_on.set).start()
    coming.close()
    assert go_on.is_set()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]
