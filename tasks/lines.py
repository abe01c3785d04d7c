"""An upload as it comes, bytes in blocks, to its lines: pure, in bounded memory, resumable at the end of any line."""

from __future__ import annotations

import heapq
import math
import secrets
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b

BOM = b"\xef\xbb\xbf"
BLOCK = 1 << 18
"""Bytes that are looked at in one piece: a block of nothing but newlines becomes a list of so many lines."""
_FED = 1 << 14
"""Bytes given to zlib in one piece: what it leaves is copied, once for each small member of a gzip file."""
EXEMPT = 1_000_000
"""Bytes that may come out of gzip data whatever its ratio: a small file of like lines is no bomb."""
_BEYOND = len(BOM) + len(b"\r")
"""Bytes that are held beyond the limit: those that do not count."""


class BadInput(Exception):
    """An input that cannot be read at all; `code` and `message` are for the client."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


@dataclass(slots=True)
class Line:
    """A line: its number from 1 (blank ones count), where the next one begins, and its bytes; None: it is too long.

    Without a byte it stands for a stretch of blank lines, of BLOCK bytes or more, that ends with it.
    """

    number: int
    end: int
    data: bytes | None = field(repr=False)


def read_lines(blocks: Iterable[bytes], most_bytes: int, *, offset: int = 0, number: int = 0) -> LineReader:
    """Return the lines of an input, of blank ones only where a long stretch ends.

    `blocks` begin at `offset`, behind `number` lines.
    """
    return LineReader(blocks, most_bytes, offset, number)


class LineReader:
    """The lines of an input, and the position behind the last one taken; at the end, behind the whole input."""

    def __init__(self, blocks: Iterable[bytes], most_bytes: int, offset: int, number: int) -> None:
        self.offset = offset
        self.number = number
        self._most = most_bytes
        self._lines = self._read(blocks)

    def __iter__(self) -> Iterator[Line]:
        return self._lines

    def __next__(self) -> Line:
        return next(self._lines)

    def _read(self, blocks: Iterable[bytes]) -> Iterator[Line]:
        number, end, most = self.number, self.offset, self._most
        for raws, newline in split(blocks, most + _BEYOND):
            for raw in raws:
                number += 1
                if not raw:
                    end += newline
                    continue
                if isinstance(raw, int):
                    end, data = end + raw + newline, None
                else:
                    data = raw.removesuffix(b"\r") if end else raw.removeprefix(BOM).removesuffix(b"\r")
                    end += len(raw) + newline
                    if len(data) > most:
                        data = None
                    elif not data or data.isspace():
                        continue
                self.number, self.offset = number, end
                yield Line(number, end, data)
            if end - self.offset >= BLOCK:
                self.number, self.offset = number, end
                yield Line(number, end, b"")
        self.number, self.offset = number, end


def split(blocks: Iterable[bytes], most_bytes: int) -> Iterator[tuple[list[bytes | int], int]]:
    """Yield lists of lines and how many bytes of newline end each of them (0: the last line of all, left open).

    A line of more than `most_bytes` is never held; its size stands for it.
    """
    held: list[bytes] = []
    size = 0
    for block in _cut(blocks, BLOCK):
        first, *others = block.split(b"\n")
        held.append(first)
        size += len(first)
        if others:
            tail = others.pop()
            yield [_whole(held, size, most_bytes), *others], 1
            held, size = [tail], len(tail)
        if size > most_bytes:
            held = []
    if size:
        yield [_whole(held, size, most_bytes)], 0


def _whole(held: list[bytes], size: int, most_bytes: int) -> bytes | int:
    return size if size > most_bytes else held[0] if len(held) == 1 else b"".join(held)


def _cut(blocks: Iterable[bytes], size: int) -> Iterator[bytes]:
    for block in blocks:
        if len(block) <= size:
            yield block
        else:
            yield from (block[start : start + size] for start in range(0, len(block), size))


def skipping(blocks: Iterable[bytes], size: int) -> Iterator[bytes]:
    """Yield what comes behind the first `size` bytes."""
    for block in blocks:
        if size < len(block):
            yield block[size:]
        size = max(0, size - len(block))


def gunzipped(blocks: Iterable[bytes], most_bytes: int, most_ratio: float = math.inf) -> Iterator[bytes]:
    """Yield what is compressed in a gzip file, of one or more members, in blocks of at most BLOCK bytes.

    Raises BadInput for a broken or truncated file, when more than `most_bytes` come out of it, and when behind the
    first EXEMPT bytes more than `most_ratio` have come out of each byte that went in.
    """
    fed = _Counted(_cut(blocks, _FED))
    size = 0
    for block in _inflated(fed):
        size += len(block)
        if size > most_bytes:
            raise BadInput("file_too_large", f"The file is larger than {most_bytes} bytes when decompressed.")
        if size > EXEMPT and size > most_ratio * fed.size:
            message = f"The gzip data becomes more than {most_ratio:g} times as large (STOKER_MAX_GZIP_RATIO)."
            raise BadInput("gzip_ratio", f"{message} Send it uncompressed, or in smaller files.")
        yield block


class _Counted:
    """Blocks, and how many bytes of them were taken."""

    def __init__(self, blocks: Iterable[bytes]) -> None:
        self._blocks = blocks
        self.size = 0

    def __iter__(self) -> Iterator[bytes]:
        for block in self._blocks:
            self.size += len(block)
            yield block


def _inflated(blocks: Iterable[bytes]) -> Iterator[bytes]:
    member = None
    for block in blocks:
        rest = block
        while rest := rest if member else rest.lstrip(b"\0"):  # zeros may lie between and behind members
            member = member or zlib.decompressobj(wbits=31)
            try:
                out = member.decompress(rest, BLOCK)
            except zlib.error:
                raise BadInput("invalid_gzip", "The file is not valid gzip data.") from None
            if out:
                yield out
            rest = member.unused_data if member.eof else member.unconsumed_tail
            member = None if member.eof else member
    if member:
        raise BadInput("invalid_gzip", "The gzip data ends too early: the file is truncated.")


class Seen:
    """The ids of up to some hundred million lines, to find those that come twice: about 22 MB a million.

    Exact but for digests of 16 bytes, keyed so that nobody can make two that are equal.
    """

    _RECORD = struct.Struct("16sI")

    def __init__(self) -> None:
        self._key = secrets.token_bytes(32)
        self._buckets = [bytearray() for _ in range(256)]

    def add(self, custom_id: str, line: int) -> None:
        """Note the id of a line; lines are given in their order."""
        digest = blake2b(custom_id.encode(), digest_size=16, key=self._key).digest()
        self._buckets[digest[0]] += self._RECORD.pack(digest, line)

    def duplicates(self, most: int) -> list[tuple[int, int]]:
        """Return the first `most` lines whose id another line has before them, each with the first such line."""
        return heapq.nsmallest(most, self._all_duplicates())

    def _all_duplicates(self) -> Iterator[tuple[int, int]]:
        for bucket in self._buckets:
            first: dict[bytes, int] = {}
            for digest, line in self._RECORD.iter_unpack(bucket):
                if (before := first.setdefault(digest, line)) != line:
                    yield line, before
