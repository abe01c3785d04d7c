"""`/static/<version>/...`: the scripts and styles of the console, which a browser loads once and keeps for ever.

Their addresses name the version of all of them: another version is another address. Each process has them in memory, as
they are and compressed. Pages and answers are not compressed: they have secrets beside what others may have written,
and the length of both together would tell (BREACH).
"""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from pathlib import Path

from flask import Flask, Response, abort, request

FOLDER = Path(__file__).parent / "static"
ENDPOINT = "static"
FOR_EVER = "public, max-age=31536000, immutable"
_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml", ".txt": "text/plain"}
"""Not what the system's table says: with another type than these a browser runs no script."""


@dataclass(frozen=True, slots=True)
class _File:
    mimetype: str
    plain: bytes
    packed: bytes


class StaticFiles:
    """The files of a folder, by their paths in it, and the version that their contents make."""

    def __init__(self, folder: Path = FOLDER) -> None:
        paths = sorted(path for path in folder.rglob("*") if path.suffix in _TYPES)
        self._files: dict[str, _File] = {}
        digest = hashlib.sha256()
        for path in paths:
            name, plain = path.relative_to(folder).as_posix(), path.read_bytes()
            self._files[name] = _File(_TYPES[path.suffix], plain, gzip.compress(plain, mtime=0))
            digest.update(f"{name} {len(plain)} ".encode() + plain)
        self.version = digest.hexdigest()[:16]

    def address(self, name: str) -> str:
        """Return the path of a file's address. Raises KeyError for one that is not there."""
        if name not in self._files:
            raise KeyError(name)
        return f"/static/{self.version}/{name}"

    def show(self, version: str, name: str) -> Response:
        """Give a file; of another version, while web servers are changed for newer ones, the one that is here."""
        if (file := self._files.get(name)) is None:
            abort(404)
        is_packed = request.accept_encodings.quality("gzip") > 0
        answer = Response(file.packed if is_packed else file.plain, content_type=f"{file.mimetype}; charset=utf-8")
        if is_packed:
            answer.headers["Content-Encoding"] = "gzip"
        answer.headers["Vary"] = "Accept-Encoding"
        answer.headers["Cache-Control"] = FOR_EVER if version == self.version else "no-store"
        return answer


def install(app: Flask) -> None:
    """Serve the files, and let templates name them: `static("console/console.css")`."""
    files = StaticFiles()
    app.add_url_rule("/static/<version>/<path:name>", ENDPOINT, files.show)
    app.jinja_env.globals["static"] = files.address
