"""A disk that can be full: a small file system in memory, filled to its last block and emptied again."""

from __future__ import annotations

import errno
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SIZE = 1_000_000_000
_BLOCK = 1 << 20


class Disk:
    """A mounted folder; `outside` is one for what must not run out of room, as the logs of witnesses."""

    def __init__(self, folder: Path, outside: str) -> None:
        self.folder = folder
        self.outside = outside
        self._ballast = folder / "ballast"

    def fill(self) -> None:
        """Leave no room."""
        block = b"\1" * _BLOCK
        with self._ballast.open("ab", buffering=0) as out:
            while block:
                try:
                    out.write(block)
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
                    block = block[: len(block) // 2]

    def empty(self) -> None:
        """Give the room back."""
        self._ballast.unlink(missing_ok=True)


@contextmanager
def disk() -> Iterator[Disk | None]:
    """Mount a small disk, on which temporary folders are made meanwhile; None where this user may not mount."""
    folder = Path(tempfile.mkdtemp(prefix="stoker-disk-"))
    mounted = os.geteuid() == 0 and _mount(folder)
    before, outside = tempfile.tempdir, tempfile.gettempdir()
    tempfile.tempdir = str(folder) if mounted else before
    try:
        yield Disk(folder, outside) if mounted else None
    finally:
        tempfile.tempdir = before
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=False)
        folder.rmdir()


def _mount(folder: Path) -> bool:
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE},mode=755", "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0
