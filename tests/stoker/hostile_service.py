"""A service on loopback whose every text tries to steer the terminal that it is shown in."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

MARK = "EVIL"
EVIL = f"\x1b]0;{MARK}\x07\x1b[2J\r\n\x9b31m\u202e\x08\x7f"
"""It would set the window's title, clear the screen, go back, ring, colour, and turn text around."""

_ERROR = {"code": EVIL, "message": EVIL, "line": 1}
_TOKENS = {"prompt_tokens": 1, "completion_tokens": 2}
_ANSWER = {"choices": [{"message": {"content": EVIL}}]}
_TIMES = {"created_at": 0.0, "finished_at": 1.0}


def _job(state: str) -> dict[str, Any]:
    told = {"id": EVIL, "state": state, "lane": EVIL, "model": EVIL, "endpoint": EVIL, "attempts": 1, "usage": _TOKENS}
    good = state == "succeeded"
    return told | _TIMES | {"result": _ANSWER if good else None, "error": None if good else _ERROR}


def _bulk(state: str) -> dict[str, Any]:
    counts = {"total": 2, "succeeded": 1, "failed": 1}
    report = {"lines": EVIL, "invalid": EVIL, "tokens": EVIL, "errors": [_ERROR], "eta": 1.0}
    told = {"id": EVIL, "state": state, "lane": EVIL, "counts": counts, "usage": dict.fromkeys(_TOKENS, EVIL)}
    return told | _TIMES | {"errors": [_ERROR], "report": report}


def _batch(state: str) -> dict[str, Any]:
    counts = {"total": EVIL, "completed": 1, "failed": 1}
    told = {"id": EVIL, "status": state, "endpoint": EVIL, "request_counts": counts, "output_file_id": "file-1"}
    return told | _TIMES | {"errors": {"data": [_ERROR]}}


_HOOK = {"id": EVIL, "name": EVIL, "url": EVIL, "event_types": [EVIL], "signing_secret": EVIL, "enabled": False}
_HOOK |= {"disabled_reason": EVIL}
_TRY = {"attempt": 1, "at": 0.0, "error": EVIL, "status_code": None, "latency_ms": 1}
_DELIVERY = {"id": EVIL, "state": EVIL, "event": EVIL, "job_id": EVIL, "url": EVIL, "error": EVIL, "tries": [_TRY]}
_USAGE = {"date": EVIL, "owner": EVIL, "model": EVIL, "jobs": {"failed": EVIL}, "tokens": {}}
_WAITS = dict.fromkeys(("queued", "delayed", "batched", "running"), 1) | {"oldest_seconds": 1.0}
_OVERVIEW = {"object": "overview", "minutes": 60, "queue": [{"model": EVIL, "lane": EVIL, **_WAITS}], "engines": None}
_LINE = {"seq": 1, "line": 1, "state": EVIL, "custom_id": EVIL, "error": _ERROR, "result": EVIL}
_KINDS = {"jobs": _job, "bulks": _bulk, "batches": _batch}
_OTHERS = {"webhook_endpoints": _HOOK, "deliveries": _DELIVERY, "usage": _USAGE, "overview": _OVERVIEW}


def _found(method: str, parts: list[str], query: str) -> Any:
    """Return an answer: a document, or bytes as they are sent."""
    kind, ident, verb, *_ = [*parts, "", "", ""]
    if kind == "files":
        return EVIL.encode() if verb else {"id": EVIL}
    if verb == "events":
        events = [("chunk", {"choices": [{"index": 0, "delta": {"content": EVIL}}]}), ("end", _job(ident))]
        return "".join(f"event: {name}\ndata: {_json(data)}\n\n" for name, data in events).encode()
    if verb in {"results", "errors"}:
        return b"" if "after=1" in query else f"{_json(_LINE)}\n".encode()
    if kind in _KINDS:
        good = "succeeded" if kind == "jobs" else "completed"
        found = _KINDS[kind]("failed" if ident == "failed" else good)
    else:
        found = _OTHERS[kind]
    if verb == "test":
        return {"status_code": 500}
    return found if ident or method == "POST" or kind == "overview" else {"data": [found]}


def _json(document: Any) -> str:
    return json.dumps(document, ensure_ascii=False)


class _Handler(BaseHTTPRequestHandler):
    def _do(self) -> None:
        if size := int(self.headers.get("Content-Length", 0)):
            self.rfile.read(size)
        elif self.headers.get("Transfer-Encoding"):
            while block := int(self.rfile.readline(), 16):
                self.rfile.read(block + 2)
        asked = urlsplit(self.path)
        refused = "refused" in asked.path
        found = {"detail": EVIL} if refused else _found(self.command, asked.path.split("/")[2:], asked.query)
        body = found if isinstance(found, bytes) else _json(found).encode()
        self.send_response(403 if refused else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PATCH = do_DELETE = _do  # noqa: N815  # the base's names

    def log_message(self, *_: object) -> None:
        """Write nothing."""


@contextmanager
def hostile_service() -> Iterator[str]:
    """Run it, and give its address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
