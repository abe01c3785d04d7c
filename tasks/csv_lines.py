"""CSV as it comes, bytes in blocks, to its records: pure, in bounded memory, resumable at the end of any record."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from tasks.line_jobs import LineError, too_large
from tasks.lines import BLOCK, BOM, BadInput, split

PROMPT = "prompt"


@dataclass(slots=True)
class Record:
    """A record: the lines where it begins and ends (from 1), where the next one begins, and its columns.

    None for columns: it stands for a stretch of blank lines, of BLOCK bytes or more, that ends with it.
    """

    number: int
    last: int
    end: int
    columns: dict[str, str] | LineError | None = field(repr=False)


def read_csv(
    blocks: Iterable[bytes], most_bytes: int, *, header: Sequence[str] | None = None, offset: int = 0, number: int = 0
) -> CsvReader:
    """Return the records of an input, of blank lines only where a long stretch ends.

    `blocks` begin at `offset`, behind `number` lines. Without a `header` (see `read_header`) the first record is the
    header. Raises BadInput when it is not a good one.
    """
    return CsvReader(blocks, most_bytes, header, offset, number)


def read_header(blocks: Iterable[bytes], most_bytes: int) -> list[str]:
    """Return the names of the columns, from the blocks of the whole input. Raises BadInput."""
    return list(read_csv(blocks, most_bytes).header)


class CsvReader:
    """The records of an input, and the position behind the last one taken; at the end, behind the whole input."""

    def __init__(
        self, blocks: Iterable[bytes], most_bytes: int, header: Sequence[str] | None, offset: int, number: int
    ) -> None:
        csv.field_size_limit(max(csv.field_size_limit(), most_bytes))  # of the whole process: it only ever grows
        self._most = most_bytes
        self._feed = _Feed(blocks, most_bytes, offset, number)
        self._reader = csv.reader(self._feed, strict=True)
        self.header = _checked(self._cells()) if header is None else list(header)
        self._records = self._read()

    @property
    def offset(self) -> int:
        """Return how many bytes are read."""
        return self._feed.end

    @property
    def number(self) -> int:
        """Return how many lines are read."""
        return self._feed.number

    def __iter__(self) -> Iterator[Record]:
        return self._records

    def __next__(self) -> Record:
        return next(self._records)

    def _read(self) -> Iterator[Record]:
        feed, header, width = self._feed, self.header, len(self.header)
        while (cells := self._cells()) is not None:
            columns: dict[str, str] | LineError | None
            if isinstance(cells, LineError):
                columns = cells
            elif not cells:
                yield Record(feed.number, feed.number, feed.end, None)
                continue
            elif len(cells) == width:
                columns = dict(zip(header, cells, strict=True))
            else:
                columns = LineError("invalid_csv_line", f"This record has {len(cells)} cells, the header {width}.")
            yield Record(feed.begun, feed.number, feed.end, columns)

    def _cells(self) -> list[str] | LineError | None:
        """Return the next record's cells (no cell: blank lines) or what is wrong with it, None at the end."""
        feed = self._feed
        feed.begin()
        try:
            cells = next(self._reader, None)
        except csv.Error:
            return LineError("invalid_csv_line", f"{feed.where()} not valid CSV: look for a quote that stands alone.")
        except _TooLarge:
            if feed.begun == feed.number:
                return too_large(self._most)
            why = f"{feed.where()} one record of more than {self._most} bytes: look for a quote that is not closed."
            return LineError("line_too_large", why)
        return feed.fault or cells


class _TooLarge(Exception):
    """A record is larger than the limit."""


class _Feed:
    """Gives csv.reader one line at a time and counts what it takes, which is no more than it needs for a record."""

    def __init__(self, blocks: Iterable[bytes], most_bytes: int, offset: int, number: int) -> None:
        self.end = offset
        self.number = number
        self.begin()
        self._most = most_bytes
        self._lines = _lines(blocks, most_bytes)

    def begin(self) -> None:
        """Begin a record."""
        self.begun = 0
        self.fault: LineError | None = None
        self._size = 0

    def where(self) -> str:
        """Return the lines of the record, as the beginning of a sentence."""
        return "This record is" if self.begun == self.number else f"Lines {self.begun} to {self.number} are"

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        raw, size = self._next_line()
        self._size += size
        if isinstance(raw, int) or self._size > self._most:
            raise _TooLarge
        if b"\0" in raw:
            self.fault = LineError("nul_character", f"Line {self.number} has a NUL character.")
        try:
            return raw.decode()
        except UnicodeDecodeError:
            self.fault = LineError("invalid_csv_line", f"Line {self.number} is not UTF-8.")
            return raw.decode(errors="replace")

    def _next_line(self) -> tuple[bytes | int, int]:
        behind = self.end + BLOCK
        for raw in self._lines:
            size = raw if isinstance(raw, int) else len(raw)
            first = not self.end
            self.end += size
            self.number += 1
            if self.begun:
                return raw, size
            line = raw.removeprefix(BOM) if first and isinstance(raw, bytes) else raw
            if isinstance(line, int) or not line.isspace():
                self.begun = self.number
                return line, size
            if self.end >= behind:
                return b"\n", 0  # of which csv.reader makes a record without cells
        raise StopIteration


def _lines(blocks: Iterable[bytes], most_bytes: int) -> Iterator[bytes | int]:
    """Yield the lines with their newlines, of those that are too long only the size."""
    for raws, newline in split(blocks, most_bytes):
        for raw in raws:
            if isinstance(raw, int):
                yield raw + newline
            else:
                yield raw + b"\n" if newline else raw


def _checked(header: list[str] | LineError | None) -> list[str]:
    if header is None:
        raise BadInput("empty_file", "The file is empty.")
    if not header:
        raise BadInput("invalid_csv", f"The file begins with {BLOCK:,} bytes of blank lines: put the header first.")
    if isinstance(header, LineError):
        raise BadInput("invalid_csv", f"The header cannot be read. {header.message}")
    names = [name.strip() for name in header]
    if PROMPT not in names:
        raise BadInput(
            "missing_column", "The first line of CSV must name the columns, one of them prompt, with commas."
        )
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise BadInput("duplicate_column", f"Two columns are named '{twice[:64]}'.")
    return names
