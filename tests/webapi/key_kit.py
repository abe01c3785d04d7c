"""Keys for tests of the door, and what they open."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from models import keys
from models.db import Database


def bearer(secret: str) -> dict[str, str]:
    """Return the header that carries a key."""
    return {"Authorization": f"Bearer {secret}"}


def key_of(
    database: Database,
    owner: str = "ada",
    scopes: Iterable[str] = keys.USUAL,
    limits: Mapping[str, float] | None = None,
) -> dict[str, str]:
    """Make a key and return the header that carries it."""
    with database.transaction() as tx:
        return bearer(keys.create(tx, owner, scopes=scopes, limits=limits).secret)


class FirstHangs:
    """A function whose first call waits while it is held up; `calls` counts all."""

    def __init__(self, real: Callable[..., Any]) -> None:
        self.calls = 0
        self._real = real
        self._began, self._released = threading.Event(), threading.Event()

    def __call__(self, *args: Any) -> Any:
        """Call the function."""
        self.calls += 1
        if not self._began.is_set():
            self._began.set()
            assert self._released.wait(60)
        return self._real(*args)

    @contextmanager
    def holding(self, work: Callable[[], object]) -> Iterator[None]:
        """Let a work hang in another thread meanwhile."""
        thread = threading.Thread(target=work)
        thread.start()
        try:
            assert self._began.wait(60)
            yield
        finally:
            self._released.set()
            thread.join(60)
