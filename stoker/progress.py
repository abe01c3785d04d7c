"""How a long command shows where it is: bars on a terminal, now and then a line elsewhere; on the standard error."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import chain, repeat
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self

from stoker.cli_http import duration
from stoker.console import is_terminal, word
from stoker.unwinding import unwinding_at_signals

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

    from stoker.resources import Bulk

LINE_EVERY = 5.0
_PAUSES = (5.0, 10.0, 20.0, 30.0)
"""Seconds between lines about work of unknown length; the last one again and again."""
_MB = 1_000_000


class Display(Protocol):
    """What is told of a run."""

    def __enter__(self) -> Self:
        """Begin."""

    def __exit__(self, *_: object) -> None:
        """End, and leave the cursor on a line of its own."""

    def sent(self, sent: int, size: int | None) -> None:
        """Tell how much of the input is uploaded."""

    def look(self, bulk: Bulk) -> None:
        """Tell how far the bulk is."""

    def say(self, text: str) -> None:
        """Tell how far something else is."""


def display() -> Display:
    """Return what suits the standard error."""
    return Drawn() if is_terminal(sys.stderr) else Plain()


@contextmanager
def working(what: str, grows: Path | None = None) -> Iterator[None]:
    """Tell that something goes on, for how long, and how large the file is that grows by it.

    A spinner on a terminal, gone at the end; elsewhere nothing at first, then a line now and then.
    """
    ended = threading.Event()
    began = time.monotonic()

    def told() -> str:
        size = "" if grows is None else _size(grows)
        return word(f"{what}: {size}{duration(time.monotonic() - began)}")

    def repeat_it(say: Callable[[str], object], pauses: Iterable[float]) -> None:
        for pause in pauses:
            if ended.wait(pause):
                return
            say(told())

    with _spinner(what) if is_terminal(sys.stderr) else _lines() as (say, pauses):
        thread = threading.Thread(target=repeat_it, args=(say, pauses), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


@contextmanager
def _lines() -> Iterator[tuple[Callable[[str], object], Iterable[float]]]:
    yield _print, chain(_PAUSES, repeat(_PAUSES[-1]))


@contextmanager
def _spinner(what: str) -> Iterator[tuple[Callable[[str], object], Iterable[float]]]:
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False))
    # What is printed meanwhile stands above the spinner, where both go to one terminal.
    both = is_terminal(sys.stdout)
    # Whatever ends it, the cursor is there again.
    with (
        unwinding_at_signals(),
        Progress(*columns, console=Console(stderr=True), transient=True, redirect_stdout=both) as bars,
    ):
        task = bars.add_task(word(what), total=None)
        yield lambda text: bars.update(task, description=text), repeat(0.5)


def _size(file: Path) -> str:
    with suppress(OSError):
        return f"{file.stat().st_size / _MB:.1f} MB, "
    return ""


def _print(line: str) -> None:
    # Progress that nobody can read stops nothing.
    with suppress(OSError, ValueError):
        print(word(line), file=sys.stderr, flush=True)  # noqa: T201  # it talks to a person


def described(bulk: Bulk) -> str:
    """Return how far a bulk is, in a line."""
    counts = bulk.counts
    total = f"{counts.total}" if bulk.counted else f"{counts.total} or more"
    parts = [f"{counts.done} of {total} done", f"{counts.failed} failed"]
    if bulk.paused or bulk.state != "running":
        parts.append("paused" if bulk.paused else bulk.state)
    if not bulk.ended:
        if bulk.tokens_per_second:
            parts.append(f"{bulk.tokens_per_second:.0f} tokens/s")
        if bulk.eta is not None:
            parts.append(f"{duration(bulk.eta)} left")
    return ", ".join(parts)


class Plain:
    """Lines: the first of each kind, what changed every few seconds, and the last."""

    def __init__(self) -> None:
        self._last = ""
        self._due = 0.0

    def __enter__(self) -> Self:
        """Begin with nothing said."""
        return self

    def __exit__(self, *_: object) -> None:
        """Need nothing."""

    def sent(self, sent: int, size: int | None) -> None:
        """Tell how much of the input is uploaded."""
        whole = f" of {size / _MB:.1f}" if size is not None else ""
        self._say(f"uploading: {sent / _MB:.1f}{whole} MB", now=sent == size)

    def look(self, bulk: Bulk) -> None:
        """Tell how far the bulk is."""
        self._say(f"{bulk.id}: {described(bulk)}", now=bulk.ended)

    def say(self, text: str) -> None:
        """Tell how far something else is."""
        self._say(text, now=False)

    def _say(self, line: str, *, now: bool) -> None:
        if line == self._last or not (now or time.monotonic() >= self._due):
            return
        self._last = line
        self._due = time.monotonic() + LINE_EVERY
        _print(line)


class Drawn:
    """Two bars: the upload, then the lines."""

    def __init__(self) -> None:
        self._ends = ExitStack()
        self._bars = _bars()
        self._upload: TaskID | None = None
        self._lines: TaskID | None = None

    def __enter__(self) -> Self:
        """Begin to draw."""
        self._ends.enter_context(unwinding_at_signals())
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leave what was drawn last."""
        self._bars.stop()
        self._ends.close()

    def sent(self, sent: int, size: int | None) -> None:
        """Draw how much of the input is uploaded."""
        if self._upload is None:
            self._upload = self._bars.add_task("upload", total=size, told="")
        whole = f" of {size / _MB:.1f}" if size is not None else ""
        self._bars.update(self._upload, completed=sent, total=size, told=f"{sent / _MB:.1f}{whole} MB")

    def look(self, bulk: Bulk) -> None:
        """Draw how far the bulk is."""
        total = bulk.counts.total if bulk.counted or bulk.ended else None
        self._bars.update(self._line(), completed=bulk.counts.done, total=total, told=word(described(bulk)))

    def say(self, text: str) -> None:
        """Draw how far something else is."""
        self._bars.update(self._line(), told=word(text))

    def _line(self) -> TaskID:
        if self._lines is None:
            self._lines = self._bars.add_task("lines", total=None, told="")
        return self._lines


def _bars() -> Bars:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (
        TextColumn("{task.description:<6}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[told]}", markup=False),
    )
    return Progress(*columns, console=Console(stderr=True), refresh_per_second=5)
