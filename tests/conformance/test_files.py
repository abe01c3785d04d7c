"""Files: uploaded, listed, looked at, fetched, deleted."""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Iterator
from itertools import pairwise

import pytest

from .kit import Api, Json, answered, fresh, refused

row = pytest.mark.row

DAY = 86_400
PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
TUNING = b'{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}\n' * 10
PURPOSES = {
    "batch": ("input.jsonl", b'{"custom_id":"a"}\n'),
    "assistants": ("notes.txt", b"notes"),
    "fine-tune": ("train.jsonl", TUNING),
    "vision": ("dot.png", PNG),
    "user_data": ("notes.txt", b"notes"),
    "evals": ("items.jsonl", b'{"item":{"a":"b"}}\n'),
}
KEYS = {"id", "object", "bytes", "created_at", "filename", "purpose", "status", "expires_at", "status_details"}
ODD = bytes(range(256)) + b"\xef\xbb\xbf\r\n\n\r\x00 no newline at the end"


@pytest.fixture(scope="module")
def five(api: Api) -> list[str]:
    """Upload five files, one after the other."""
    return [api.upload(b"%d" % n, name=f"{n}.txt", purpose="user_data")["id"] for n in range(5)]


def pages(api: Api, **params: object) -> Iterator[Json]:
    """Yield the pages of a list as the openai package asks for them."""
    while True:
        page = api.get("/files", **params)
        yield page
        if not page["has_more"]:
            return
        params["after"] = page["data"][-1]["id"]


# POST /v1/files


@row("files.create")
def test_an_upload_is_a_file(api: Api) -> None:
    """An upload answers with the file: its size, its name, its purpose, the time."""
    before = time.time()
    made = api.upload(b'{"a": 1}\n', name="my input.jsonl")
    assert re.fullmatch(r"file-\w+", made["id"])
    assert made["object"] == "file"
    assert made["bytes"] == 9
    assert made["filename"] == "my input.jsonl"
    assert made["purpose"] == "batch"
    assert abs(made["created_at"] - before) < 60


@row("files.create")
@pytest.mark.parametrize("purpose", PURPOSES)
def test_every_purpose(api: Api, purpose: str) -> None:
    """`batch`, `assistants`, `fine-tune`, `vision`, `user_data` and `evals` may be uploaded."""
    name, content = PURPOSES[purpose]
    made = api.upload(content, name=name, purpose=purpose)
    assert made["purpose"] == purpose
    assert api.get(f"/files/{made['id']}")["purpose"] == purpose


@row("files.create")
def test_the_order_of_the_parts(api: Api) -> None:
    """The fields may come behind the file, as some clients send them."""
    parts = [
        ("file", ("late.jsonl", b"{}\n")),
        ("purpose", (None, "batch")),
        ("expires_after[anchor]", (None, "created_at")),
        ("expires_after[seconds]", (None, "3600")),
    ]
    made = answered(api.ask("POST", "/files", files=parts))
    assert (made["filename"], made["purpose"]) == ("late.jsonl", "batch")
    assert made["expires_at"] == made["created_at"] + 3600


@row("files.create")
def test_names_of_other_scripts(api: Api) -> None:
    """A file's name keeps its letters, whatever they are."""
    made = api.upload(b"{}\n", name="Größe 数据.jsonl")
    assert made["filename"] == "Größe 数据.jsonl"
    response = api.ask("GET", f"/files/{made['id']}/content")
    assert response.content == b"{}\n"
    assert "attachment" in response.headers["content-disposition"]


@row("files.create")
def test_an_empty_file_is_taken(api: Api) -> None:
    """A file of no bytes is uploaded like any other: it is its batch that fails."""
    assert api.upload(b"")["bytes"] == 0


@row("files.create")
@pytest.mark.parametrize("seconds", [3600, 30 * DAY])
def test_expires_after(api: Api, seconds: int) -> None:
    """`expires_after[seconds]`, from 3600 to 2592000, counts from the upload."""
    fields = {"expires_after[anchor]": "created_at", "expires_after[seconds]": str(seconds)}
    made = api.upload(b"a", name="a.txt", purpose="user_data", **fields)
    assert made["expires_at"] == made["created_at"] + seconds


@row("files.create")
@pytest.mark.parametrize("seconds", ["3599", "2592001", "soon", "-1"])
def test_expires_after_out_of_bounds(api: Api, seconds: str) -> None:
    """`expires_after[seconds]` below 3600, above 2592000 or not a number is refused."""
    fields = {"expires_after[anchor]": "created_at", "expires_after[seconds]": seconds}
    error = refused(api.try_upload(b"{}\n", **fields), 400)
    assert error["param"].startswith("expires_after")


@row("files.create")
def test_expires_after_another_anchor(api: Api) -> None:
    """The only anchor is `created_at`."""
    fields = {"expires_after[anchor]": "last_active_at", "expires_after[seconds]": "3600"}
    assert refused(api.try_upload(b"{}\n", **fields), 400)["param"].startswith("expires_after")


@row("files.create")
def test_when_files_expire_by_themselves(api: Api) -> None:
    """A file for a batch expires after 30 days, any other never."""
    made = api.upload(b"{}\n")
    assert made["expires_at"] == made["created_at"] + 30 * DAY
    assert api.upload(b"a", name="a.txt", purpose="user_data")["expires_at"] is None


# The object


@row("files.object")
def test_the_fields_of_a_file(api: Api) -> None:
    """A file has all of its fields, each of its type; only `expires_at` and `status_details` may be null."""
    made = api.upload(b"{}\n")
    for shown in (made, api.get(f"/files/{made['id']}"), api.get("/files", limit=1)["data"][0]):
        assert shown.keys() >= KEYS
        assert all(type(shown[name]) is int for name in ("bytes", "created_at", "expires_at"))
        assert all(type(shown[name]) is str for name in ("id", "object", "filename", "purpose", "status"))
        assert shown["status_details"] is None


@row("files.object")
def test_a_file_becomes_processed(api: Api) -> None:
    """The status of a file reaches `processed`, for which the openai package waits."""
    made = api.upload(b"{}\n")
    until = time.monotonic() + api.patience
    while (status := api.get(f"/files/{made['id']}")["status"]) != "processed":
        assert status == "uploaded"
        assert time.monotonic() < until
        time.sleep(0.5)


# GET /v1/files


@row("files.list")
def test_the_newest_first(api: Api, five: list[str]) -> None:
    """Files come newest first; the page says its first id, its last and whether there are more."""
    page = api.get("/files", purpose="user_data", limit=5)
    ids = [file["id"] for file in page["data"]]
    assert page["object"] == "list"
    assert [file_id for file_id in ids if file_id in five] == five[::-1][: len(set(ids) & set(five))]
    assert (page["first_id"], page["last_id"]) == (ids[0], ids[-1])
    assert isinstance(page["has_more"], bool)
    assert api.get("/files", purpose="user_data", limit=5, order="desc")["data"] == page["data"]


@row("files.list")
def test_files_page_by_page(api: Api, five: list[str]) -> None:
    """`after` goes on behind an id: page by page every file comes once."""
    seen: list[str] = []
    for page in pages(api, limit=2):
        ids = [file["id"] for file in page["data"]]
        assert 1 <= len(ids) <= 2
        seen += ids
        if five[0] in seen:
            break
    assert len(seen) == len(set(seen))
    assert [file_id for file_id in seen if file_id in five] == five[::-1]


@row("files.list")
def test_the_oldest_first(api: Api, five: list[str]) -> None:
    """`order=asc` turns the order round, and pages go on in it."""
    found: list[str] = []
    for page in pages(api, order="asc", limit=2, after=five[0]):
        found += [file["id"] for file in page["data"]]
    assert found[:4] == five[1:]
    listed = api.get("/files", order="asc", purpose="user_data")["data"]
    assert all(first["created_at"] <= then["created_at"] for first, then in pairwise(listed))


@row("files.list")
def test_the_last_page(api: Api, five: list[str]) -> None:
    """The last page says that there are no more."""
    *_, last = pages(api, order="asc", limit=3, after=five[2])
    assert last["has_more"] is False
    after_all = api.get("/files", order="asc", after=last["data"][-1]["id"])
    assert (after_all["data"], after_all["has_more"]) == ([], False)
    assert (after_all.get("first_id"), after_all.get("last_id")) == (None, None)


@row("files.list")
def test_only_one_purpose(api: Api, five: list[str]) -> None:
    """`purpose` shows the files of that purpose and no others."""
    batch = api.upload(b"{}\n")["id"]
    data, others = api.get("/files", purpose="user_data")["data"], api.get("/files", purpose="batch")["data"]
    assert {file["purpose"] for file in data} == {"user_data"}
    assert {file["purpose"] for file in others} == {"batch"}
    assert set(five) <= {file["id"] for file in data}
    assert batch in {file["id"] for file in others}


@row("files.list")
def test_ten_thousand_at_once(api: Api, five: list[str]) -> None:
    """`limit` may be 1 to 10000, which is also what is meant without it."""
    assert len(api.get("/files", limit=1)["data"]) == 1
    every = api.get("/files", limit=10_000)
    assert set(five) <= {file["id"] for file in every["data"]}
    assert api.get("/files")["data"] == every["data"]


@row("files.list")
@pytest.mark.parametrize(
    ("name", "value"), [("limit", "0"), ("limit", "10001"), ("limit", "many"), ("order", "sideways")]
)
def test_bad_parameters_of_a_list(api: Api, name: str, value: str) -> None:
    """A `limit` out of bounds and an unknown `order` are refused."""
    refused(api.ask("GET", "/files", params={name: value}), 400, param=name)


# One file


@row("files.one")
def test_a_file_is_found(api: Api) -> None:
    """A file is found by its id, as it was answered."""
    made = api.upload(b"{}\n")
    found = api.get(f"/files/{made['id']}")
    assert found | {"status": ""} == made | {"status": ""}


@row("files.one")
def test_a_deleted_file_is_gone(api: Api) -> None:
    """DELETE answers `deleted: true`; afterwards file, content and DELETE are 404, and no list has it."""
    file_id = api.upload(b"{}\n")["id"]
    assert answered(api.ask("DELETE", f"/files/{file_id}")) == {"id": file_id, "object": "file", "deleted": True}
    for method, path in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
        refused(api.ask(method, f"/files/{file_id}{path}"), 404)
    assert file_id not in {file["id"] for file in api.get("/files", purpose="batch")["data"]}


@row("files.one")
@pytest.mark.parametrize(("method", "path"), [("GET", ""), ("GET", "/content"), ("DELETE", "")])
def test_an_unknown_file(api: Api, method: str, path: str) -> None:
    """An id that never was is 404."""
    refused(api.ask(method, f"/files/{fresh('file-')}{path}"), 404)


# The content


@row("files.content")
@pytest.mark.parametrize(
    ("name", "purpose", "content"),
    [
        ("odd.bin", "user_data", ODD),
        ("odd.jsonl", "batch", ODD),
        ("big.txt", "user_data", ODD * 20_000),
        ("empty.jsonl", "batch", b""),
    ],
    ids=["binary", "batch", "5 MB", "empty"],
)
def test_the_very_bytes(api: Api, name: str, purpose: str, content: bytes) -> None:
    """The content is what was uploaded, byte for byte."""
    made = api.upload(content, name=name, purpose=purpose)
    assert made["bytes"] == len(content)
    assert api.content(made["id"]) == content


@row("files.content")
def test_it_is_an_attachment(api: Api) -> None:
    """The content comes as an attachment under the file's name."""
    made = api.upload(b"{}\n", name="my-input.jsonl")
    said = api.ask("GET", f"/files/{made['id']}/content").headers["content-disposition"]
    assert re.fullmatch(r'attachment; *filename="?my-input\.jsonl"?(;.*)?', said)


# What is refused


@row("errors.request")
@pytest.mark.parametrize("name", ["input.txt", "input.json", "input", "input.jsonl.gz"])
def test_a_batch_needs_json_lines(api: Api, name: str) -> None:
    """A file for a batch that is not called .jsonl is refused."""
    assert refused(api.try_upload(b"{}\n", name=name), 400)["type"] == "invalid_request_error"


@row("errors.request")
@pytest.mark.parametrize("purpose", ["batch_output", "nonsense", ""])
def test_other_purposes(api: Api, purpose: str) -> None:
    """Any other purpose is refused."""
    refused(api.try_upload(b"{}\n", purpose=purpose), 400, param="purpose")


@row("errors.request")
def test_an_upload_without_its_parts(api: Api) -> None:
    """An upload without a file, or without a purpose, is refused, and the error names the part."""
    refused(api.ask("POST", "/files", files={"purpose": (None, "batch")}), 400, param="file")
    refused(api.ask("POST", "/files", files={"file": ("a.jsonl", b"{}\n")}), 400, param="purpose")


@row("errors.request")
def test_a_refused_upload_leaves_nothing(api: Api) -> None:
    """What was refused is in no list."""
    name = fresh() + ".txt"
    refused(api.try_upload(b"{}\n", name=name), 400)
    assert name not in {file["filename"] for file in api.get("/files")["data"]}
