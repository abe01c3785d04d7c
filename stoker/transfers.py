"""What goes to the service in blocks, and what comes so: files of any size, in little memory."""

from __future__ import annotations

import asyncio
import io
import json
import os
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, cast

BLOCK = 256 * 1024

Progress = Callable[[int, int | None], object]
"""Told how many bytes are sent, and of how many (None: nobody knows)."""

Source = str | os.PathLike[str] | BinaryIO | Iterable[Mapping[str, Any] | str | bytes]
"""Where lines come from: a path, a binary file, or the lines themselves (a text is a prompt, bytes are a line)."""


Target = str | os.PathLike[str] | BinaryIO
"""Where a download goes: a path, or a binary file that can be begun anew."""


@dataclass(frozen=True, slots=True)
class Upload:
    """A body that is sent in blocks. `blocks` begins anew at each call, where `repeatable`."""

    blocks: Callable[[], Iterator[bytes]]
    content_type: str
    size: int | None = None
    encoding: str | None = None
    repeatable: bool = True
    name: str = "lines.jsonl"

    @property
    def headers(self) -> dict[str, str]:
        """Return the headers that go with it."""
        given = {"Content-Type": self.content_type}
        if self.encoding:
            given["Content-Encoding"] = self.encoding
        if self.size is not None:
            given["Content-Length"] = str(self.size)
        return given

    def told(self, progress: Progress | None) -> Upload:
        """Return the same upload, which tells of its progress."""
        return replace(self, blocks=lambda: _telling(self.blocks(), self.size, progress)) if progress else self


def upload_of(source: Source) -> Upload:
    """Return the upload of lines; a path or file is JSON Lines or CSV, gzip or not, by its name."""
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        return _typed(Upload(lambda: _of_file(path.open("rb")), "", path.stat().st_size, name=path.name))
    if isinstance(source, io.TextIOBase):
        raise TypeError("open the file in binary mode")
    if hasattr(source, "read"):
        return _typed(_file(cast("BinaryIO", source)))
    return Upload(lambda: _of_lines(source), "application/x-ndjson", repeatable=iter(source) is not source)


def multipart(upload: Upload, fields: Mapping[str, str]) -> Upload:
    """Return an upload as the part `file` of a form."""
    boundary = f"stoker-{uuid.uuid4().hex}"
    head = "".join(
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in fields.items()
    )
    name = upload.name.replace("\\", "_").replace('"', "_").replace("\r", "_").replace("\n", "_")
    disposition = f'Content-Disposition: form-data; name="file"; filename="{name}"'
    head += f"--{boundary}\r\n{disposition}\r\nContent-Type: application/octet-stream\r\n\r\n"
    before, after = head.encode(), f"\r\n--{boundary}--\r\n".encode()

    def blocks() -> Iterator[bytes]:
        yield before
        yield from upload.blocks()
        yield after

    size = None if upload.size is None else len(before) + upload.size + len(after)
    form = f"multipart/form-data; boundary={boundary}"
    return replace(upload, blocks=blocks, content_type=form, size=size, encoding=None)


async def drip(blocks: Iterator[bytes]) -> AsyncIterator[bytes]:
    """Yield blocks whose reading may take its time, without holding up the event loop."""
    while (block := await asyncio.to_thread(next, blocks, None)) is not None:
        yield block


class Download:
    """An answer that is written to a seekable binary file; begun again when the connection breaks."""

    def __init__(self, to: BinaryIO) -> None:
        self._to = to
        self._start = to.tell()

    def begin(self) -> None:
        """Forget what an earlier try has written."""
        self._to.seek(self._start)
        self._to.truncate()

    def write(self, block: bytes) -> None:
        """Take the next block."""
        self._to.write(block)


@contextmanager
def opened(to: Target) -> Iterator[BinaryIO]:
    """Open where a download goes; a path holds the whole of it afterwards, or what it held before."""
    if not isinstance(to, str | os.PathLike):
        yield to
        return
    path = Path(to)
    half = path.with_name(f"{path.name}.part")
    try:
        with half.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        half.replace(path)
    finally:
        half.unlink(missing_ok=True)


def _typed(upload: Upload) -> Upload:
    """Tell what an upload is, by its name."""
    stem, gz, _ = upload.name.lower().partition(".gz")
    kind = "text/csv" if stem.endswith(".csv") else "application/x-ndjson"
    return replace(upload, content_type=kind, encoding="gzip" if gz else None)


def _file(file: BinaryIO) -> Upload:
    """Return the upload of an open file, from where it stands."""
    name = getattr(file, "name", "")
    known = Path(name).name if isinstance(name, str) else ""
    if not file.seekable():
        return Upload(lambda: _read(file), "", repeatable=False, name=known)
    start = file.tell()
    size = file.seek(0, os.SEEK_END) - start
    file.seek(start)

    def blocks() -> Iterator[bytes]:
        file.seek(start)
        yield from _read(file)

    return Upload(blocks, "", size, name=known)


def _of_file(file: BinaryIO) -> Iterator[bytes]:
    with file:
        yield from _read(file)


def _read(file: BinaryIO) -> Iterator[bytes]:
    while block := file.read(BLOCK):
        yield block


def _of_lines(lines: Iterable[Mapping[str, Any] | str | bytes]) -> Iterator[bytes]:
    gathered = bytearray()
    for line in lines:
        if isinstance(line, bytes):
            gathered += line.rstrip(b"\n") + b"\n"
        else:
            document = {"prompt": line} if isinstance(line, str) else line
            gathered += json.dumps(document, ensure_ascii=False).encode() + b"\n"
        if len(gathered) >= BLOCK:
            yield bytes(gathered)
            gathered.clear()
    if gathered:
        yield bytes(gathered)


def _telling(blocks: Iterator[bytes], size: int | None, progress: Progress) -> Iterator[bytes]:
    sent = 0
    progress(sent, size)
    for block in blocks:
        yield block
        sent += len(block)
        progress(sent, size)
