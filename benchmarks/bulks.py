"""A client of /v1/bulks for the benchmarks: uploads a file as it is, looks, and reads the lines that ended."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

from benchmarks import load
from benchmarks.service import BenchmarkError

_BLOCK = 1 << 18


@dataclass(frozen=True)
class Client:
    """A client of the service at `url`, with an API key or without one."""

    url: str
    key: str = ""

    def upload(self, file: Path, **parameters: object) -> dict[str, Any]:
        """Submit a file of JSON Lines as a bulk; return its document."""
        with file.open("rb") as body:
            headers = {"Content-Type": "application/x-ndjson", "Content-Length": str(file.stat().st_size)}
            with self._answer("POST", f"/v1/bulks?{urlencode(parameters)}", body, headers) as answer:
                return _document(answer, 202)

    def call(self, method: str, path: str, value: object = None, expected: int = 200) -> dict[str, Any]:
        """Send a request with a JSON body, or without one; return the answer's document."""
        body = None if value is None else json.dumps(value).encode()
        headers = {} if value is None else {"Content-Type": "application/json"}
        with self._answer(method, path, body, headers) as answer:
            return _document(answer, expected)

    def ended(self, bulk_id: str, which: str) -> Iterator[dict[str, Any]]:
        """Yield the lines of an ended bulk: `results` or `errors`. Raises BenchmarkError when more may come."""
        with self._answer("GET", f"/v1/bulks/{bulk_id}/{which}", None, {}) as answer:
            if answer.status != 200 or answer.getheader("X-Incomplete"):
                raise BenchmarkError(f"not all {which} are there: {answer.status}")
            yield from map(json.loads, _lines(answer))

    @contextmanager
    def _answer(self, method: str, path: str, body: Any, headers: dict[str, str]) -> Iterator[http.client.HTTPResponse]:
        address = urlsplit(self.url)
        connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=600, blocksize=_BLOCK)
        known = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        try:
            connection.request(method, path, body, headers | known)
            yield connection.getresponse()
        finally:
            connection.close()


def _document(answer: http.client.HTTPResponse, expected: int) -> dict[str, Any]:
    text = answer.read()
    if answer.status != expected:
        raise BenchmarkError(f"{answer.status} instead of {expected}: {text[:500]!r}")
    document: dict[str, Any] = json.loads(text)
    return document


def _lines(answer: http.client.HTTPResponse) -> Iterator[bytes]:
    left = b""
    while block := answer.read1(_BLOCK):
        *whole, left = (left + block).split(b"\n")
        yield from whole
    if left:
        yield left


def write(file: Path, lines: Iterable[bytes]) -> int:
    """Write the lines of a bulk; return the bytes."""
    with file.open("wb") as out:
        return sum(map(out.write, load.packed(lines)))
