"""What `stoker bulk run` leaves beside its output, so that the same command goes on where an earlier one was cut off.

The state names a place in each output up to which everything is on the disk for sure. Lines behind that place count
as far as they are whole; a torn one is cut off and comes again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Self

if TYPE_CHECKING:
    from stoker.result_pages import Line

SUFFIX = ".stoker"
VERSION = 1
_ANEW = "remove the run's state to begin anew"


class RunError(Exception):
    """The run cannot begin or go on; the text says why."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in an output: so many bytes and lines, the last of which has this `seq`."""

    offset: int = 0
    seq: int = 0
    lines: int = 0


@dataclass(slots=True)
class RunState:
    """What is known of a run: what it was asked, under which key, which bulk came of it, and how far it was read."""

    url: str
    key: str
    source: Mapping[str, Any]
    params: Mapping[str, Any]
    bulk_id: str = ""
    results: Mark = field(default_factory=Mark)
    errors: Mark = field(default_factory=Mark)

    def save(self, path: Path) -> None:
        """Write it: whole, or not at all."""
        half = path.with_name(f"{path.name}.part")
        with half.open("w", encoding="utf-8") as file:
            json.dump({"version": VERSION, **asdict(self)}, file)
            file.flush()
            os.fsync(file.fileno())
        half.replace(path)
        _sync_folder(path.parent)


def load(path: Path) -> RunState | None:
    """Read the state that an earlier run left, if one did. Raises RunError for what is none."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        version = document.pop("version")
        results, errors = (Mark(**document.pop(name)) for name in ("results", "errors"))
        if version == VERSION:
            return RunState(**document, results=results, errors=errors)
    except FileNotFoundError:
        return None
    except (AttributeError, KeyError, TypeError, ValueError):
        pass
    raise RunError(f"{path} is no state of this program: remove it to begin anew")


def fingerprint(path: Path) -> dict[str, Any]:
    """Return what tells an input from another one."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return {"name": path.name, "size": file.tell(), "sha256": digest.hexdigest()}


class Output:
    """A file of results that grows by whole lines, made when the first one comes. One program at a time writes it."""

    def __init__(self, path: Path, mark: Mark) -> None:
        self.path = path
        self.mark = mark
        self._file: BinaryIO | None = None

    def __enter__(self) -> Self:
        """Find out how far the file is whole, and cut off the rest."""
        if self.path.exists():
            try:
                self._recover(self._open())
            except BaseException:
                self.__exit__()
                raise
        elif self.mark.offset:
            raise RunError(f"{self.path} is gone: {_ANEW}")
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        if self._file:
            self._file.close()
            self._file = None

    def append(self, lines: Sequence[Line]) -> None:
        """Write lines behind the last one."""
        file = self._file or self._open()
        block = memoryview(b"".join(line.raw for line in lines))
        offset = self.mark.offset + len(block)
        while block:
            block = block[file.write(block) :]
        self.mark = Mark(offset, lines[-1].seq, self.mark.lines + len(lines))

    def settle(self) -> Mark:
        """Bring what was written to the disk, and return the place up to which that is so."""
        if self._file:
            os.fsync(self._file.fileno())
        return self.mark

    def _recover(self, file: BinaryIO) -> None:
        if os.fstat(file.fileno()).st_size < self.mark.offset:
            raise RunError(f"{self.path} was changed: {_ANEW}")
        file.seek(self.mark.offset)
        for mark in _whole(file, self.mark):
            self.mark = mark
        file.truncate(self.mark.offset)
        file.seek(self.mark.offset)

    def _open(self) -> BinaryIO:
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0)
        # Without a buffer: what is written is in the file, whatever becomes of this process.
        file = open(os.open(self.path, flags, 0o666), "r+b", buffering=0)  # noqa: PTH123, SIM115  # closed on exit
        self._file = file
        if not _lock(file):
            raise RunError(f"another program writes {self.path}")
        return file


def _whole(file: BinaryIO, mark: Mark) -> Iterator[Mark]:
    """Yield the place behind each line that is whole, until one is not."""
    with os.fdopen(os.dup(file.fileno()), "rb") as reader:
        for raw in reader:
            seq = _seq(raw)
            if seq is None or seq <= mark.seq:
                return
            mark = Mark(mark.offset + len(raw), seq, mark.lines + 1)
            yield mark


def _seq(raw: bytes) -> int | None:
    """Return the place of a whole line among the bulk's; None for one that is not whole."""
    try:
        seq = json.loads(raw)["seq"] if raw.endswith(b"\n") else None
    except (ValueError, KeyError, TypeError):
        return None
    return seq if isinstance(seq, int) else None


def _lock(file: BinaryIO) -> bool:
    """Keep others from the file while it is open; where the system cannot, nobody is kept."""
    try:
        import fcntl
    except ImportError:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _sync_folder(folder: Path) -> None:
    """Bring a new name in a folder to the disk, where folders can be opened."""
    if os.name != "posix":
        return
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
