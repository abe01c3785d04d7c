"""Where a bulk's lines come from: its uploaded file, an object store URL, or the failed lines of another bulk."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from models import bulk_lines, engines, files
from models.bulks import BATCH_KIND
from models.db import AnyRow, Database
from models.errors import NotFound
from models.storage import ObjectMissing, Storage, read_url
from stoker.settings import Settings
from tasks.csv_lines import read_csv, read_header
from tasks.line_jobs import LineError, LineJob, Rules, batch_line, bulk_line, csv_line, remade, too_large
from tasks.lines import BadInput, gunzipped, read_lines, skipping

_PAGE = 500
_BLANK_BEHIND = 1000
"""Blank lines that may come behind the last line that is taken: a file that ends with some is no larger for them."""
SYSTEM = "system"


@dataclass(slots=True)  # not frozen: that makes it three times as slow to make
class Taken:
    """A line with what was made of it; behind `last` (a record of CSV may have several lines) and `end` one goes on.

    `made` is None where it is only a place that was come to: there are blank lines before it.
    """

    number: int
    last: int
    end: int
    made: LineJob | LineError | None


class Source:
    """The lines of a bulk behind a place; `offset` and `number` are the place behind the last one taken."""

    def __init__(
        self, database: Database, settings: Settings, storage: Storage, bulk: AnyRow, alive: Callable[[], None]
    ) -> None:
        """Prepare; nothing is opened before the first line is asked for.

        `alive` is called again and again while one reads, however long it takes to come to a line, and may raise.
        """
        self._database = database
        self._settings = settings
        self._storage = storage
        self._bulk = bulk
        self._alive = alive
        self._most = settings.max_batch_lines if bulk.kind == BATCH_KIND else settings.max_bulk_lines
        self.offset = 0
        self.number = 0

    def read(self, rules: Rules, offset: int = 0, number: int = 0) -> Iterator[Taken]:
        """Yield the lines behind a place. Raises BadInput when the input cannot be read (any further)."""
        self.offset, self.number = offset, number
        try:
            for taken in self._lines(rules, offset, number):
                if taken.number > self._most:
                    self._refuse(taken.number, blank=taken.made is None)
                yield taken
            self._refuse(self.number, blank=True)
        except ObjectMissing:
            raise BadInput("file_not_found", "The input is no longer stored.") from None

    def _refuse(self, number: int, *, blank: bool) -> None:
        """Raise BadInput where a line is one too many."""
        if number > self._most + _BLANK_BEHIND * blank:
            code = "too_many_tasks" if self._bulk.kind == BATCH_KIND else "too_many_lines"
            message = f"The input has more than the {self._most} lines that this server takes (blank ones count)."
            raise BadInput(code, message)

    def _lines(self, rules: Rules, offset: int, number: int) -> Iterator[Taken]:
        if self._bulk.retry_of is not None:
            return self._retried(rules, number)
        if self._bulk.format == "csv":
            return self._of_csv(rules, offset, number)
        return self._of_lines(rules, offset, number)

    def _of_lines(self, rules: Rules, offset: int, number: int) -> Iterator[Taken]:
        most = self._settings.max_line_bytes
        make = batch_line if self._bulk.kind == BATCH_KIND else bulk_line
        reader = read_lines(self._blocks(offset), most, offset=offset, number=number)
        for line in reader:
            made: LineJob | LineError | None = None
            if line.data != b"":
                made = too_large(most) if line.data is None else make(line.data, rules)
            yield Taken(line.number, line.number, line.end, made)
        self.offset, self.number = reader.offset, reader.number

    def _of_csv(self, rules: Rules, offset: int, number: int) -> Iterator[Taken]:
        most = self._settings.max_line_bytes
        header = read_header(self._blocks(0), most) if offset else None
        reader = read_csv(self._blocks(offset), most, header=header, offset=offset, number=number)
        for record in reader:
            made = csv_line(record.columns, rules) if isinstance(record.columns, Mapping) else record.columns
            yield Taken(record.number, record.last, record.end, made)
        self.offset, self.number = reader.offset, reader.number

    def _retried(self, rules: Rules, number: int) -> Iterator[Taken]:
        while True:
            self._alive()
            with self._database.reading() as tx:
                rows = bulk_lines.failed_jobs(tx, self._bulk.retry_of, number, _PAGE)
            for row in rows:
                made = remade(row.body, row.endpoint, rules, custom_id=row.custom_id, columns=row.columns)
                number = self.number = row.line_no
                yield Taken(number, number, 0, made)
            if len(rows) < _PAGE:
                return

    def _blocks(self, offset: int) -> Iterator[bytes]:
        """Yield the decompressed input from an offset on."""
        most, ratio = self._settings.max_bulk_bytes, self._settings.max_gzip_ratio
        if not self._bulk.gzip:
            yield from self._raw(offset)
        else:
            yield from skipping(self._watched(gunzipped(self._raw(0), most, ratio)), offset)

    def _watched(self, blocks: Iterator[bytes]) -> Iterator[bytes]:
        for block in blocks:
            self._alive()
            yield block

    def _raw(self, start: int) -> Iterator[bytes]:
        if self._bulk.input_url is not None:
            return self._watched(self._fetched(self._bulk.input_url, start))
        return self._watched(self._storage.read(self._key(), start))

    def _fetched(self, url: str, start: int) -> Iterator[bytes]:
        most = self._settings.max_bulk_bytes
        for block in read_url(url, start, prefixes=self._settings.input_prefixes):
            start += len(block)
            if start > most:  # an upload is counted when it comes; nobody has looked at this one before
                raise BadInput("file_too_large", f"The input is larger than {most} bytes.")
            yield block

    def _key(self) -> str:
        with self._database.reading() as tx:
            try:
                return str(files.get(tx, self._bulk.owner, self._bulk.file_id, in_use=True).key)
            except NotFound as error:
                raise BadInput("file_not_found", str(error)) from None


def rules_of(database: Database, bulk: AnyRow, default_model: str) -> Rules:
    """Return what holds for every line of a bulk, with the models that are known now."""
    with database.reading() as tx:
        known = {name: row.max_model_len for name, row in engines.known(tx).items()}
    given: dict[str, Any] = dict(bulk.defaults or {})
    system = given.pop(SYSTEM, None)
    values = {name: msgspec.json.encode(value) for name, value in given.items()}
    if bulk.retry_of is not None:
        return Rules(known, overrides=values)
    if bulk.kind == BATCH_KIND:
        return Rules(known, endpoint=bulk.endpoint)
    return Rules(known, bulk.endpoint, bulk.model or default_model, system, values)
