"""Tables of text that fit a width, however narrow: columns are cut, then left out, the least needed first. Pure.

A line is a sequence of (text, style); styles are rich's names. Cells may come from outside: a name must not steer the
terminal.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from rich.cells import cell_len, set_cell_size

from stoker.console import word

Cell = tuple[str, str]
Line = Sequence[Cell]

ALWAYS = 9
"""The `keep` of a column that is never left out."""
_GAP = 2
_LEAST, _FAIR = 6, 12
"""Cells that a text is cut down to: before its whole column goes, and before another column goes for its sake."""
_MANY = 3


@dataclass(frozen=True, slots=True)
class Glyphs:
    """What bars and curves are drawn with."""

    full: str = "█"
    empty: str = "░"
    steps: str = "▁▂▃▄▅▆▇█"
    cut: str = "…"


ASCII = Glyphs("#", ".", "_.-=+*#", "~")


@dataclass(frozen=True, slots=True)
class Column:
    """A column; `keep` tells how long it stays where there is no room for all: the highest longest."""

    title: str
    keep: int = ALWAYS
    right: bool = False


@dataclass(slots=True)
class Section:
    """A table with a title, or what is said in its place when it is empty."""

    title: str
    columns: Sequence[Column]
    rows: list[Sequence[Cell]] = field(default_factory=list)
    empty: str = ""


def plain(line: Line) -> str:
    """Return a line without its styles."""
    return "".join(text for text, _ in line).rstrip()


def cut(text: str, width: int, glyphs: Glyphs = Glyphs()) -> str:
    """Return a text that takes at most `width` cells."""
    if cell_len(text) <= width:
        return text
    return set_cell_size(text, width - 1).rstrip() + glyphs.cut if width > 0 else ""


def table(section: Section, width: int, most: int | None, glyphs: Glyphs) -> Iterator[Line]:
    """Yield a section as lines: its titles, and as many of its rows as there may be."""
    if not section.rows:
        yield ((section.title, "dim"),)
        yield ((cut(section.empty, width, glyphs), ""),)
        return
    rows = [[(word(text), style) for text, style in row] for row in section.rows[:most]]
    columns = _fitting(section.columns, rows, width)
    yield _row([(one.title, "dim") for one, _, _ in columns], columns, glyphs)
    for row in rows:
        yield _row([row[at] for _, at, _ in columns], columns, glyphs)
    if len(rows) < len(section.rows):
        yield ((cut(f"and {len(section.rows) - len(rows)} more", width, glyphs), "dim"),)


def _fitting(columns: Sequence[Column], rows: Sequence[Sequence[Cell]], width: int) -> list[tuple[Column, int, int]]:
    """Return the columns that there is room for, each with its place in a row and its width."""
    chosen = [
        (column, at, max(cell_len(column.title), *(cell_len(row[at][0]) for row in rows)))
        for at, column in enumerate(columns)
    ]
    while (over := _GAP * (len(chosen) - 1) + sum(size for *_, size in chosen) - width) > 0:
        place, (column, at, size) = max(enumerate(chosen), key=lambda one: (not one[1][0].right, one[1][2]))
        least = min(chosen, key=lambda one: one[0].keep)
        fair = max(_LEAST, cell_len(column.title), _FAIR if len(chosen) > _MANY else 0)
        if not column.right and (size - over >= fair or (least[0].keep == ALWAYS and size > 1)):
            chosen[place] = (column, at, max(1, size - over))
        elif len(chosen) > 1:
            chosen.remove(least)
        else:
            break
    return chosen


def _row(cells: Sequence[Cell], columns: Sequence[tuple[Column, int, int]], glyphs: Glyphs) -> Line:
    shown: list[Cell] = []
    for (text, style), (column, _, width) in zip(cells, columns, strict=True):
        fits = cut(text, width, glyphs)
        pad = " " * (width - cell_len(fits))
        shown += [(pad + fits if column.right else fits + pad, style), (" " * _GAP, "")]
    return shown[:-1]


def cells(line: Line) -> int:
    """Return how many cells a line takes."""
    return sum(cell_len(text) for text, _ in line)
