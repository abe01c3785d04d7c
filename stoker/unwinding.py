"""Signals that end a program as an exception does, so that what it began is also ended."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def unwinding_at_signals() -> Iterator[None]:
    """Unwind at SIGTERM and SIGHUP, as at Ctrl-C, so that the service is stopped; a second one changes nothing."""

    def end(number: int, _frame: FrameType | None) -> None:
        for one in before:
            signal.signal(one, signal.SIG_IGN)
        raise SystemExit(128 + number)

    # A hang-up that is ignored (nohup) stays ignored.
    numbers = [it for it in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(it) != signal.SIG_IGN]
    before = {number: signal.getsignal(number) for number in numbers}
    for number in numbers:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
