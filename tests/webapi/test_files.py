"""`/v1/files`, as OpenAI's API has it."""

from __future__ import annotations

import io
import os
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.serving import make_server
from werkzeug.test import TestResponse

from models import files, keys
from stoker.settings import Settings
from tests import buckets
from tests.models import given
from webapi.app import create_app
from webapi.context import EXTENSION, Context
from webapi.uploads import base_name

DAY = 86400
FORM = "multipart/form-data; boundary=b"
ODD = bytes(range(256)) * 300 + b"\r\n--not a boundary\r\n\r\n\x00 the end"
FIELDS = {"id", "object", "bytes", "created_at", "expires_at", "filename", "purpose", "status", "status_details"}


Part = str | tuple[str, bytes]
"""A field, or a file: its name and content."""


def form(**parts: Part | list[Part] | None) -> bytes:
    """Return a form with the boundary `b`; a part that is a list comes several times, one that is None not at all."""
    body = b""
    for name, value in parts.items():
        for part in value if isinstance(value, list) else [] if value is None else [value]:
            filename, content = part if isinstance(part, tuple) else (None, part.encode())
            more = f'; filename="{filename}"' if filename is not None else ""
            head = f'--b\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'
            body += head.encode() + content + b"\r\n"
    return body + b"--b--\r\n"


def post(client: FlaskClient, content: bytes = b"{}\n", name: str = "in.jsonl", **fields: Any) -> TestResponse:
    """Upload a file; a field that is None is left out, and `purpose` is batch unless it is given."""
    body = form(**{"purpose": "batch", "file": (name, content), **fields})
    return client.post("/v1/files", data=body, content_type=FORM)


def upload(client: FlaskClient, content: bytes = b"{}\n", name: str = "in.jsonl", **fields: Any) -> dict[str, Any]:
    """Upload a file, and return it."""
    answer = post(client, content, name, **fields)
    assert answer.status_code == 200, answer.text
    made = answer.json
    assert isinstance(made, dict)
    return made


def refused(answer: TestResponse, status: int, code: str | None, param: str | None = None) -> str:
    """Check an error and its envelope, and return its message."""
    assert answer.status_code == status, answer.text
    document = answer.json
    assert document is not None
    assert document.keys() == {"error"}
    error = document["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert (error["code"], error["param"]) == (code, param)
    assert error["type"] == ("server_error" if status >= 500 else "invalid_request_error")
    assert answer.headers["X-Request-Id"]
    return str(error["message"])


def stored(context: Context) -> list[Path]:
    """Return the files in the storage folder, whole or not."""
    return [path for path in Path(context.settings.storage).rglob("*") if path.is_file()]


def test_an_upload_is_a_file(client: FlaskClient) -> None:
    """It has all fields of OpenAI's, and the same ones when it is looked at."""
    before = time.time()
    made = upload(client, b"hello\n", "my file.jsonl")
    after = time.time()
    assert made.keys() == FIELDS
    assert re.fullmatch("file-[0-9a-f]{32}", made["id"])
    assert made | {"object": "file", "bytes": 6, "filename": "my file.jsonl", "purpose": "batch"} == made
    assert made | {"status": "processed", "status_details": None} == made
    assert before - 5 < made["created_at"] < after + 5
    assert client.get(f"/v1/files/{made['id']}").json == made


@pytest.mark.parametrize("content", [b"", b"\r\n", ODD, b"a" * 700_000, b"--" * 300_000], ids=len)
def test_the_content_is_the_very_bytes(client: FlaskClient, content: bytes) -> None:
    """Whatever they look like, none and many."""
    made = upload(client, content, "odd.bin", purpose="user_data")
    assert made["bytes"] == len(content)
    answer = client.get(f"/v1/files/{made['id']}/content")
    assert answer.data == content
    assert answer.headers["Content-Type"] == "application/octet-stream"
    assert answer.headers["Content-Length"] == str(len(content))
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Content-Disposition"] == 'attachment; filename="odd.bin"'


@pytest.mark.parametrize(
    ("sent", "kept", "disposition"),
    [
        ("a.txt", "a.txt", 'filename="a.txt"'),
        ("../../etc/passwd", "passwd", 'filename="passwd"'),
        ("C:\\files\\a.txt", "a.txt", 'filename="a.txt"'),
        ('a";x="b.txt', 'a";x="b.txt', "filename=\"a_;x=_b.txt\"; filename*=UTF-8''a%22%3Bx%3D%22b.txt"),
        ("a\r\nSet-Cookie: b", "aSet-Cookie: b", 'filename="aSet-Cookie: b"'),
        ("a\x00\x1b\u202eb.txt", "ab.txt", 'filename="ab.txt"'),
        ("Größe 数据.txt", "Größe 数据.txt", "filename*=UTF-8''Gr%C3%B6%C3%9Fe%20%E6%95%B0%E6%8D%AE.txt"),
        ("..", "upload", 'filename="upload"'),
        ("folder/", "upload", 'filename="upload"'),
        ("", "upload", 'filename="upload"'),
        ("x" * 300 + ".txt", "x" * 251 + ".txt", 'x.txt"'),
        ("x" * 300, "x" * 255, 'x"'),
    ],
)
def test_hostile_names_are_harmless(client: FlaskClient, sent: str, kept: str, disposition: str) -> None:
    """Only the base name is kept, without control characters; the header of a download is one line, well quoted."""
    assert base_name(sent) == kept
    name = re.sub(r"[\r\n\x00\x1b]", "", sent).replace("\\", "\\\\").replace('"', '\\"')
    made = upload(client, b"hello", name, purpose="user_data")
    assert made["filename"] == kept
    header = client.get(f"/v1/files/{made['id']}/content").headers["Content-Disposition"]
    assert header.startswith("attachment; ")
    assert header.endswith(disposition)
    assert header.isascii()


@pytest.mark.parametrize(
    ("name", "purpose", "fields", "lasts"),
    [
        ("in.jsonl", "batch", {}, 30 * DAY),
        ("IN.JSONL", "batch", {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}, 3600),
        ("a.txt", "user_data", {}, None),
        ("a.txt", "evals", {"expires_after[anchor]": "created_at", "expires_after[seconds]": "2592000"}, 2_592_000),
    ],
)
def test_when_a_file_expires(
    client: FlaskClient, name: str, purpose: str, fields: dict[str, str], lasts: int | None
) -> None:
    """A batch's after 30 days, others never, unless it is asked for: counted from its creation."""
    made = upload(client, name=name, purpose=purpose, **fields)
    assert made["expires_at"] == (lasts and made["created_at"] + lasts)


def test_an_expired_file_is_gone(client: FlaskClient, context: Context) -> None:
    """Nothing finds it any more, though retention has not removed it yet."""
    made = upload(client)
    given.change(context.database, files.table, expires_at=time.time() - 1)
    refused(client.get(f"/v1/files/{made['id']}"), 404, None, "id")
    refused(client.get(f"/v1/files/{made['id']}/content"), 404, None, "id")
    assert client.get("/v1/files").json["data"] == []  # type: ignore[index]  # it is a list


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"purpose": None}, "purpose", "missing_required_parameter"),
        ({"purpose": "nonsense"}, "purpose", "invalid_value"),
        ({"purpose": "bulk"}, "purpose", "invalid_value"),
        ({"purpose": "batch_output"}, "purpose", "invalid_value"),
        ({"purpose": ["batch", "evals"]}, "purpose", "invalid_value"),
        ({"file": None}, "file", "missing_required_parameter"),
        ({"file": "text without a filename"}, "file", "missing_required_parameter"),
        ({"file": ("in.txt", b"{}")}, "file", "invalid_file_format"),
        ({"more": ("more.jsonl", b"{}")}, "file", "invalid_value"),
        ({"expires_after[anchor]": "created_at"}, "expires_after[seconds]", "missing_required_parameter"),
        ({"expires_after[seconds]": "3600"}, "expires_after[anchor]", "missing_required_parameter"),
        (
            {"expires_after[anchor]": "last_active_at", "expires_after[seconds]": "3600"},
            "expires_after[anchor]",
            "invalid_value",
        ),
        *(
            (
                {"expires_after[anchor]": "created_at", "expires_after[seconds]": bad},
                "expires_after[seconds]",
                "invalid_value",
            )
            for bad in ("3599", "2592001", "-1", "", "soon", "3600.5", "9" * 5000, "٣٦٠٠")
        ),
        ({"purpose": "ba\x00tch"}, "purpose", "invalid_value"),
    ],
)
def test_a_bad_upload_is_refused(
    client: FlaskClient, context: Context, fields: dict[str, Any], param: str, code: str
) -> None:
    """The error names the field; neither a file nor a byte of it is left."""
    refused(post(client, **fields), 400, code, param)
    assert client.get("/v1/files").json["data"] == []  # type: ignore[index]  # it is a list
    assert [row.state for row in given.rows(context.database, files.table)] == ["deleted"]
    assert stored(context) == []


def test_two_files_are_one_too_many(client: FlaskClient, context: Context) -> None:
    """Which of them was meant is not guessed."""
    two = [("a.jsonl", b"1"), ("b.jsonl", b"2")]
    refused(post(client, file=two), 400, "invalid_value", "file")
    assert stored(context) == []


@pytest.mark.parametrize(
    ("content_type", "body", "status", "code"),
    [
        ("application/json", b"{}", 415, "unsupported_media_type"),
        ("application/x-www-form-urlencoded", b"purpose=batch", 415, "unsupported_media_type"),
        ("", b"", 415, "unsupported_media_type"),
        ("multipart/form-data", b"--b--\r\n", 400, "malformed_body"),
        ("multipart/form-data; boundary=é", b"--b--\r\n", 400, "malformed_body"),
        (FORM, b"--c--\r\n", 400, "malformed_body"),
        (FORM, b"x" * 3_000, 400, "malformed_body"),
        (FORM, b"--b\r\nno: header\r\n\r\nx\r\n--b--\r\n", 400, "malformed_body"),
        (FORM, b"--b\r\n\xff: \xff\r\n\r\nx\r\n--b--\r\n", 400, "malformed_body"),
        (
            FORM,
            b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\ncut off',
            400,
            "malformed_body",
        ),
        (
            FORM,
            b"".join(b'--b\r\nContent-Disposition: form-data; name="%d"\r\n\r\nx\r\n' % n for n in range(200)),
            400,
            "malformed_body",
        ),
        (
            FORM,
            b'--b\r\nContent-Disposition: form-data; name="a"\r\n\r\n' + b"x" * 1_200_000 + b"\r\n--b--\r\n",
            400,
            "malformed_body",
        ),
        (FORM, b"--b\r\n" + b"x: y\r\n" * 200_000, 400, "malformed_body"),
    ],
)
def test_what_is_no_form_is_refused(
    client: FlaskClient, context: Context, content_type: str, body: bytes, status: int, code: str
) -> None:
    """Also what ends early, and what has too many parts or too much beside the file."""
    refused(client.post("/v1/files", data=body, content_type=content_type), status, code)
    assert stored(context) == []


def test_a_compressed_form_is_refused(client: FlaskClient) -> None:
    """The form itself must not be compressed; a compressed file in it is bytes like others."""
    headers = {"Content-Type": FORM, "Content-Encoding": "gzip"}
    refused(client.post("/v1/files", data=b"\x1f\x8b", headers=headers), 415, "unsupported_media_type")


def small(settings: Settings) -> Iterator[FlaskClient]:
    """Return a client of an application that takes files of 5,000 bytes."""
    app = create_app(settings.model_copy(update={"max_upload_bytes": 5_000}))
    yield app.test_client()
    app.extensions[EXTENSION].close()


@pytest.mark.parametrize("size", [5_000, 5_001, 50_000, 3_000_000])
def test_a_file_over_the_limit_is_refused(settings: Settings, size: int) -> None:
    """To the byte; OpenAI says 400, not 413."""
    for client in small(settings):
        answer = post(client, b"x" * size)
        if size <= 5_000:
            assert answer.status_code == 200
        else:
            assert "5000 bytes" in refused(answer, 400, "file_too_large", "file")


def test_a_limit_holds_without_a_length(settings: Settings) -> None:
    """A body in chunks is counted as it comes."""
    head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n'
    for client in small(settings):
        answer = client.post(
            "/v1/files",
            input_stream=io.BytesIO(head + b"x" * 9_000),
            content_type=FORM,
            headers={"Transfer-Encoding": "chunked"},
        )
        refused(answer, 400, "file_too_large", "file")


def test_a_list_has_pages_in_both_orders(client: FlaskClient) -> None:
    """Newest first, or oldest; `after` goes on behind the last one, also when that is gone by now."""
    ids = [upload(client, name=f"{n}.jsonl")["id"] for n in range(5)]
    page = client.get("/v1/files?limit=2").json
    assert page is not None
    assert page.keys() == {"object", "data", "first_id", "last_id", "has_more"}
    assert [file["id"] for file in page["data"]] == ids[:2:-1]
    assert (page["object"], page["first_id"], page["last_id"], page["has_more"]) == ("list", ids[4], ids[3], True)
    client.delete(f"/v1/files/{ids[3]}")
    page = client.get(f"/v1/files?limit=3&after={ids[3]}").json
    assert page is not None
    assert ([file["id"] for file in page["data"]], page["has_more"]) == (ids[2::-1], False)
    page = client.get(f"/v1/files?order=asc&after={ids[0]}").json
    assert page is not None
    assert [file["id"] for file in page["data"]] == [ids[1], ids[2], ids[4]]
    page = client.get(f"/v1/files?after={ids[0]}").json
    assert page == {"object": "list", "data": [], "first_id": None, "last_id": None, "has_more": False}


def test_a_list_can_be_of_one_purpose(client: FlaskClient) -> None:
    """Files of others are not in it."""
    upload(client)
    made = upload(client, name="a.txt", purpose="user_data")
    assert client.get("/v1/files?purpose=user_data").json["data"] == [made]  # type: ignore[index]  # it is a list
    assert client.get("/v1/files?purpose=batch_output").json["data"] == []  # type: ignore[index]  # it is a list


@pytest.mark.parametrize(
    ("query", "param", "code"),
    [
        ("limit=0", "limit", "invalid_value"),
        ("limit=10001", "limit", "invalid_value"),
        ("limit=many", "limit", "invalid_type"),
        ("order=sideways", "order", "invalid_value"),
        ("purpose=nonsense", "purpose", "invalid_value"),
        ("purpose=bulk", "purpose", "invalid_value"),
        ("after=file-1", "after", "invalid_value"),
        ("after=%00", "after", "invalid_value"),
    ],
)
def test_bad_parameters_of_a_list_are_a_400(client: FlaskClient, query: str, param: str, code: str) -> None:
    """Named, in OpenAI's envelope."""
    refused(client.get(f"/v1/files?{query}"), 400, code, param)


def test_a_deleted_file_is_gone(client: FlaskClient) -> None:
    """Every call says 404 afterwards, a second DELETE too."""
    file_id = upload(client)["id"]
    assert client.delete(f"/v1/files/{file_id}").json == {"id": file_id, "object": "file", "deleted": True}
    for answer in (
        client.get(f"/v1/files/{file_id}"),
        client.get(f"/v1/files/{file_id}/content"),
        client.delete(f"/v1/files/{file_id}"),
    ):
        assert refused(answer, 404, None, "id") == f"No such File object: {file_id}"


@pytest.mark.parametrize("file_id", ["file-" + "0" * 32, "file-1", "job_1", "%00", "x" * 300, "file-" + "G" * 32])
def test_an_unknown_file_is_a_404(client: FlaskClient, file_id: str) -> None:
    """Also under ids that none can have."""
    for call in (client.get, client.delete):
        refused(call(f"/v1/files/{file_id}"), 404, None, "id")
    refused(client.get(f"/v1/files/{file_id}/content"), 404, None, "id")


def test_the_input_of_a_bulk_is_no_file_here(client: FlaskClient, context: Context) -> None:
    """It belongs to its bulk: it cannot be seen, fetched or deleted."""
    with context.database.transaction() as tx:
        new = files.begin(tx, "local", files.BULK_INPUT)
        files.finish(tx, new.id, filename="in.jsonl", purpose=files.BULK_INPUT, size=0, expires_in=None)
    for call in (client.get, client.delete):
        refused(call(f"/v1/files/{new.id}"), 404, None, "id")
    refused(client.get(f"/v1/files/{new.id}/content"), 404, None, "id")
    assert client.get("/v1/files").json["data"] == []  # type: ignore[index]  # it is a list
    assert [row.state for row in given.rows(context.database, files.table)] == ["ready"]


def test_files_belong_to_their_owner(app: Flask, context: Context) -> None:
    """Others do not see them; without a key there is a 401, in OpenAI's envelope."""
    client = app.test_client()
    with context.database.transaction() as tx:
        alice, bob = ({"Authorization": f"Bearer {keys.create(tx, name).secret}"} for name in ("alice", "bob"))
    sent = form(purpose="evals", file=("a.txt", b"hello"))
    made = client.post("/v1/files", data=sent, content_type=FORM, headers=alice).json
    assert made is not None
    path = f"/v1/files/{made['id']}"
    assert client.get(path, headers=alice).json == made
    for call in (client.get, client.delete):
        refused(call(path, headers=bob), 404, None, "id")
    refused(client.get(f"{path}/content", headers=bob), 404, None, "id")
    assert client.get("/v1/files", headers=bob).json["data"] == []  # type: ignore[index]  # it is a list
    answer = client.get(path, headers={"Authorization": "Bearer sk-stoker-wrong"})
    refused(answer, 401, "invalid_api_key")
    assert answer.headers["WWW-Authenticate"]


def test_every_error_here_has_openais_shape(client: FlaskClient) -> None:
    """Also where no call is; beside these paths errors are problem documents."""
    refused(client.get("/v1/files/a/b/c"), 404, None)
    refused(client.get("/v1/batches/a/b/c"), 404, None)
    answer = client.put("/v1/files")
    refused(answer, 405, "method_not_allowed")
    assert set(answer.headers["Allow"].split(", ")) >= {"GET", "POST"}
    assert client.get("/v1/filesystem").content_type == "application/problem+json"


def test_failures_of_this_server_have_openais_shape(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """What happened stays in the log."""

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("c4n4ry")

    monkeypatch.setattr(files, "page", fail)
    assert "c4n4ry" not in refused(client.get("/v1/files"), 500, "internal_error")


def test_full_storage_is_a_507(client: FlaskClient, context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said, nothing is left, and the next upload may find room again."""

    def full(_descriptor: int) -> None:
        raise OSError(28, os.strerror(28))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        assert "no room" in refused(post(client), 507, "storage_full")
    assert stored(context) == []
    assert [row.state for row in given.rows(context.database, files.table)] == ["deleted"]
    upload(client)


def test_storage_that_is_away_is_a_503(client: FlaskClient, context: Context) -> None:
    """The client is told when to come again; what the reason is stays in the log."""
    Path(context.settings.storage).parent.mkdir(parents=True, exist_ok=True)
    Path(context.settings.storage).touch()
    answer = post(client)
    assert str(context.settings.storage) not in refused(answer, 503, "storage_unavailable")
    assert answer.headers["Retry-After"] == "5"


def test_content_that_is_lost_is_said_to_be(client: FlaskClient, context: Context) -> None:
    """Before the answer begins: a download is never just cut off."""
    made = upload(client)
    for path in stored(context):
        path.unlink()
    refused(client.get(f"/v1/files/{made['id']}/content"), 404, "content_missing")


def test_head_tells_the_length(client: FlaskClient) -> None:
    """Without the bytes."""
    answer = client.head(f"/v1/files/{upload(client, b'hello')['id']}/content")
    assert (answer.status_code, answer.headers["Content-Length"], answer.data) == (200, "5", b"")


@pytest.fixture(params=["folder", "bucket"])
def openai_client(
    request: pytest.FixtureRequest, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> Iterator[openai.OpenAI]:
    """Return the openai package's client of an application whose files lie in a folder, or in a bucket."""
    bucket = request.getfixturevalue("bucket") if request.param == "bucket" else None
    for name, value in bucket.environ.items() if bucket else ():
        monkeypatch.setenv(name, value)
    where = f"s3://{buckets.BUCKET}/files" if bucket else ""
    app = create_app(settings.model_copy(update={"storage_url": where}))
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    with openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="any", max_retries=0) as client:
        yield client
    server.shutdown()
    thread.join()
    server.server_close()
    app.extensions[EXTENSION].close()


@pytest.fixture(scope="module")
def bucket() -> Iterator[buckets.Bucket]:
    """Run one bucket for all tests here."""
    with buckets.bucket() as made:
        yield made


def test_the_openai_package_is_content(openai_client: openai.OpenAI, tmp_path: Path) -> None:
    """Its client creates, waits for, lists, looks at, downloads and deletes files, with their bytes as they were."""
    calls = openai_client.files
    content = os.urandom(12_000_000)
    (tmp_path / "in.jsonl").write_bytes(content)
    made = calls.create(
        file=tmp_path / "in.jsonl", purpose="batch", expires_after={"anchor": "created_at", "seconds": 7200}
    )
    assert (made.filename, made.bytes, made.expires_at) == ("in.jsonl", len(content), made.created_at + 7200)
    assert calls.wait_for_processing(made.id, poll_interval=0.01, max_wait_seconds=5).status == "processed"
    assert calls.content(made.id).read() == content
    others = [calls.create(file=b"%d" % n, purpose="user_data").id for n in range(5)]
    assert [file.id for file in calls.list(limit=2, order="asc")] == [made.id, *others]
    assert [file.id for file in calls.list(purpose="batch")] == [made.id]
    for file in calls.list(limit=2):
        assert calls.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError) as caught:
        calls.retrieve(made.id)
    assert caught.value.type == "invalid_request_error"
    with pytest.raises(openai.BadRequestError) as refusal:
        calls.create(file=("in.txt", b"{}"), purpose="batch")
    assert refusal.value.param == "file"
