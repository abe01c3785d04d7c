"""Bodies that are files: streamed into storage, whole or not at all, whatever the client does."""

from __future__ import annotations

import hashlib
import http.client
import io
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from flask import Flask, g, request

from models import files
from models.db import Database
from models.errors import DatabaseUnavailable
from models.storage import Storage
from stoker.settings import SettingsError, load
from tests import buckets
from tests.models import given
from tests.tasks.inprocess import until
from tests.webapi.test_files import stored
from tests.webapi.test_gunicorn import Web, is_let_go, resident
from webapi import uploads
from webapi.context import Context
from webapi.errors import Problem

CONTENT = b"prompt\nhello\n"


def receiving(app: Flask, body: bytes | None, content_type: str = "text/csv", **more: Any) -> Any:
    """Open a request to a native path."""
    sent = more if body is None else {"data": body}
    return app.test_request_context("/v1/bulks", method="POST", content_type=content_type, **sent)


def states(context: Context) -> list[str]:
    """Return the states of all files."""
    return [row.state for row in given.rows(context.database, files.table)]


def finish(context: Context, file_id: str) -> None:
    """Make a file visible."""
    with context.database.transaction() as tx:
        files.finish(tx, file_id, filename="in.csv", purpose=files.BULK_INPUT, size=len(CONTENT), expires_in=None)


def test_a_raw_body_is_stored_as_it_is(app: Flask, context: Context) -> None:
    """Counted and hashed on the way; its row is there from the first byte on."""
    with receiving(app, CONTENT, "text/csv; charset=utf-8"):
        g.owner = "local"
        with uploads.receive(request, files.BULK_INPUT, 100) as upload:
            assert states(context) == ["uploading"]
            assert (upload.size, upload.sha256) == (len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
            assert (upload.content_type, upload.filename, upload.fields) == ("text/csv", "upload", {})
            finish(context, upload.file_id)
    assert states(context) == ["ready"]
    assert b"".join(context.storage.read(upload.key)) == CONTENT


def test_what_is_not_finished_is_removed(app: Flask, context: Context) -> None:
    """As when the same request was taken before, or a parameter beside the file was bad."""
    with receiving(app, CONTENT):
        g.owner = "local"
        with uploads.receive(request, files.BULK_INPUT, 100):
            assert len(stored(context)) == 1
    with receiving(app, CONTENT):
        g.owner = "local"
        with pytest.raises(KeyError), uploads.receive(request, files.BULK_INPUT, 100):
            raise KeyError
    assert states(context) == ["deleted", "deleted"]
    assert stored(context) == []


def test_what_is_finished_stays_whatever_comes_after(app: Flask, context: Context) -> None:
    """The answer may be lost: the file belongs to somebody by then."""
    with receiving(app, CONTENT):
        g.owner = "local"

        def take() -> None:
            with uploads.receive(request, files.BULK_INPUT, 100) as upload:
                finish(context, upload.file_id)
                raise DatabaseUnavailable

        with pytest.raises(DatabaseUnavailable):
            take()
    assert states(context) == ["ready"]
    assert len(stored(context)) == 1


def test_what_cannot_be_removed_is_left_to_retention(
    app: Flask, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row is still there, invisible, and names the object."""

    def gone(_self: Database, **_: object) -> None:
        raise DatabaseUnavailable

    with receiving(app, CONTENT):
        g.owner = "local"
        with uploads.receive(request, files.BULK_INPUT, 100), monkeypatch.context() as patched:
            patched.setattr(Database, "transaction", gone)
    assert states(context) in (["uploading"], ["deleted"])


@pytest.mark.parametrize("announced", [True, False])
def test_a_body_over_the_limit_is_a_413(app: Flask, context: Context, announced: bool) -> None:
    """At the byte after the limit; before the first one when the length is announced."""
    body: dict[str, Any] = {}
    if not announced:
        body = {"input_stream": io.BytesIO(CONTENT), "headers": {"Transfer-Encoding": "chunked"}}
    with receiving(app, CONTENT if announced else None, **body):
        g.owner = "local"
        with pytest.raises(Problem) as caught, uploads.receive(request, files.BULK_INPUT, len(CONTENT) - 1):
            pass
    assert (caught.value.status, caught.value.code) == (413, "file_too_large")
    assert states(context) == ([] if announced else ["deleted"])
    assert stored(context) == []


def test_a_body_that_ends_early_is_a_408(app: Flask, context: Context) -> None:
    """And nothing of it is kept."""
    with receiving(app, None, input_stream=io.BytesIO(CONTENT), environ_overrides={"CONTENT_LENGTH": "50"}):
        g.owner = "local"
        with pytest.raises(Problem) as caught, uploads.receive(request, files.BULK_INPUT, 100):
            pass
    assert (caught.value.status, caught.value.code) == (408, "body_incomplete")
    assert stored(context) == []


# At a real server

PRELUDE = (
    "import webapi.uploads as up, webapi.json_body as body; up.PAUSE = 1.0; body.DRAIN = 1.0; "
    "from gunicorn.app.wsgiapp import run; run()"
)
HEAD = b'--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nuser_data\r\n'
FILE = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.bin"\r\n\r\n'
TAIL = b"\r\n--b--\r\n"


class Impatient(Web):
    """A web server that lets an upload pause for a second."""

    python = ("-c", PRELUDE)


Make = Callable[..., Web]


@pytest.fixture
def make_web(sqlite_url: str, redis_url: str, tmp_path: Path) -> Iterator[Make]:
    """Return a function that starts a web server on the same database and folder."""
    made: list[Web] = []

    def _make(kind: type[Web] = Web, **more: str) -> Web:
        made.append(kind(sqlite_url, redis_url, tmp_path, STOKER_DATA=str(tmp_path / "data"), **more))
        return made[-1].ready()

    yield _make
    for web in made:
        web.end()


@pytest.fixture(scope="module")
def bucket() -> Iterator[buckets.Bucket]:
    """Run one bucket for all tests here."""
    with buckets.bucket() as made:
        yield made


def begin(web: Web, framing: str, body: bytes = b"") -> socket.socket:
    """Send the head of an upload, and some of its body."""
    lines = ["POST /v1/files HTTP/1.1", "Host: localhost", "Content-Type: multipart/form-data; boundary=b", framing]
    connection = socket.create_connection(("127.0.0.1", web.port), timeout=60)
    connection.sendall("\r\n".join([*lines, "", ""]).encode() + body)
    return connection


def answer_to(connection: socket.socket) -> tuple[int, dict[str, Any]]:
    """Read an answer: its status and its document."""
    answer = http.client.HTTPResponse(connection)
    answer.begin()
    return answer.status, json.loads(answer.read())


def left(tmp_path: Path) -> list[Path]:
    """Return what lies in the storage folder."""
    return [path for path in (tmp_path / "data" / "files").rglob("*") if path.is_file()]


def emptied(tmp_path: Path) -> bool:
    """Tell whether the storage folder becomes empty, within seconds."""
    deadline = time.monotonic() + 60
    while left(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not left(tmp_path)


def send(web: Web, size: int, *, chunked: bool) -> tuple[dict[str, Any], str]:
    """Upload so many bytes that no compression could hide; return the file and their hash."""
    connection = http.client.HTTPConnection("127.0.0.1", web.port, timeout=60)
    piece, digest = os.urandom(1 << 20), hashlib.sha256()
    connection.putrequest("POST", "/v1/files")
    connection.putheader("Content-Type", "multipart/form-data; boundary=b")
    length = len(HEAD + FILE + TAIL) + size
    connection.putheader(*(("Transfer-Encoding", "chunked") if chunked else ("Content-Length", str(length))))
    connection.endheaders()

    def put(data: bytes) -> None:
        connection.send(b"%x\r\n%b\r\n" % (len(data), data) if chunked else data)

    # The fields come last: they may.
    put(FILE)
    for _ in range(size // len(piece)):
        put(piece)
        digest.update(piece)
    put(b"\r\n" + HEAD.removesuffix(b"\r\n") + TAIL)
    if chunked:
        connection.send(b"0\r\n\r\n")
    answer = connection.getresponse()
    document = json.loads(answer.read())
    connection.close()
    assert answer.status == 200, document
    return document, digest.hexdigest()


@pytest.mark.journey
@pytest.mark.parametrize(
    ("where", "chunked", "size"), [("folder", False, 300), ("folder", True, 300), ("bucket", False, 150)]
)
def test_memory_stays_small(
    make_web: Make, request: pytest.FixtureRequest, where: str, chunked: bool, size: int
) -> None:
    """However large the file, on its way in and out."""
    more: dict[str, str] = {"STOKER_MAX_UPLOAD_BYTES": "1000000000"}
    if where == "bucket":
        more |= request.getfixturevalue("bucket").environ | {"STOKER_STORAGE_URL": f"s3://{buckets.BUCKET}/memory"}
    web = make_web(**more)
    send(web, 1 << 20, chunked=chunked)
    before = resident(web.process.pid)
    made, sent = send(web, size << 20, chunked=chunked)
    assert made["bytes"] == size << 20
    digest = hashlib.sha256()
    with httpx.stream("GET", f"{web.url}/v1/files/{made['id']}/content", timeout=60) as answer:
        assert answer.status_code == 200
        for data in answer.iter_raw():
            digest.update(data)
    assert digest.hexdigest() == sent
    assert resident(web.process.pid) - before < 50 << 20


@pytest.mark.journey
def test_a_kill_in_the_middle_leaves_nothing_visible(make_web: Make, tmp_path: Path, sqlite_url: str) -> None:
    """What lies in storage has a row, by whose key it is found and removed."""
    web = make_web()
    connection = begin(web, "Content-Length: 50000000", HEAD + FILE + b"x" * 20_000_000)
    deadline = time.monotonic() + 60
    while sum(path.stat().st_size for path in left(tmp_path)) < 10_000_000:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    web.end()
    connection.close()
    again = make_web()
    assert httpx.get(f"{again.url}/v1/files", timeout=60).json()["data"] == []
    database = Database(sqlite_url)
    (row,) = given.rows(database, files.table)
    database.close()
    assert row.state == "uploading"
    assert len(left(tmp_path)) == 1
    Storage(str(tmp_path / "data" / "files")).delete(row.key)
    assert left(tmp_path) == []


@pytest.mark.journey
@pytest.mark.parametrize("framing", ["Content-Length: 5000000", "Transfer-Encoding: chunked"])
def test_a_client_that_goes_away_leaves_nothing(make_web: Make, tmp_path: Path, framing: str) -> None:
    """Neither bytes nor a file."""
    web = make_web()
    body = HEAD + FILE + b"x" * 3_000_000
    with begin(web, framing, body if "Length" in framing else b"%x\r\n%b" % (len(body) + 1, body)):
        deadline = time.monotonic() + 60
        while not left(tmp_path):
            assert time.monotonic() < deadline
            time.sleep(0.02)
    assert emptied(tmp_path)
    assert httpx.get(f"{web.url}/v1/files", timeout=60).json()["data"] == []


@pytest.mark.journey
def test_slow_and_bad_uploads_are_the_clients_error(make_web: Make, tmp_path: Path) -> None:
    """What stops is a 408, bad framing a 400, too much a 400 at once; nothing of them is kept."""
    web = make_web(Impatient, STOKER_MAX_UPLOAD_BYTES="100000")
    for framing, body, status, code in [
        ("Content-Length: 5000", HEAD + FILE, 408, "body_incomplete"),
        ("Transfer-Encoding: chunked", b"5000\r\n" + HEAD, 408, "body_incomplete"),
        ("Transfer-Encoding: chunked", b"zz\r\n", 400, "malformed_body"),
        ("Content-Length: 50000000", b"", 400, "file_too_large"),
    ]:
        with begin(web, framing, body) as connection:
            found, document = answer_to(connection)
        assert (found, document["error"]["code"]) == (status, code), framing
    assert emptied(tmp_path)
    assert httpx.get(f"{web.url}/v1/files", timeout=60).json()["data"] == []


@pytest.mark.journey
def test_an_upload_that_trickles_is_cut_off(make_web: Make, tmp_path: Path) -> None:
    """A client that never pauses, and never comes to an end, gets a 408 when its time is up; nothing of it is kept."""
    web = make_web(STOKER_MAX_UPLOAD_BYTES="100000", STOKER_UPLOAD_TIMEOUT="3")
    started = time.monotonic()
    with begin(web, "Content-Length: 50000", HEAD + FILE) as connection:
        connection.settimeout(0.2)
        while True:
            assert time.monotonic() - started < 60
            connection.sendall(b"x")
            try:
                connection.recv(1, socket.MSG_PEEK)
            except TimeoutError:
                continue
            break
        assert time.monotonic() - started > 2.5
        connection.settimeout(60)
        assert answer_to(connection)[0] == 408
    assert emptied(tmp_path)
    assert httpx.get(f"{web.url}/v1/files", timeout=60).json()["data"] == []


@pytest.mark.journey
def test_a_download_that_nobody_reads_gives_its_thread_back(make_web: Make) -> None:
    """A client that stops reading is cut off: it would keep a thread for ever."""
    pauses = PRELUDE.replace("up.PAUSE = 1.0", "import webapi.files as files; files.SEND_PAUSE = 0.5")
    web = make_web(type("Hurried", (Web,), {"python": ("-c", pauses)}))
    made, _ = send(web, 30 << 20, chunked=False)
    with socket.create_connection(("127.0.0.1", web.port), timeout=60) as connection:
        connection.sendall(f"GET /v1/files/{made['id']}/content HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        until(lambda: is_let_go(web, connection))
        got = 0
        while data := connection.recv(1 << 20):
            got += len(data)
    assert got < made["bytes"]


def test_the_settings_name_the_place(tmp_path: Path) -> None:
    """A folder in the data folder, another folder, or a bucket."""
    assert load(data=tmp_path).storage == str(tmp_path / "files")
    assert load(storage_url=f"{tmp_path}/other").storage == f"{tmp_path}/other"
    assert load(storage_url="s3://bucket/prefix").storage == "s3://bucket/prefix"


@pytest.mark.parametrize(
    "where", ["http://a", "s3://", "s3:///a", "s3://user:c4n4ry@bucket", "s3://b/../c", "file:///a"]
)
def test_a_place_that_is_none_stops_the_start(where: str) -> None:
    """Without what was given: it may hold a secret."""
    with pytest.raises(SettingsError, match="STOKER_STORAGE_URL") as caught:
        load(storage_url=where)
    assert "c4n4ry" not in str(caught.value)


def test_windows_and_prefixes_are_lists() -> None:
    """24h is always among the windows; what is neither a duration nor a place is refused."""
    assert load().windows == {"24h": 86400}
    assert load(batch_windows="5s, 30m,7d,none").windows == {
        "24h": 86400,
        "5s": 5,
        "30m": 1800,
        "7d": 604800,
        "none": None,
    }
    assert load().input_prefixes == ()
    assert load(input_urls="s3://a/in/, file:///data/").input_prefixes == ("s3://a/in/", "file:///data/")
    for bad in (
        {"batch_windows": "24"},
        {"batch_windows": "0h"},
        {"input_urls": "/data"},
        {"input_urls": "s3://a@b/c"},
    ):
        with pytest.raises(SettingsError, match=f"STOKER_{next(iter(bad)).upper()}"):
            load(**bad)
