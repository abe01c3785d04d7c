"""What takes long to read, blank lines without end, a far place to go on from: no tender loses its bulk over it."""

from __future__ import annotations

import gzip
import itertools
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from models import bulk_leases, bulks
from models.db import AnyRow, Database
from models.storage import Storage
from stoker.settings import Settings
from tasks import ingest, tending
from tasks.bulk_sources import Source, rules_of
from tasks.lines import BLOCK
from tests.tasks.test_bulks import Service, chats, interrupted

PIECES = 12
PAUSE = 2.0
LEASE = 15.0
BLANK = b"\n" * (3 * BLOCK)
kinds = pytest.mark.parametrize("form", ["jsonl", "csv"])
some = pytest.mark.parametrize(("form", "packed"), [("jsonl", True), ("csv", False)], ids=["jsonl-gzip", "csv-plain"])
packings = pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])


class Later:
    """Stands for the module `time` where tenders look at it: seconds pass there as they are told to."""

    sleep = staticmethod(time.sleep)

    def __init__(self, database: Database) -> None:
        self._database = database
        self._passed = 0.0

    def monotonic(self) -> float:
        """Return the time, with the seconds that have passed."""
        return time.monotonic() + self._passed

    def passes(self, seconds: float) -> None:
        """Let seconds pass: leases run out sooner by so much."""
        self._passed += seconds
        with self._database.transaction() as tx:
            tx.execute(sa.update(bulks.table).values(lease_until=bulks.table.c.lease_until - seconds))


class SlowStorage(Storage):
    """Takes longer than a lease to read anything, and calls `between` all the time."""

    def __init__(self, place: str, between: Callable[[], None], time: Later) -> None:
        super().__init__(place)
        self._between = between
        self._time = time
        self.given = 0

    def read(self, key: str, start: int = 0) -> Iterator[bytes]:
        """Yield the bytes in a dozen pieces, slowly."""
        whole = b"".join(super().read(key, start))
        size = max(1, -(-len(whole) // PIECES))
        for at in range(0, len(whole), size):
            self._time.passes(PAUSE)
            self._between()
            self.given += 1
            yield whole[at : at + size]


@pytest.fixture
def service(database: Database, settings: Settings) -> Service:
    """Return a service with room for millions of lines."""
    Path(settings.data).mkdir(parents=True, exist_ok=True)
    return Service(database, settings.model_copy(update={"lease": LEASE, "max_bulk_lines": 10_000_000}))


@pytest.fixture
def later(database: Database, monkeypatch: pytest.MonkeyPatch) -> Later:
    """Return the time of tenders."""
    made = Later(database)
    monkeypatch.setattr(tending, "time", made)
    return made


def limited(service: Service, **values: int) -> None:
    """Change settings of a service."""
    service.settings = service.settings.model_copy(update=values)


def rows(form: str, count: int) -> bytes:
    """Return so many lines."""
    return b"".join(b"say %d\n" % n for n in range(1, count + 1)) if form == "csv" else chats(count)


def header(form: str) -> bytes:
    """Return the line that comes before all others."""
    return b"prompt\n" if form == "csv" else b""


def stored(service: Service, form: str, data: bytes, *, packed: bool) -> str:
    """Store a bulk; return its id."""
    data = header(form) + data
    return service.bulk(gzip.compress(data) if packed else data, format=form, gzip=packed, model="fake")


def alone(service: Service, bulk_id: str) -> Callable[[], None]:
    """Return a check that nobody else can take hold of a bulk."""

    def check() -> None:
        with service.database.transaction() as tx:
            assert bulk_leases.hold(tx, bulk_id, "tender_other", 60.0) is None

    return check


@some
def test_lines_behind_many_blank_ones_become_jobs(service: Service, later: Later, form: str, *, packed: bool) -> None:
    """The reading takes longer than a lease, and nobody else is given the bulk meanwhile."""
    bulk_id = stored(service, form, BLANK + rows(form, 2), packed=packed)
    service.storage = SlowStorage(service.settings.storage, alone(service, bulk_id), later)
    row = service.tend(bulk_id)
    assert (row.state, row.total, row.ingest_done) == ("running", 2, True)
    first = len(BLANK) + len(header(form).splitlines()) + 1
    assert [job.line_no for job in service.jobs(bulk_id)] == [first, first + 1]


def test_a_batch_is_held_while_it_is_looked_through(service: Service, later: Later) -> None:
    """Validation reads as long, and holds it as well."""
    limited(service, max_batch_lines=1_000_000)
    bulk_id = service.batch(BLANK + chats(2, batch=True))
    service.storage = SlowStorage(service.settings.storage, alone(service, bulk_id), later)
    row = service.tend(bulk_id)
    assert (row.state, row.total, row.report) == ("running", 2, {"lines": 2})


@kinds
def test_a_far_place_is_come_to_again(service: Service, later: Later, form: str) -> None:
    """A tender that takes over keeps its hold while it looks for where the one before it was."""
    bulk_id = stored(service, form, rows(form, 600), packed=True)
    interrupted(service, bulk_id, after=1)
    assert service.row(bulk_id).total == 200
    service.storage = SlowStorage(service.settings.storage, alone(service, bulk_id), later)
    row = service.tend(bulk_id)
    assert (row.state, row.total, row.ingest_done) == ("running", 600, True)
    assert len({job.line_no for job in service.jobs(bulk_id)}) == 600


@packings
@kinds
def test_a_place_among_blank_lines_is_kept(
    service: Service, monkeypatch: pytest.MonkeyPatch, form: str, *, packed: bool
) -> None:
    """A tender that dies there has stored how far it was; the next goes on behind it and counts on."""
    monkeypatch.setattr(ingest, "STORE_EVERY", 0.0)
    bulk_id = stored(service, form, BLANK + rows(form, 2), packed=packed)
    interrupted(service, bulk_id, after=2)
    row = service.row(bulk_id)
    assert (row.total, row.ingest_done) == (0, False)
    assert row.line >= 2 * BLOCK
    assert row.offset > BLOCK
    assert service.tend(bulk_id).total == 2
    first = len(BLANK) + len(header(form).splitlines()) + 1
    assert [job.line_no for job in service.jobs(bulk_id)] == [first, first + 1]


@packings
@kinds
def test_blank_lines_end(service: Service, form: str, *, packed: bool) -> None:
    """Nothing but blank lines is an empty file; more of them than lines are taken are too many."""
    bulk_id = stored(service, form, BLANK, packed=packed)
    row = service.tend(bulk_id)
    assert (row.state, row.errors[0]["code"]) == ("failed", "empty_file")
    limited(service, max_bulk_lines=1000)
    bulk_id = stored(service, form, BLANK, packed=packed)
    row = service.tend(bulk_id)
    assert (row.state, row.errors[0]["code"], row.total) == ("failed", "too_many_lines", 0)


@pytest.mark.parametrize(("blank", "code"), [(3, None), (1000, None), (1001, "too_many_lines")])
def test_some_blank_lines_at_the_end_are_not_too_many(service: Service, blank: int, code: str | None) -> None:
    """As many lines as are taken may be followed by a thousand blank ones, wherever the blocks end."""
    limited(service, max_bulk_lines=50)
    row = service.tend(service.bulk(chats(50) + b"\n" * blank))
    assert (row.total, row.errors[0]["code"] if row.errors else None) == (50, code)


def test_who_lost_a_bulk_stops_to_read_it(service: Service, later: Later) -> None:
    """A tender whose bulk another has takes not much more of the input, and stores nothing."""
    bulk_id = service.bulk(BLANK + chats(2))

    def steal() -> None:
        with service.database.transaction() as tx:
            tx.execute(sa.update(bulks.table).values(holder="tender_other"))

    storage = service.storage = SlowStorage(service.settings.storage, steal, later)
    row = service.tend(bulk_id)
    assert storage.given <= 3
    assert (row.holder, row.total, row.line) == ("tender_other", 0, 0)


@packings
@kinds
def test_a_source_is_alive_all_the_time(service: Service, form: str, *, packed: bool) -> None:
    """For each block it says so: of what it reads, and of what comes out, also on its way to a place far behind."""
    limited(service, max_gzip_ratio=10_000)
    data = BLANK * 4 + rows(form, 1)
    bulk_id = stored(service, form, data, packed=packed)
    row: AnyRow = service.row(bulk_id)
    counts = []
    for offset in (0, len(header(form)) + len(BLANK) * 4):
        calls = itertools.count()
        source = Source(service.database, service.settings, service.storage, row, lambda calls=calls: next(calls))
        lines = [taken.made for taken in source.read(rules_of(service.database, row, "fake"), offset, 1)]
        assert sum(made is not None for made in lines) == 1
        counts.append(next(calls))
    blocks = 12 if packed else 3  # a plain one is read in larger blocks, and from the place on
    assert counts[0] >= blocks
    assert counts[1] >= (blocks if packed else 1)


@packings
def test_an_input_by_url_is_limited_too(service: Service, tmp_path: Path, *, packed: bool) -> None:
    """What comes behind the limit is never read: the bulk fails and says why."""
    data = chats(100)
    (tmp_path / "in.jsonl").write_bytes(gzip.compress(data) if packed else data)
    url = f"file://{tmp_path}/in.jsonl"
    service.settings = service.settings.model_copy(update={"input_urls": f"file://{tmp_path}/"})
    for most, code in ((len(data), None), (len(data) - 1, "file_too_large")):
        limited(service, max_bulk_bytes=most)
        row = service.tend(service.bulk(b"", file_id=None, input_url=url, gzip=packed))
        assert (row.errors or [{"code": None}])[0]["code"] == code
