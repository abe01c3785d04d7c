"""A service on loopback that speaks the API of bulks, and fails when it is told to: real HTTP, broken on purpose.

Its lines end at a steady rate by themselves. A line with `[[fail]]` fails; one that is no JSON cannot run.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit


@dataclass(frozen=True, slots=True)
class Asked:
    """One request as it came; the names of `headers` are in lower case."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes = field(repr=False)

    @property
    def document(self) -> Any:
        """Return the body, read as JSON."""
        return json.loads(self.body)


@dataclass(frozen=True, slots=True)
class Fault:
    """What one request gets instead of its answer: a refusal; or part of it, and then the connection ends."""

    status: int = 503
    headers: dict[str, str] = field(default_factory=dict)
    document: Any = field(default_factory=lambda: {"detail": "busy", "code": "busy"})
    cut: bool = False
    after_it_is_done: bool = False


@dataclass(slots=True)
class Made:
    """A bulk: what was asked for, and when it began."""

    id: str
    params: dict[str, Any]
    lines: list[tuple[int, dict[str, Any] | None]]
    began: float
    rate: float
    stopped: int | None = None
    retry_of: str | None = None

    def ended(self) -> int:
        """Return how many lines have ended."""
        due = int((time.monotonic() - self.began) * self.rate)
        return len(self.lines) if self.stopped is not None else min(len(self.lines), due)

    def results(self) -> list[dict[str, Any]]:
        """Return the lines that have ended, in the order in which they did."""
        return [self._result(seq) for seq in range(1, self.ended() + 1)]

    def _result(self, seq: int) -> dict[str, Any]:
        number, line = self.lines[seq - 1]
        state = "succeeded"
        error = None
        if self.stopped is not None and seq > self.stopped:
            state, error = "cancelled", {"code": "cancelled", "message": "The bulk was cancelled.", "status": None}
        elif line is None:
            state, error = "failed", {"code": "invalid_json_line", "message": "This line is no JSON.", "status": None}
        elif "[[fail]]" in json.dumps(line) and not self.params.get("mended"):
            state, error = "failed", {"code": "engine_error", "message": "It would not.", "status": 400}
        text = f"echo: {(line or {}).get('prompt')}"
        answer = {"choices": [{"message": {"role": "assistant", "content": text}}]}
        return {
            "seq": seq,
            "line": number,
            "custom_id": (line or {}).get("custom_id"),
            "job_id": f"job_{seq}" if line is not None else None,
            "state": state,
            "model": "fake",
            "result": answer if state == "succeeded" else None,
            "error": error,
            "usage": None,
            "finished_at": 0.0,
            "something": "that a newer service tells",
        }

    def document(self) -> dict[str, Any]:
        """Return the bulk as the service tells of it."""
        found = self.results()
        states = [result["state"] for result in found]
        done = len(found) == len(self.lines)
        state = "running" if not done else "cancelled" if self.stopped is not None else "completed"
        counts = {name: states.count(name) for name in ("succeeded", "failed", "cancelled", "expired")}
        report = None
        if self.params.get("dry_run"):
            bad = [
                {"code": "invalid_json_line", "message": "no JSON", "line": n} for n, line in self.lines if line is None
            ]
            report = {"lines": len(self.lines), "valid": len(self.lines) - len(bad), "invalid": len(bad)}
            report |= {"tokens": 10, "errors": bad, "eta": 1.0}
        return {
            "id": self.id,
            "object": "bulk",
            "kind": "bulk",
            "state": state,
            "lane": self.params.get("lane", "bulk"),
            "paused": self.params.get("lane") == "paused",
            "model": "fake",
            "created_at": 0.0,
            "counts": {"total": len(self.lines), "queued": len(self.lines) - len(found), "running": 0, **counts},
            "counted": True,
            "tokens_per_second": 100.0,
            "eta": (len(self.lines) - len(found)) / self.rate,
            "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
            "errors": [],
            "report": report,
            "retry_of": self.retry_of,
        }


class BulkService:
    """The service while it runs: what came and was asked, what it has, and the faults that come next.

    Whoever holds `lock` keeps it from answering what has `arrived`, whole.
    """

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.arrived: list[str] = []
        self.bulks: dict[str, Made] = {}
        self.faults: list[tuple[Callable[[Asked], bool], Fault]] = []
        self.rate = 1e9
        self.keys: dict[str, Any] = {}
        self.files: dict[str, bytes] = {}
        self.url = ""
        self.lock = threading.Lock()

    def hurry(self, rate: float = 1e9) -> None:
        """End lines at another rate from now on, and as if since they began."""
        self.rate = rate
        for made in self.bulks.values():
            made.rate = rate

    def fail(self, times: int, when: Callable[[Asked], bool] = lambda _: True, **fault: Any) -> None:
        """Fail the next requests that are so."""
        self.faults += [(when, Fault(**fault))] * times

    def fault(self, asked: Asked) -> Fault | None:
        """Return the fault that this request meets."""
        for place, (when, fault) in enumerate(self.faults):
            if when(asked):
                del self.faults[place]
                return fault
        return None

    def answer(self, asked: Asked) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body."""
        key = asked.headers.get("idempotency-key")
        if key in self.keys:
            return self.keys[key]
        status, headers, found = self._found(asked)
        body = found if isinstance(found, bytes) else json.dumps(found).encode()
        if key:
            self.keys[key] = (status, headers, body)
        return status, headers, body

    def _found(self, asked: Asked) -> tuple[int, dict[str, str], Any]:
        parts = asked.path.strip("/").split("/")[1:]
        if parts[0] == "files":
            return self._file(asked, parts)
        if parts == ["bulks"]:
            if asked.method == "POST":
                return 202, {}, self._make(asked).document()
            return 200, {}, {"object": "list", "data": [made.document() for made in self.bulks.values()]}
        made = self.bulks.get(parts[1])
        if made is None:
            return 404, {"X-Request-Id": "req_1"}, {"detail": "There is no such bulk.", "code": "not_found"}
        verb = parts[2] if len(parts) > 2 else asked.method
        return self._of(made, verb, asked)

    def _of(self, made: Made, verb: str, asked: Asked) -> tuple[int, dict[str, str], Any]:
        if verb in {"results", "errors"}:
            return self._lines(made, verb, asked)
        if verb == "cancel":
            if made.ended() == len(made.lines):
                return 409, {"x-should-retry": "false"}, {"detail": "The bulk has ended.", "code": "already_finished"}
            made.stopped = made.ended()
        elif verb == "pause":
            made.params["lane"] = "paused"
        elif verb == "resume":
            made.params["lane"] = "bulk"
        elif verb == "PATCH":
            made.params.update(asked.document)
        elif verb == "retry":
            bad = {result["line"] for result in made.results() if result["state"] != "succeeded"}
            again = [line for line in made.lines if line[0] in bad]
            new = Made(f"bulk_{uuid.uuid4().hex}", asked.document, again, time.monotonic(), self.rate, None, made.id)
            self.bulks[new.id] = new
            return 202, {}, new.document()
        elif verb == "DELETE":
            del self.bulks[made.id]
            return 200, {}, {"id": made.id, "object": "bulk", "deleted": True}
        return 200, {}, made.document()

    def _lines(self, made: Made, verb: str, asked: Asked) -> tuple[int, dict[str, str], Any]:
        after, limit = int(asked.query.get("after", 0)), int(asked.query.get("limit", 10**9))
        headers = {"Content-Type": "application/x-ndjson"}
        if made.document()["state"] == "running":
            headers["X-Incomplete"] = "true"
        good = verb == "results"
        found = [one for one in made.results() if one["seq"] > after and (one["state"] == "succeeded") == good]
        if asked.query.get("format") == "csv":
            text = io.StringIO()
            csv.writer(text).writerows([(one["line"], one["state"]) for one in found])
            return 200, headers, text.getvalue().encode()
        return 200, headers, "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in found[:limit]).encode()

    def _make(self, asked: Asked) -> Made:
        params: dict[str, Any] = dict(asked.query)
        if asked.headers["content-type"] == "application/json":
            params |= asked.document
            raw = b'{"prompt": "fetched"}\n'
        else:
            raw = asked.body
        if asked.headers.get("content-encoding") == "gzip":
            raw = gzip.decompress(raw)
        if asked.headers["content-type"] == "text/csv":
            texts = [json.dumps(row) for row in csv.DictReader(io.StringIO(raw.decode()))]
        else:
            texts = raw.decode().removesuffix("\n").split("\n")
        lines = [(number, _read(text)) for number, text in enumerate(texts, 1)]
        made = Made(f"bulk_{uuid.uuid4().hex}", params, lines, time.monotonic(), self.rate)
        self.bulks[made.id] = made
        return made

    def _file(self, asked: Asked, parts: list[str]) -> tuple[int, dict[str, str], Any]:
        if asked.method == "POST":
            file_id = f"file-{uuid.uuid4().hex}"
            self.files[file_id] = asked.body
            return 200, {}, {"id": file_id, "object": "file", "bytes": len(asked.body), "status": "processed"}
        if parts[-1] == "content":
            return 200, {}, self.files[parts[1]]
        return 200, {}, {"object": "list", "data": [{"id": file_id} for file_id in self.files]}


def _read(text: str) -> dict[str, Any] | None:
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    service: BulkService

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except ConnectionError:
            self.close_connection = True

    def _do(self) -> None:
        try:
            body = b"".join(self._blocks())
        except (EOFError, ValueError, ConnectionError):
            self.close_connection = True  # the client went away in the middle
        else:
            self._answer(body)

    def _answer(self, body: bytes) -> None:
        parts = urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        asked = Asked(self.command, parts.path, query, headers, body)
        self.service.arrived.append(self.command)
        with self.service.lock:
            self.service.asked.append(asked)
            fault = self.service.fault(asked) or Fault(200)
            done = fault.status == 200 or fault.after_it_is_done or fault.cut
            answer = self.service.answer(asked) if done else self._refusal(fault)
        if fault.after_it_is_done:
            self.close_connection = True
        else:
            self._send(*answer, cut=fault.cut)

    def _refusal(self, fault: Fault) -> tuple[int, dict[str, str], bytes]:
        return fault.status, fault.headers, json.dumps(fault.document).encode()

    do_GET = do_POST = do_PATCH = do_DELETE = _do  # noqa: N815  # the base's names

    def _blocks(self) -> Iterator[bytes]:
        if self.headers.get("transfer-encoding") == "chunked":
            while size := int(self.rfile.readline().strip(), 16):
                yield self._exactly(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            yield self._exactly(int(self.headers.get("content-length", 0)))

    def _exactly(self, size: int) -> bytes:
        block = self.rfile.read(size)
        if len(block) < size:
            raise EOFError
        return block

    def _send(self, status: int, headers: dict[str, str], body: bytes, *, cut: bool = False) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) * 2 // 3] if cut else body)
        self.close_connection = self.close_connection or cut

    def log_message(self, *_: object) -> None:
        """Write nothing."""


@contextmanager
def bulk_service() -> Iterator[BulkService]:
    """Run a service on a free port."""
    service = BulkService()
    handler = type("Handler", (_Handler,), {"service": service})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        service.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield service
        finally:
            server.shutdown()
            thread.join()
