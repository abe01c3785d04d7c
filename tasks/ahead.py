"""Work in two threads: the next item is made while the last one is used. Pure."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def ahead(items: Iterator[T]) -> Generator[T, None, None]:
    """Yield what an iterator yields; a thread makes the next item, one at most, while the caller uses this one.

    What the iterator raises comes at its place. Close it: that waits for the item that is being made.
    """
    with ThreadPoolExecutor(1, "ahead") as thread:
        coming: Future[T | None] = thread.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = thread.submit(next, items, None)
            yield item
