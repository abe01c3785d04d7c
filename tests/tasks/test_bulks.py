"""The tender of bulks: from an uploaded file to jobs, results and files, through every crash."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import sqlalchemy as sa

from models import bulk_leases, bulk_results, bulks, ends, engines, files, jobs, results
from models.bulks import NewBulk
from models.db import AnyRow, Database, now
from models.ends import Settled
from models.results import NewResult
from models.storage import ObjectMissing, Storage
from stoker.settings import Settings
from tasks.bulks import tend_bulk
from tasks.doorbell import Doorbell
from tasks.tending import Tending
from tests.tasks.inprocess import Bell


class Service:
    """A database, a storage and a tender, without processes."""

    def __init__(self, database: Database, settings: Settings) -> None:
        self.database = database
        self.settings = settings
        self.storage = Storage(settings.storage)
        self.bell = Bell()
        with database.transaction() as tx:
            engines.remember(tx, "fake", 4096, None)

    def upload(self, data: bytes, purpose: str = files.BULK_INPUT) -> str:
        """Store a file; return its id."""
        with self.database.transaction() as tx:
            file = files.begin(tx, "alice", purpose)
        with self.storage.writer(file.key) as out:
            out.write(data)
        with self.database.transaction() as tx:
            files.finish(tx, file.id, filename="in.jsonl", purpose=purpose, size=len(data), expires_in=None)
        return file.id

    def bulk(self, data: bytes, **fields: Any) -> str:
        """Store a bulk of these lines; return its id."""
        kind = fields.pop("kind", "bulk")
        purpose = "batch" if kind == "batch" else files.BULK_INPUT
        given = {"file_id": self.upload(data, purpose), "lane": "bulk", **fields}
        with self.database.transaction() as tx:
            return str(bulks.create(tx, NewBulk("alice", kind, **given)).id)

    def batch(self, data: bytes, **fields: Any) -> str:
        """Store an OpenAI batch of chats; return its id."""
        return self.bulk(data, kind="batch", endpoint="/v1/chat/completions", window="24h", **fields)

    def tend(self, bulk_id: str, **more: Any) -> AnyRow:
        """Tend a bulk; return its row."""
        tend_bulk(self.database, self.settings, self.storage, cast("Doorbell", self.bell), bulk_id, **more)
        return self.row(bulk_id)

    def row(self, bulk_id: str) -> AnyRow:
        """Return a bulk's row."""
        with self.database.reading() as tx:
            return tx.execute(sa.select(bulks.table).where(bulks.table.c.id == bulk_id)).one()

    def jobs(self, bulk_id: str) -> Sequence[AnyRow]:
        """Return a bulk's jobs by line, with their bodies."""
        chosen = sa.select(jobs.table, jobs.bodies.c.body, jobs.bodies.c.columns)
        chosen = chosen.join(jobs.bodies, jobs.bodies.c.job_id == jobs.table.c.id)
        with self.database.reading() as tx:
            return tx.execute(chosen.where(jobs.table.c.bulk_id == bulk_id).order_by(jobs.table.c.line_no)).all()

    def run(self, bulk_id: str, answer: Callable[[AnyRow], Settled] | None = None) -> None:
        """End every queued job of a bulk as an engine would."""
        answer = answer or (lambda job: Settled(job.id, "succeeded", ok(job)))
        batch_id = f"batch_{bulk_id}"
        waiting = [job for job in self.jobs(bulk_id) if job.state == "queued"]
        mine = (jobs.table.c.bulk_id == bulk_id,)
        with self.database.transaction() as tx:
            jobs.move(tx, "batched", *mine, sources=["queued"], batch_id=batch_id)
            jobs.move(tx, "running", *mine, sources=["batched"])
        for start in range(0, len(waiting), 100):
            chunk = [answer(job) for job in waiting[start : start + 100]]
            with self.database.transaction() as tx:
                ends.settle(tx, "engine", {batch_id: chunk})

    def lines(self, bulk_id: str, *, good: bool) -> list[AnyRow]:
        """Return a bulk's results, or its errors, in their order."""
        pages = bulk_results.follow(self.database, bulk_id, ok=good, details=True)
        return [row for page in pages for row in page]

    def file(self, file_id: str) -> list[dict[str, Any]]:
        """Return the lines of an output file."""
        with self.database.reading() as tx:
            row = files.get(tx, "alice", file_id)
        data = b"".join(self.storage.read(row.key))
        assert len(data) == row.bytes
        return [json.loads(line) for line in data.splitlines()]


def ok(job: AnyRow) -> NewResult:
    """Return an answer that repeats the line's name."""
    return NewResult(200, json.dumps({"custom_id": job.custom_id}), prompt_tokens=2, completion_tokens=3)


def chats(count: int, *, batch: bool = False) -> bytes:
    """Return so many lines, named `line-1` and so on."""
    made = []
    for number in range(1, count + 1):
        body = {"model": "fake", "messages": [{"role": "user", "content": f"say {number}"}]}
        line: dict[str, Any] = {"custom_id": f"line-{number}"}
        line |= {"method": "POST", "url": "/v1/chat/completions", "body": body} if batch else body
        made.append(json.dumps(line).encode())
    return b"\n".join(made) + b"\n"


@pytest.fixture
def service(database: Database, settings: Settings) -> Service:
    """Return a service without processes."""
    Path(settings.data).mkdir(parents=True, exist_ok=True)
    return Service(database, settings)


def test_the_lines_of_a_bulk_become_jobs(service: Service) -> None:
    """Each is queued in the bulk's lane, knows its line and its name, and the collector is told."""
    bulk_id = service.bulk(chats(3), model="fake")
    row = service.tend(bulk_id)
    assert (row.state, row.total, row.done, row.ingest_done, row.holder) == ("running", 3, 0, True, None)
    found = [(job.line_no, job.custom_id, job.state, job.lane, job.model) for job in service.jobs(bulk_id)]
    assert found == [(n, f"line-{n}", "queued", "bulk", "fake") for n in (1, 2, 3)]
    assert ("collector", "fake/") in service.bell.rung


def test_a_bulk_ends_with_its_last_job(service: Service) -> None:
    """Counts and tokens are those of its results, which are numbered in the order of their commits."""
    bulk_id = service.bulk(chats(250))
    service.tend(bulk_id)
    service.run(bulk_id)
    row = service.tend(bulk_id)
    assert (row.state, row.total, row.done, row.succeeded, row.failed) == ("completed", 250, 250, 250, 0)
    assert (row.prompt_tokens, row.completion_tokens) == (500, 750)
    lines = service.lines(bulk_id, good=True)
    assert [line.seq for line in lines] == list(range(1, 251))
    assert sorted(line.line_no for line in lines) == list(range(1, 251))
    assert bulk_leases.duty(service_row(service, bulk_id)) is None


def service_row(service: Service, bulk_id: str) -> AnyRow:
    """Return a bulk as its tender sees it."""
    with service.database.reading() as tx:
        row = bulk_leases.look(tx, bulk_id)
    assert row is not None
    return row


def test_a_batch_goes_through_its_files(service: Service) -> None:
    """Each custom_id is in exactly one of the two files, with the answer, the failure, or why there is none."""
    bulk_id = service.batch(chats(4, batch=True))
    assert service.tend(bulk_id).state == "running"

    def answer(job: AnyRow) -> Settled:
        if job.line_no == 2:
            body = json.dumps({"error": {"message": "no", "type": "invalid_request_error", "param": "x", "code": "y"}})
            return Settled(job.id, "failed", NewResult(400, body, "y", "no"))
        return Settled(job.id, "succeeded", ok(job))

    service.run(bulk_id, answer)
    row = service.tend(bulk_id)
    assert (row.state, row.model, row.succeeded, row.failed) == ("completed", "fake", 3, 1)
    good, bad = service.file(row.output_file_id), service.file(row.error_file_id)
    assert {line["custom_id"] for line in good} == {"line-1", "line-3", "line-4"}
    assert all(line["response"]["status_code"] == 200 and line["error"] is None for line in good)
    (failed,) = bad
    assert (failed["custom_id"], failed["response"]["status_code"]) == ("line-2", 400)
    assert failed["response"]["body"]["error"]["param"] == "x"


def test_a_batch_without_failures_has_no_error_file(service: Service) -> None:
    """And one of which all lines fail has no output file."""
    fine, broken = service.batch(chats(2, batch=True)), service.batch(chats(2, batch=True))
    for bulk_id in (fine, broken):
        service.tend(bulk_id)
    service.run(fine)
    service.run(broken, lambda job: Settled(job.id, "failed", NewResult(500, code="poison", message="died twice")))
    row = service.tend(fine)
    assert (row.state, row.error_file_id) == ("completed", None)
    row = service.tend(broken)
    assert (row.state, row.output_file_id) == ("completed", None)
    assert service.file(row.error_file_id)[0]["response"]["body"]["error"]["code"] == "poison"


def test_a_bad_line_fails_a_batch_before_anything_runs(service: Service) -> None:
    """The errors name code, param and line; no job is made."""
    data = chats(2, batch=True) + b'{"custom_id": "x", "method": "POST"}\nno json\n' + chats(1, batch=True)
    bulk_id = service.batch(data)
    row = service.tend(bulk_id)
    assert (row.state, row.total) == ("failed", 0)
    assert [(one["code"], one["param"], one["line"]) for one in row.errors] == [
        ("missing_required_parameter", "url", 3),
        ("invalid_json_line", None, 4),
        ("duplicate_custom_id", "custom_id", 5),
    ]
    assert service.jobs(bulk_id) == []


def test_lines_that_cannot_be_read_never_stop_a_bulk(service: Service) -> None:
    """Each is a failed line with its number; the others run."""
    bulk_id = service.bulk(b"\xef\xbb\xbf" + chats(1) + b"\r\nno json\r\n" + b'{"prompt": 1}\n' + b'{"prompt": "last"}')
    row = service.tend(bulk_id)
    assert (row.total, row.failed, row.invalid, row.done) == (4, 2, 2, 2)
    assert [(line.line_no, line.error_code) for line in service.lines(bulk_id, good=False)] == [
        (3, "invalid_json_line"),
        (4, service.lines(bulk_id, good=False)[1].error_code),
    ]
    service.run(bulk_id)
    assert service.tend(bulk_id).state == "completed"


@pytest.mark.parametrize("data", [b"", b"\n\n\r\n  \n", b"\xef\xbb\xbf"], ids=["empty", "blank", "bom"])
def test_an_input_without_lines_fails(service: Service, data: bytes) -> None:
    """With a code that says so, on both surfaces."""
    for bulk_id in (service.bulk(data), service.batch(data)):
        row = service.tend(bulk_id)
        assert (row.state, row.errors[0]["code"]) == ("failed", "empty_file")


def test_gzip_is_read_as_it_comes(service: Service) -> None:
    """A broken end loses no line before it; the bulk fails at its end and says why."""
    packed = gzip.compress(chats(600))
    whole, broken = service.bulk(packed, gzip=True), service.bulk(packed[:-20], gzip=True)
    assert (service.tend(whole).total, service.row(whole).state) == (600, "running")
    row = service.tend(broken)
    assert row.ingest_done
    assert row.errors[0]["code"] == "invalid_gzip"
    service.run(broken)
    assert service.tend(broken).state == "failed"


def test_csv_keeps_its_other_columns(service: Service) -> None:
    """They lie beside the body, to be joined with the results."""
    bulk_id = service.bulk(b'id,prompt,label\n7,"two\nlines",x\n8,plain,y\n', format="csv", model="fake")
    service.tend(bulk_id)
    found = [(job.line_no, job.custom_id, json.loads(job.columns)) for job in service.jobs(bulk_id)]
    assert found == [(2, "7", {"label": "x"}), (4, "8", {"label": "y"})]


def test_what_is_left_of_a_cancelled_bulk_is_accounted_for(service: Service) -> None:
    """Finished lines stay, waiting ones are cancelled, and every line has exactly one end."""
    bulk_id = service.batch(chats(5, batch=True))
    service.tend(bulk_id)
    first = service.jobs(bulk_id)[0]
    mine = (jobs.table.c.id == first.id,)
    with service.database.transaction() as tx:
        jobs.move(tx, "batched", *mine, batch_id="batch_1")
        jobs.move(tx, "running", *mine)
        ends.settle(tx, "engine", {"batch_1": [Settled(first.id, "succeeded", ok(first))]})
        bulks.cancel(tx, "alice", bulk_id)
    row = service.tend(bulk_id)
    assert (row.state, row.succeeded, row.cancelled, row.total) == ("cancelled", 1, 4, 5)
    assert [line["custom_id"] for line in service.file(row.output_file_id)] == ["line-1"]
    assert {line["error"]["code"] for line in service.file(row.error_file_id)} == {"batch_cancelled"}


def test_a_bulk_that_is_cancelled_while_it_is_read_counts_all_its_lines(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was not yet read becomes no job, but each line has its end."""
    bulk_id = service.bulk(chats(900))
    interrupted(service, bulk_id, after=1)
    with service.database.transaction() as tx:
        bulks.cancel(tx, "alice", bulk_id)
    row = service.tend(bulk_id)
    assert (row.state, row.total, row.cancelled) == ("cancelled", 900, 900)
    assert 0 < len(service.jobs(bulk_id)) < 900
    assert sorted(line.line_no for line in service.lines(bulk_id, good=False)) == list(range(1, 901))


class Killed(BaseException):
    """The process died here."""


def interrupted(service: Service, bulk_id: str, after: int, *, committed: bool = True) -> None:
    """Tend a bulk in a process that dies at its `after`th chunk, with its COMMIT done or not; its lease has run out."""
    real, seen = service.database.retrying, 0

    def dying(work: Callable[[sa.Connection], Any], *, tries: int = 5) -> Any:
        nonlocal seen
        seen += 1
        if seen < after:
            return real(work, tries=tries)
        if committed:
            real(work, tries=tries)
            raise Killed
        with service.database.transaction() as tx:
            work(tx)
            raise Killed

    def gone(*_: Any) -> None:
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(service.database, "retrying", dying)
        patch.setattr(bulk_leases, "let_go", gone)
        patch.setattr(Tending, "chunk_lines", 200)
        with pytest.raises(Killed):
            service.tend(bulk_id)
    with service.database.transaction() as tx:
        tx.execute(sa.update(bulks.table).values(lease_until=now() - 1))


@pytest.mark.parametrize("committed", [True, False], ids=["after its commit", "before its commit"])
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_a_killed_ingest_goes_on_where_it_was(service: Service, *, committed: bool, packed: bool) -> None:
    """No line twice, none missing, whether it died before or after the COMMIT of a chunk."""
    data = chats(1200)
    bulk_id = service.bulk(gzip.compress(data) if packed else data, gzip=packed)
    for after in (1, 2, 1):
        interrupted(service, bulk_id, after, committed=committed)
    row = service.tend(bulk_id)
    assert (row.state, row.total, row.ingest_done) == ("running", 1200, True)
    assert [job.line_no for job in service.jobs(bulk_id)] == list(range(1, 1201))


def test_a_second_tender_does_nothing_while_the_first_holds(service: Service) -> None:
    """The lease in the row decides; when it has run out, another takes over."""
    bulk_id = service.bulk(chats(2))
    with service.database.transaction() as tx:
        assert bulk_leases.hold(tx, bulk_id, "tender_other", 60.0)
    assert service.tend(bulk_id).state == "validating"
    with service.database.transaction() as tx:
        tx.execute(sa.update(bulks.table).values(lease_until=now() - 1))
    assert service.tend(bulk_id).state == "running"


def test_a_frozen_tender_writes_nothing(service: Service) -> None:
    """Its chunk is refused whole once another holds the bulk."""
    bulk_id = service.bulk(chats(10))
    with service.database.transaction() as tx:
        held = bulk_leases.hold(tx, bulk_id, "tender_frozen", 60.0)
    assert held is not None
    with service.database.transaction() as tx:
        tx.execute(sa.update(bulks.table).values(lease_until=now() - 1))
    assert service.tend(bulk_id).total == 10
    with pytest.raises(bulk_leases.Superseded), service.database.transaction() as tx:
        bulk_leases.advance(tx, held, "tender_frozen", 60.0, bulk_leases.Step(5, 1, 1))
    assert service.row(bulk_id).total == 10


def test_a_bulk_past_its_time_expires(service: Service) -> None:
    """Its open lines expire, those read only then as well; finished ones are kept."""
    bulk_id = service.batch(chats(3, batch=True), expires_in=3600.0)
    service.tend(bulk_id)
    with service.database.transaction() as tx:
        tx.execute(sa.update(bulks.table).values(expires_at=now() - 1))
    row = service.tend(bulk_id)
    assert (row.state, row.expired, row.failed) == ("expired", 3, 0)
    assert {line["error"]["code"] for line in service.file(row.error_file_id)} == {"batch_expired"}


def test_a_paused_bulks_jobs_leave_the_queue(service: Service) -> None:
    """They stand in a lane that nobody serves, and come back into the bulk's own, which may have changed."""
    bulk_id = service.bulk(chats(500))
    service.tend(bulk_id)
    with service.database.transaction() as tx:
        bulks.steer(tx, "alice", bulk_id, paused=True)
    assert service.tend(bulk_id).lane_applied == "paused"
    assert {job.lane for job in service.jobs(bulk_id)} == {"paused"}
    with service.database.transaction() as tx:
        bulks.steer(tx, "alice", bulk_id, paused=False, lane="standard")
    service.tend(bulk_id)
    assert {job.lane for job in service.jobs(bulk_id)} == {"standard"}


def test_a_bulk_stops_when_too_many_lines_fail(service: Service) -> None:
    """What is left is cancelled, and the bulk fails with a reason."""
    bulk_id = service.bulk(chats(300), stop_after_failed=0.5)
    service.tend(bulk_id)
    waiting = service.jobs(bulk_id)
    broken = [Settled(job.id, "failed", NewResult(400, code="bad", message="no")) for job in waiting[:30]]
    mine = jobs.table.c.line_no <= 30
    with service.database.transaction() as tx:
        jobs.move(tx, "batched", mine, batch_id="batch_1")
        jobs.move(tx, "running", mine)
        ends.settle(tx, "engine", {"batch_1": broken})
    row = service.tend(bulk_id)
    assert (row.state, row.failed, row.cancelled) == ("failed", 30, 270)
    assert row.errors[0]["code"] == "too_many_failures"


def test_failed_lines_run_again_with_other_parameters(service: Service) -> None:
    """A new bulk has them, with the same names and line numbers; the old one stays as it ended."""
    bulk_id = service.bulk(chats(6))
    service.tend(bulk_id)
    service.run(
        bulk_id,
        lambda job: (
            Settled(job.id, "failed", NewResult(400, code="bad", message="no"))
            if job.line_no % 2
            else Settled(job.id, "succeeded", ok(job))
        ),
    )
    before = service.tend(bulk_id)
    with service.database.transaction() as tx:
        new = NewBulk("alice", "bulk", "bulk", retry_of=bulk_id, defaults={"max_tokens": 7})
        again = bulks.create(tx, new).id
    row = service.tend(again)
    assert (row.state, row.total, row.ingest_done) == ("running", 3, True)
    assert [(job.line_no, job.custom_id) for job in service.jobs(again)] == [(n, f"line-{n}") for n in (1, 3, 5)]
    assert {json.loads(job.body)["max_tokens"] for job in service.jobs(again)} == {7}
    assert service.row(bulk_id) == before


def test_a_dry_run_queues_nothing(service: Service) -> None:
    """It counts lines and tokens and names the bad ones."""
    bulk_id = service.bulk(chats(9) + b"no json\n", dry_run=True)
    row = service.tend(bulk_id)
    assert (row.state, row.total) == ("completed", 0)
    assert (row.report["lines"], row.report["valid"], row.report["invalid"]) == (10, 9, 1)
    assert row.report["tokens"] > 0
    assert row.report["errors"][0]["line"] == 10
    assert service.jobs(bulk_id) == []


def test_a_deleted_bulk_leaves_nothing(service: Service) -> None:
    """Jobs, bodies, results, its input and its row go, in slices."""
    bulk_id = service.bulk(chats(450) + b"no json\n")
    service.tend(bulk_id)
    service.run(bulk_id)
    service.tend(bulk_id)
    with service.database.transaction() as tx:
        bulks.delete(tx, "alice", bulk_id)
    tend_bulk(service.database, service.settings, service.storage, cast("Doorbell", service.bell), bulk_id)
    with service.database.reading() as tx:
        for table in (bulks.table, jobs.table, jobs.bodies, results.table):
            assert tx.execute(sa.select(sa.func.count()).select_from(table)).scalar_one() == 0
        assert tx.execute(sa.select(files.table.c.state)).scalar_one() == "deleted"


def test_files_that_were_swept_while_an_export_stood_still_are_written_again(service: Service) -> None:
    """A process that was frozen for long leaves no bytes without a row."""
    bulk_id = service.batch(chats(2, batch=True))
    service.tend(bulk_id)
    service.run(bulk_id)
    real, swept = service.storage.writer, []

    @contextmanager
    def sweeping(key: str, expected: int = 0) -> Iterator[Any]:
        with real(key, expected) as out:
            yield out
        if not swept:
            swept.append(key)
            with service.database.transaction() as tx:
                assert files.delete(tx, f"file-{key.rpartition('-')[2]}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(service.storage, "writer", sweeping)
        row = service.tend(bulk_id)
    assert row.state == "completed"
    assert len(service.file(row.output_file_id)) == 2
    with pytest.raises(ObjectMissing):
        service.storage.size(swept[0])
