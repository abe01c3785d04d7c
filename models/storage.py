"""Where the bytes of files lie: a folder, or a bucket of S3, Google or Azure. `Storage` is the only way to them.

StokerError
├── StorageFull         there is no room left
├── StorageUnavailable  it does not answer, or refuses
└── ObjectMissing       there is no such object, or it was changed while it was read

An object is there whole or not at all: what an exception or a crash cuts off is never seen. A bucket keeps the parts
of an upload that a crash cut off until its own rule for incomplete uploads removes them; a folder's go with `delete`.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cached_property
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import BaseError, PreconditionError
from obstore.store import LocalStore, from_url

from models.errors import StokerError

if TYPE_CHECKING:
    from obstore import GetOptions, WritableFile
    from obstore.store import ObjectStore

BLOCK = 1 << 20
"""No block that is read is larger."""
FETCH = 4 * BLOCK
"""What is asked for at once: a request for all of a large object would outlast its time limit."""
PART = 5 * BLOCK
"""The smallest part that S3 takes; two are under way while the next is filled."""
MOST_PARTS = 9_000
"""S3 takes 10,000."""
REMOTE = ("s3", "gs", "az")
_CODE = re.compile(r"\(os error (\d+)\)")
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class StorageFull(StokerError):
    """There is no room left."""


class StorageUnavailable(StokerError):
    """The storage does not answer, or refuses."""


class ObjectMissing(StokerError):
    """There is no such object, or it was changed while it was read."""


class Writer:
    """An object that is being written."""

    def __init__(self, file: WritableFile) -> None:
        self._file = file
        self.size = 0

    def write(self, data: bytes) -> None:
        """Append bytes. Raises StorageFull and StorageUnavailable."""
        with _translated():
            self._file.write(data)
        self.size += len(data)


class Storage:
    """A folder or bucket, opened when first needed: nothing of it may cross a fork. Safe to share between threads."""

    def __init__(self, place: str) -> None:
        """Name a folder's path, or a URL: s3://bucket/prefix, gs://, az://, with the credentials of the environment."""
        self._place = place
        self._folder = None if "://" in place else Path(place)

    @cached_property
    def _store(self) -> ObjectStore:
        with _translated():
            if self._folder is None:
                return _open(self._place)
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            fsync(self._folder.parent)
            return LocalStore(self._folder)

    @contextmanager
    def writer(self, key: str, expected: int = 0) -> Iterator[Writer]:
        """Write an object: there when the block ends well, and then as safe as the database; else nothing is.

        Takes little memory, whatever the size. More than 47 GB in a bucket must be `expected`.
        Raises StorageFull and StorageUnavailable.
        """
        part = BLOCK if self._folder else max(PART, -(-expected // MOST_PARTS))
        with _translated():
            file = obstore.open_writer(self._store, key, buffer_size=part, max_concurrency=2)
        try:
            yield Writer(file)
        except BaseException:
            with suppress(BaseError, OSError):
                file.__exit__(*sys.exc_info())
            raise
        try:
            with _translated():
                file.close()
                self._make_last(key)
        except StokerError:
            with suppress(StokerError):
                self.delete(key)
            raise

    def _make_last(self, key: str) -> None:
        """See to it that an object in a folder outlasts a power failure."""
        if self._folder is not None:
            path = self._folder / key
            for one in (path, *list(path.parents)[: 1 + key.count("/")]):
                fsync(one)

    def read(self, key: str, start: int = 0) -> Iterator[bytes]:
        """Yield an object's bytes in blocks, from `start` on. Raises ObjectMissing and StorageUnavailable."""
        return _blocks(self._store, key, start)

    def size(self, key: str) -> int:
        """Return the length of an object. Raises ObjectMissing and StorageUnavailable."""
        with _translated():
            return obstore.head(self._store, key)["size"]

    def delete(self, key: str) -> None:
        """Remove an object, if it is there, and what a crash left of it. Raises StorageUnavailable."""
        with _translated(), suppress(FileNotFoundError):
            obstore.delete(self._store, key)
        if self._folder is not None:
            path = self._folder / key
            with _translated():
                for part in path.parent.glob(f"{escape(path.name)}#*"):
                    part.unlink(missing_ok=True)


def allowed(url: str, prefixes: Sequence[str]) -> bool:
    """Tell whether a URL names an object below one of the prefixes: in one spelling, with no way out of them."""
    named = _parsed(url)
    if named is None or not named[2] or named[2].endswith("/"):
        return False
    return any(_below(named, under) for prefix in prefixes if (under := _parsed(prefix)) is not None)


def _below(named: tuple[str, str, str], under: tuple[str, str, str]) -> bool:
    path, prefix = named[2], under[2]
    return named[:2] == under[:2] and (prefix in {"", path} or path.startswith(prefix.rstrip("/") + "/"))


def read_url(url: str, start: int = 0, *, prefixes: Sequence[str]) -> Iterator[bytes]:
    """Yield the bytes of an object that the operator allows to be read, with the credentials of the environment.

    Raises ObjectMissing (also for what is not allowed) and StorageUnavailable.
    """
    named = _parsed(url)
    if named is None or not allowed(url, prefixes):
        raise ObjectMissing("This address is not one that may be read.")
    scheme, bucket, key = named
    if scheme != "file":
        with _translated():
            store = _open(f"{scheme}://{bucket}")
        return _blocks(store, key, start)
    return _file_blocks(Path("/", key), start, prefixes)


def _parsed(url: str) -> tuple[str, str, str] | None:
    """Return scheme, bucket and path of a URL, or None where two programs could read it in two ways."""
    if not url.isprintable() or url != url.strip() or "://" not in url or any(sign in url for sign in "\\?#@"):
        return None
    try:
        parts = urlsplit(url)
    except ValueError:
        return None
    if parts.scheme not in {*REMOTE, "file"} or bool(parts.netloc) == (parts.scheme == "file") or ":" in parts.netloc:
        return None
    # A file's URL is percent-encoded; the keys of a bucket are written as they are.
    path = unquote(parts.path) if parts.scheme == "file" else parts.path
    steps = path.split("/")[1:]
    if not path.isprintable() or "\\" in path or "" in steps[:-1] or {".", ".."} & set(steps):
        return None
    return parts.scheme, parts.netloc, path.removeprefix("/")


def _open(url: str) -> ObjectStore:
    return from_url(url, retry_config={"max_retries": 5, "retry_timeout": timedelta(seconds=30)})


def _blocks(store: ObjectStore, key: str, start: int) -> Iterator[bytes]:
    with _translated():
        found = obstore.head(store, key)
    while start < found["size"]:
        options: GetOptions = {"range": (start, min(start + FETCH, found["size"]))}
        if found["e_tag"]:
            options["if_match"] = found["e_tag"]
        with _translated():
            fetched = memoryview(obstore.get(store, key, options=options).bytes())
        if not fetched:
            raise ObjectMissing("The object became shorter while it was read.")
        for at in range(0, len(fetched), BLOCK):
            yield bytes(fetched[at : at + BLOCK])
        start += len(fetched)


def _file_blocks(path: Path, start: int, prefixes: Sequence[str]) -> Iterator[bytes]:
    with _translated():
        real = path.resolve(strict=True)
        # A link below a prefix may lead out of it, and the prefix itself may be a link.
        below = [Path(unquote(urlsplit(prefix).path)).resolve() for prefix in prefixes if prefix.startswith("file:")]
        if not any(real.is_relative_to(prefix) for prefix in below) or not stat.S_ISREG(real.stat().st_mode):
            raise ObjectMissing("This address is not one that may be read.")
        with real.open("rb") as file:
            file.seek(start)
            while block := file.read(BLOCK):
                yield block


def fsync(path: Path) -> None:
    """Wait until a file, or what a folder lists, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _translated() -> Iterator[None]:
    """Give every way in which storage can fail a name of ours."""
    try:
        yield
    except (FileNotFoundError, PreconditionError) as error:
        raise ObjectMissing(_reason(error)) from error
    except (BaseError, OSError, ValueError) as error:
        found = _CODE.search(str(error))
        code = int(found[1]) if found else getattr(error, "errno", None)
        raise (StorageFull if code in _FULL else StorageUnavailable)(_reason(error)) from error


def _reason(error: Exception) -> str:
    return str(error).partition("\n")[0]
