"""How the results of a bulk are read as they come: page by page, each behind the last line of the one before.

A page is one plain GET, so a connection that breaks costs that page and nothing else: it is asked for again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from stoker.calls import is_complete, part
from stoker.resources import Result, made
from stoker.steps import PATIENCE, Call, Pause, Steps, patiently

FIRST_PAGE, LARGEST_PAGE = 100, 1000
PAGE_BYTES = 4_000_000
"""About the largest page that is held in memory; the next one's number of lines is chosen by the last one's size."""
SHORTEST_PAUSE, LONGEST_PAUSE = 0.1, 2.0


@dataclass(frozen=True, slots=True)
class Line:
    """One line of results: as it came, with its end, and as it is read."""

    raw: bytes
    document: dict[str, Any]

    @property
    def seq(self) -> int:
        """Return its place among the bulk's ended lines."""
        return int(self.document["seq"])

    @property
    def result(self) -> Result:
        """Return it as a resource."""
        return made(Result, self.document)


@dataclass(frozen=True, slots=True)
class Page:
    """Some lines, and whether no more can come than the service has by now."""

    lines: Sequence[Line]
    complete: bool


class Results:
    """A reader of one bulk: results, or errors. `ended` once all are read that it looks for.

    With `follow` these are all that the bulk will have; else those that it has now, and it may be asked again later.
    """

    def __init__(
        self, bulk_id: str, *, after: int = 0, errors: bool = False, follow: bool = True, patience: float = PATIENCE
    ) -> None:
        self.after = after
        self.ended = False
        self._path = f"/v1/bulks/{part(bulk_id)}/{'errors' if errors else 'results'}"
        self.follow = follow
        self._patience = patience
        self._limit = FIRST_PAGE

    def page(self) -> Steps[Sequence[Line]]:
        """Return the lines that follow, once there are any; none at the end."""
        pause = SHORTEST_PAUSE
        while True:
            page = yield from patiently(self._call(), self._patience)
            lines = [line for line in page.lines if line.seq > self.after]
            # A complete page that holds something may still have been cut short on its way: the empty one is the end.
            self.ended = not lines if page.complete else not self.follow and len(lines) < self._limit
            if lines:
                self._took(lines)
            if lines or self.ended:
                return lines
            yield Pause(pause)
            pause = min(LONGEST_PAUSE, pause * 2)

    def _call(self) -> Call[Page]:
        options = {"params": {"after": self.after, "limit": self._limit}}
        return Call("GET", self._path, page_of, options, repeatable=True)

    def _took(self, lines: Sequence[Line]) -> None:
        self.after = lines[-1].seq
        size = sum(len(line.raw) for line in lines) // len(lines)
        self._limit = max(1, min(LARGEST_PAGE, PAGE_BYTES // size))


def page_of(answer: httpx.Response) -> Page:
    """Read a page. A last line without an end is torn: it counts as not there, and the page as not complete."""
    # Not splitlines(): it also splits at separators that JSON allows inside texts.
    *whole, torn = answer.content.split(b"\n")
    lines = [Line(raw + b"\n", json.loads(raw)) for raw in whole if raw.strip()]
    return Page(lines, complete=is_complete(answer) and not torn)
