"""Both clients and bulks: what is sent, what is read, and connections that break in between."""

from __future__ import annotations

import gzip
import inspect
import io
import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from stoker import AsyncClient, Bulk, Client, StokerAPIError
from stoker.result_pages import PAGE_BYTES, Results
from tests.stoker.blocking import Blocking
from tests.stoker.bulk_service import Asked, BulkService, bulk_service

PROMPTS = ["one", "two [[fail]]", "three"]


@pytest.fixture
def service() -> Iterator[BulkService]:
    """Return a service whose lines end at once."""
    with bulk_service() as running:
        yield running


@pytest.fixture(params=[Client, Blocking], ids=["sync", "async"])
def client(service: BulkService, request: pytest.FixtureRequest) -> Iterator[Client]:
    """Return a client of it, of each kind in turn."""
    with closing(request.param(service.url)) as made:
        yield made


def is_reading(asked: Asked) -> bool:
    """Tell whether a request reads results."""
    return asked.path.endswith("/results")


def is_upload(asked: Asked) -> bool:
    """Tell whether a request uploads lines."""
    return (asked.method, asked.path) == ("POST", "/v1/bulks")


def test_both_clients_have_the_same_methods() -> None:
    """Whatever Client does AsyncClient does, with the same parameters."""

    def methods(kind: type) -> dict[str, list[str]]:
        return {
            name: list(inspect.signature(found).parameters)
            for name, found in inspect.getmembers(kind, callable)
            if not name.startswith("_")
        }

    assert methods(Client) == methods(AsyncClient)


def test_lines_become_results(client: Client, service: BulkService) -> None:
    """Uploaded, run, waited for, read: results and errors apart, each by its line."""
    bulk = client.bulk(PROMPTS, model="m", lane="standard", max_tokens=5, metadata={"run": "1"})
    assert service.asked[-1].query == {"model": "m", "lane": "standard", "max_tokens": "5", "metadata.run": "1"}
    looks: list[Bulk] = []
    ended = client.wait_bulk(bulk.id, timeout=30, on_progress=looks.append)
    assert (ended.state, ended.ended, ended.counts.done, ended.counts.failed) == ("completed", True, 3, 1)
    assert looks[-1] == ended
    assert [(one.line, one.text, one.ok) for one in client.iter_results(bulk.id)] == [
        (1, "echo: one", True),
        (3, "echo: three", True),
    ]
    (error,) = client.iter_results(bulk.id, errors=True)
    assert (error.line, error.ok, error.text, (error.error or {})["code"]) == (2, False, "", "engine_error")


def test_a_line_is_a_mapping_a_prompt_or_bytes(client: Client, service: BulkService) -> None:
    """All three, from a list or a generator."""
    lines = [{"prompt": "a", "custom_id": "x"}, "b\u2028é", b'{"prompt": "c"}', b'{"prompt": "d"}\n']
    for source in (lines, iter(lines)):
        bulk = client.bulk(source)
        assert [one.text for one in client.iter_results(bulk.id)] == [
            "echo: a",
            "echo: b\u2028é",
            "echo: c",
            "echo: d",
        ]
    assert service.asked[0].headers["content-type"] == "application/x-ndjson"


@pytest.mark.parametrize(
    ("name", "kind", "encoding"),
    [
        ("p.jsonl", "application/x-ndjson", None),
        ("p.txt", "application/x-ndjson", None),
        ("p.csv", "text/csv", None),
        ("P.JSONL.GZ", "application/x-ndjson", "gzip"),
        ("p.csv.gz", "text/csv", "gzip"),
    ],
)
@pytest.mark.parametrize("opened", [False, True], ids=["path", "file"])
def test_a_file_goes_as_what_its_name_says(
    client: Client, service: BulkService, tmp_path: Path, name: str, kind: str, encoding: str | None, opened: bool
) -> None:
    """JSON Lines or CSV, gzip or not; its size is told beforehand, and the progress of the upload too."""
    text = b"prompt\nhi\n" if ".csv" in name.lower() else b'{"prompt": "hi"}\n'
    path = tmp_path / name
    path.write_bytes(gzip.compress(text) if encoding else text)
    told: list[tuple[int, int | None]] = []
    with path.open("rb") as file:
        bulk = client.bulk(file if opened else path, on_progress=lambda sent, size: told.append((sent, size)))
    (asked,) = service.asked
    assert (asked.headers["content-type"], asked.headers.get("content-encoding")) == (kind, encoding)
    size = path.stat().st_size
    assert asked.headers["content-length"] == str(size)
    assert (told[0], told[-1]) == ((0, size), (size, size))
    assert [one.text for one in client.iter_results(bulk.id)] == ["echo: hi"]


def test_a_file_is_sent_from_where_it_stands(client: Client, service: BulkService) -> None:
    """Also when it is sent again."""
    file = io.BytesIO(b'skipped\n{"prompt": "hi"}\n')
    file.seek(8)
    service.fail(2)
    client.bulk(file)
    assert {asked.body for asked in service.asked} == {b'{"prompt": "hi"}\n'}
    assert len(service.asked) == 3


def test_a_text_file_is_refused(client: Client, tmp_path: Path) -> None:
    """Its bytes are what counts."""
    (tmp_path / "p.jsonl").write_text("")
    with (tmp_path / "p.jsonl").open() as file, pytest.raises(TypeError, match="binary"):
        client.bulk(file)  # type: ignore[arg-type]


def test_a_missing_file_is_told_before_anything_is_sent(client: Client, service: BulkService) -> None:
    """As Python tells it."""
    with pytest.raises(FileNotFoundError):
        client.bulk("/not/there.jsonl")
    assert service.asked == []


@pytest.mark.parametrize("fault", [{}, {"cut": True}, {"after_it_is_done": True}], ids=["503", "cut", "lost"])
def test_a_broken_upload_makes_one_bulk(client: Client, service: BulkService, fault: dict[str, Any]) -> None:
    """It is sent again, whole, under the same Idempotency-Key."""
    service.fail(2, is_upload, **fault)
    bulk = client.bulk(PROMPTS)
    assert list(service.bulks) == [bulk.id]
    uploads = [asked for asked in service.asked if is_upload(asked)]
    assert len(uploads) == 3
    assert len({(asked.headers["idempotency-key"], asked.body) for asked in uploads}) == 1


def test_a_given_key_makes_one_bulk(client: Client) -> None:
    """The same key twice is the same bulk; without one each upload is a bulk of its own."""
    first = client.bulk(PROMPTS, idempotency_key="k")
    assert client.bulk(PROMPTS, idempotency_key="k").id == first.id
    assert client.bulk(PROMPTS).id != first.id


def test_results_come_while_the_bulk_runs(client: Client, service: BulkService) -> None:
    """The first one long before the last, each of them once, in order."""
    service.rate = 5.0
    bulk = client.bulk([f"{n}" for n in range(60)])
    reading = client.iter_results(bulk.id)
    first = next(reading)
    assert client.get_bulk(bulk.id).state == "running"
    service.hurry(100.0)
    assert [one.seq for one in (first, *reading)] == list(range(1, 61))


@pytest.mark.parametrize("fault", [{}, {"cut": True}, {"after_it_is_done": True}], ids=["503", "cut", "lost"])
def test_a_broken_connection_loses_no_result(client: Client, service: BulkService, fault: dict[str, Any]) -> None:
    """None comes twice, none is left out, wherever it breaks."""
    bulk = client.bulk([f"{n}" for n in range(500)])
    service.fail(3, lambda asked: is_reading(asked) and asked.query["after"] != "0", **fault)
    assert [one.seq for one in client.iter_results(bulk.id)] == list(range(1, 501))
    assert service.faults == []


def test_reading_goes_on_behind_a_result(client: Client) -> None:
    """`after` is the last result that the caller has."""
    bulk = client.bulk(["a", "b", "c"])
    assert [one.seq for one in client.iter_results(bulk.id, after=1)] == [2, 3]


def test_without_follow_it_ends_with_what_there_is(client: Client, service: BulkService) -> None:
    """The bulk runs on."""
    service.rate = 5.0
    bulk = client.bulk([f"{n}" for n in range(50)])
    list(client.iter_results(bulk.id, follow=False))
    assert not client.get_bulk(bulk.id).ended


def test_pages_are_as_large_as_memory_allows(service: BulkService) -> None:
    """Small results come a thousand at a time, large ones in pages of a few megabytes."""
    with Client(service.url) as client:
        small = client.bulk([f"{n}" for n in range(3000)])
        assert len(list(client.iter_results(small.id))) == 3000
        limits = [int(asked.query["limit"]) for asked in service.asked if is_reading(asked)]
        assert limits[0] == 100
        assert max(limits) == 1000
        large = client.bulk(["x" * 500_000] * 20)
        reader = Results(large.id)
        sizes = []
        while not reader.ended:
            sizes.append(sum(len(line.raw) for line in client.perform(reader.page())))
        assert max(sizes[1:]) <= PAGE_BYTES


def test_a_bulk_is_steered(client: Client, service: BulkService) -> None:
    """Paused, resumed, moved, cancelled, run again, deleted."""
    service.rate = 0.001
    bulk = client.bulk(PROMPTS)
    assert client.pause_bulk(bulk.id).paused
    assert not client.resume_bulk(bulk.id).paused
    assert client.move_bulk(bulk.id, "realtime").lane == "realtime"
    assert client.cancel_bulk(bulk.id).state == "cancelled"
    with pytest.raises(StokerAPIError, match="has ended") as refused:
        client.cancel_bulk(bulk.id)
    assert refused.value.status == 409
    again = client.retry_bulk(bulk.id, max_tokens=500)
    assert service.asked[-1].document == {"max_tokens": 500}
    assert (again.retry_of, again.counts.total) == (bulk.id, 3)
    assert [found.id for found in client.bulks(limit=5, metadata={"a": "b"})] == [bulk.id, again.id]
    assert service.asked[-1].query == {"limit": "5", "metadata.a": "b"}
    client.delete_bulk(bulk.id)
    with pytest.raises(StokerAPIError, match="no such bulk") as gone:
        client.get_bulk(bulk.id)
    assert (gone.value.status, gone.value.code, gone.value.request_id) == (404, "not_found", "req_1")


def test_a_bulk_of_what_the_service_has(client: Client, service: BulkService) -> None:
    """An uploaded file, or an object that the service fetches."""
    client.bulk_from(input_url="s3://bucket/key", max_tokens=5, metadata={"a": "b"})
    assert service.asked[-1].document == {"input_url": "s3://bucket/key", "max_tokens": 5, "metadata": {"a": "b"}}


def test_a_wait_gives_up(client: Client, service: BulkService) -> None:
    """When the seconds have passed it is a TimeoutError, and the bulk runs on."""
    service.rate = 0.001
    bulk = client.bulk(PROMPTS)
    with pytest.raises(TimeoutError, match=bulk.id):
        client.wait_bulk(bulk.id, timeout=0.3)


def test_results_are_downloaded_whole(client: Client, service: BulkService, tmp_path: Path) -> None:
    """Into a path, or a file from where it stands; a connection that breaks begins it anew."""
    bulk = client.bulk(PROMPTS)
    service.fail(2, is_reading, cut=True)
    assert client.download_results(bulk.id, tmp_path / "r.csv", format="csv")
    assert (tmp_path / "r.csv").read_bytes() == b"1,succeeded\r\n3,succeeded\r\n"
    file = io.BytesIO(b"head")
    file.seek(4)
    service.fail(1, is_reading, cut=True)
    client.download_results(bulk.id, file)
    head, _, rest = file.getvalue().partition(b"head")
    assert head == b""
    assert [json.loads(line)["seq"] for line in rest.splitlines()] == [1, 3]


def test_a_download_that_fails_leaves_the_old_file(client: Client, tmp_path: Path) -> None:
    """And nothing half made beside it."""
    path = tmp_path / "r.csv"
    path.write_bytes(b"old")
    with pytest.raises(StokerAPIError):
        client.download_results("bulk_x", path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_files_go_up_and_come_down(client: Client, service: BulkService, tmp_path: Path) -> None:
    """As a form that any server reads; a connection that breaks is mended."""
    path = tmp_path / 'odd "name".jsonl'
    path.write_bytes(b'{"a": 1}\n')
    service.fail(1, cut=True)
    uploaded = client.upload_file(path)
    asked = service.asked[-1]
    assert asked.headers["content-type"].startswith("multipart/form-data; boundary=")
    assert asked.headers["content-length"] == str(len(asked.body))
    assert asked.headers["idempotency-key"]
    assert b'name="purpose"\r\n\r\nbatch\r\n' in asked.body
    assert b'filename="odd _name_.jsonl"' in asked.body
    assert uploaded.bytes == len(asked.body)
    client.download_file(uploaded.id, tmp_path / "down")
    assert (tmp_path / "down").read_bytes() == asked.body
    assert uploaded.id in {file.id for file in client.files(purpose="batch")}
