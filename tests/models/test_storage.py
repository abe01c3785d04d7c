"""Storage: objects are there whole or not at all, in a folder and in a bucket alike."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from models.storage import (
    BLOCK,
    FETCH,
    ObjectMissing,
    Storage,
    StorageFull,
    StorageUnavailable,
    allowed,
    read_url,
)
from tests import buckets

KEY = "ab/file-0"


class Stopped(Exception):
    """What stops a writer in these tests."""


@pytest.fixture(scope="module")
def bucket_server() -> Iterator[buckets.Bucket]:
    """Run one bucket for all tests here."""
    with buckets.bucket() as made:
        yield made


@pytest.fixture
def bucket(bucket_server: buckets.Bucket, monkeypatch: pytest.MonkeyPatch) -> buckets.Bucket:
    """Return a bucket, and let this process find it."""
    for name, value in bucket_server.environ.items():
        monkeypatch.setenv(name, value)
    return bucket_server


@pytest.fixture(params=["folder", "bucket"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """Return a storage of each kind in turn, with nothing under this test's keys."""
    if request.param == "folder":
        return Storage(str(tmp_path / "files"))
    request.getfixturevalue("bucket")
    return Storage(f"s3://{buckets.BUCKET}/{tmp_path.name}")


def write(storage: Storage, *pieces: bytes, key: str = KEY) -> None:
    """Write an object."""
    with storage.writer(key) as out:
        for piece in pieces:
            out.write(piece)


@pytest.mark.parametrize("size", [0, 1, 5 * BLOCK, 12 * BLOCK + 7])
def test_bytes_come_back_as_they_went(storage: Storage, size: int) -> None:
    """Any number of them, in blocks that are not large, from any place on."""
    sent = os.urandom(size)
    write(storage, sent[: size // 3], sent[size // 3 :])
    blocks = list(storage.read(KEY))
    assert b"".join(blocks) == sent
    assert all(0 < len(block) <= BLOCK for block in blocks)
    assert storage.size(KEY) == size
    for start in (1, size // 2, FETCH, max(size - 1, 0), size, size + 1):
        assert b"".join(storage.read(KEY, start)) == sent[start:]


def test_an_object_is_not_there_before_its_end(storage: Storage) -> None:
    """Nobody reads half of it."""
    with storage.writer(KEY) as out:
        out.write(b"x" * (11 * BLOCK))
        assert out.size == 11 * BLOCK
        with pytest.raises(ObjectMissing):
            storage.size(KEY)
    assert storage.size(KEY) == 11 * BLOCK


@pytest.mark.parametrize("written", [0, 10, 11 * BLOCK])
def test_an_exception_leaves_nothing(storage: Storage, written: int) -> None:
    """However much was written before it."""

    def stop() -> None:
        with storage.writer(KEY) as out:
            out.write(b"x" * written)
            raise Stopped

    with pytest.raises(Stopped):
        stop()
    with pytest.raises(ObjectMissing):
        list(storage.read(KEY))


def test_a_bucket_keeps_no_parts_of_what_failed(bucket: buckets.Bucket) -> None:
    """Parts that were sent already are taken back."""
    storage = Storage(f"s3://{buckets.BUCKET}/parts")

    def stop() -> None:
        with storage.writer(KEY) as out:
            out.write(b"x" * (6 * BLOCK))
            raise Stopped

    with pytest.raises(Stopped):
        stop()
    assert bucket.unfinished() == 0
    assert not [key for key in bucket.stored() if key.startswith("parts/")]


def test_deleting_is_for_good_and_can_be_repeated(storage: Storage) -> None:
    """What is missing already is deleted, too."""
    write(storage, b"hello")
    storage.delete(KEY)
    with pytest.raises(ObjectMissing):
        storage.size(KEY)
    storage.delete(KEY)


def test_deleting_removes_what_a_crash_left(tmp_path: Path) -> None:
    """Half an object that its writer could not remove, and nobody else's."""
    storage = Storage(str(tmp_path))
    write(storage, b"hello", key="ab/file-1")
    for name in (f"{KEY}#1", f"{KEY}#23", "ab/file-01#1"):
        (tmp_path / name).write_bytes(b"half")
    storage.delete(KEY)
    assert sorted(path.name for path in (tmp_path / "ab").iterdir()) == ["file-01#1", "file-1"]


def test_what_changes_while_it_is_read_is_an_error(storage: Storage) -> None:
    """Never the head of one object and the tail of another."""
    write(storage, b"a" * (2 * FETCH))
    blocks = storage.read(KEY)
    assert next(blocks)[:1] == b"a"
    write(storage, b"b" * (2 * FETCH))
    with pytest.raises(ObjectMissing):
        list(blocks)


def test_an_object_is_on_the_disk_before_it_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file and the folders that lead to it are synced: the database's row would outlast a power failure."""
    synced: list[str] = []
    fsync = os.fsync

    def note(descriptor: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    write(Storage(str(tmp_path / "files")), b"hello")
    assert synced == [str(tmp_path), *(str(tmp_path / "files" / part) for part in (KEY, "ab", ""))]


def test_only_the_service_reads_the_folder(tmp_path: Path) -> None:
    """Other users of the machine do not."""
    write(Storage(str(tmp_path / "files")), b"hello")
    assert (tmp_path / "files").stat().st_mode & 0o777 == 0o700


LIMITED = """
import resource, sys
from models.storage import Storage, StorageFull
resource.setrlimit(resource.RLIMIT_FSIZE, (3 << 20, 3 << 20))
storage = Storage(sys.argv[1])
try:
    with storage.writer("ab/file-0") as out:
        for _ in range(8):
            out.write(b"x" * (1 << 20))
except StorageFull:
    print("full")
with storage.writer("ab/file-1") as out:
    out.write(b"x" * (2 << 20))
"""


def test_a_full_disk_is_named_and_nothing_stays(tmp_path: Path) -> None:
    """Half an object would keep it full; what fits is stored all the same."""
    command = [sys.executable, "-c", LIMITED, str(tmp_path)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (ran.stdout, ran.stderr) == ("full\n", "")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["file-1"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_no_room_is_also_told_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """Some file systems tell only when a file is synced."""

    def full(_descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    storage = Storage(str(tmp_path))
    write(storage, b"hello", key="ab/file-1")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageFull):
        write(storage, b"hello")
    assert not (tmp_path / KEY).exists()


def test_a_folder_that_cannot_be_made_is_unavailable(tmp_path: Path) -> None:
    """It is an error of the storage, with its reason."""
    (tmp_path / "file").touch()
    with pytest.raises(StorageUnavailable, match="Not a directory"):
        write(Storage(str(tmp_path / "file" / "files")), b"hello")


def test_a_server_that_is_away_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told within seconds."""
    with buckets.bucket() as bucket:
        for name, value in bucket.environ.items():
            monkeypatch.setenv(name, value)
        storage = Storage(f"s3://{buckets.BUCKET}")
        write(storage, b"hello")
    for act in (lambda: list(storage.read(KEY)), lambda: write(storage, b"x"), lambda: storage.delete(KEY)):
        with pytest.raises(StorageUnavailable) as caught:
            act()
        assert "nothing" not in str(caught.value)


PREFIXES = ["s3://bucket/in/", "s3://open", "gs://other/a/b", "file:///data/in"]


@pytest.mark.parametrize(
    "url",
    [
        "s3://bucket/in/a.jsonl",
        "s3://bucket/in/deep/a b.jsonl",
        "s3://open/anything",
        "gs://other/a/b",
        "gs://other/a/b/c",
        "file:///data/in/a.jsonl",
        "file:///data/in/a%20b.jsonl",
    ],
)
def test_what_lies_below_a_prefix_may_be_read(url: str) -> None:
    """An object in a bucket, or a file."""
    assert allowed(url, PREFIXES)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "s3://bucket/in",
        "s3://bucket/in/",
        "s3://bucket/input.jsonl",
        "s3://bucket/out/a.jsonl",
        "s3://bucket/in/../out/a.jsonl",
        "s3://bucket/in/./a.jsonl",
        "s3://bucket/in//a.jsonl",
        "s3://bucket/in/a.jsonl?versionId=1",
        "s3://bucket/in/a.jsonl#1",
        "s3://user:secret@bucket/in/a.jsonl",
        "s3://user@bucket/in/a.jsonl",
        "s3://bucket:80/in/a.jsonl",
        "S3://BUCKET/in/a.jsonl",
        "s3://bucket/in\\..\\a.jsonl",
        "s3://bucket/in/a\n.jsonl",
        " s3://bucket/in/a.jsonl",
        "s3:/bucket/in/a.jsonl",
        "s3://other/a/b/c",
        "gs://other/a/bc",
        "http://bucket/in/a.jsonl",
        "file:///data/in/%2e%2e/secret",
        "file:///data/in/..%2fsecret",
        "file:///data/in%2f..%2f..%2fetc/passwd",
        "file:///data/in/%00",
        "file://host/data/in/a.jsonl",
        "file:/data/in/a.jsonl",
        "/data/in/a.jsonl",
        "s3://[/in/a",
    ],
)
def test_what_leads_elsewhere_may_not(url: str) -> None:
    """Nor what two programs could read in two ways."""
    assert not allowed(url, PREFIXES)
    with pytest.raises(ObjectMissing):
        list(read_url(url, prefixes=PREFIXES))


def test_a_bucket_may_be_read_where_the_operator_allows_it(bucket: buckets.Bucket) -> None:
    """With the service's own credentials, from any place on."""
    write(Storage(f"s3://{buckets.BUCKET}/in"), b"hello", key="a b%20c.jsonl")
    url = f"s3://{buckets.BUCKET}/in/a b%20c.jsonl"
    assert b"".join(read_url(url, prefixes=[f"s3://{buckets.BUCKET}/in/"])) == b"hello"
    assert b"".join(read_url(url, 3, prefixes=[f"s3://{buckets.BUCKET}"])) == b"lo"
    with pytest.raises(ObjectMissing):
        list(read_url(f"{url}x", prefixes=[f"s3://{buckets.BUCKET}"]))


def test_a_link_does_not_lead_out_of_a_folder(tmp_path: Path) -> None:
    """Only real files below it are read."""
    inside = tmp_path / "in"
    inside.mkdir()
    (inside / "a b.jsonl").write_bytes(b"hello")
    (tmp_path / "secret").write_bytes(b"secret")
    (inside / "out").symlink_to(tmp_path / "secret")
    (inside / "within").symlink_to(inside / "a b.jsonl")
    os.mkfifo(inside / "pipe")
    prefixes = [f"file://{inside}/"]
    assert b"".join(read_url((inside / "a b.jsonl").as_uri(), 1, prefixes=prefixes)) == b"ello"
    assert b"".join(read_url(f"file://{inside}/within", prefixes=prefixes)) == b"hello"
    for name in ("out", "pipe", "missing"):
        with pytest.raises(ObjectMissing):
            list(read_url(f"file://{inside}/{name}", prefixes=prefixes))
