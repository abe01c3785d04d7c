"""What the tests say and hear: a thin client without opinions, and the checks that many tests share.

Needs httpx, and nothing of the server under test.
"""

from __future__ import annotations

import itertools
import json
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

CHAT = "/v1/chat/completions"
BATCH_KEYS = {
    "id",
    "object",
    "endpoint",
    "model",
    "errors",
    "input_file_id",
    "completion_window",
    "status",
    "output_file_id",
    "error_file_id",
    "created_at",
    "in_progress_at",
    "expires_at",
    "finalizing_at",
    "completed_at",
    "failed_at",
    "expired_at",
    "cancelling_at",
    "cancelled_at",
    "request_counts",
    "usage",
    "metadata",
}
FINAL = {"completed", "failed", "expired", "cancelled"}
LATER = {
    "validating": FINAL | {"in_progress", "finalizing", "cancelling"},
    "in_progress": {"finalizing", "completed", "expired", "cancelling", "cancelled"},
    "finalizing": {"completed", "expired"},
    "cancelling": {"cancelled"},
}
"""What may be seen after a status; whoever polls may miss the ones between."""

Json = dict[str, Any]


@dataclass(frozen=True)
class Ended:
    """A batch that has ended: its last document, the statuses that were seen on the way, the lines of both files."""

    batch: Json
    seen: tuple[str, ...]
    output: Sequence[Json] = ()
    errors: Sequence[Json] = ()

    @property
    def custom_ids(self) -> list[str]:
        """Return the custom_ids of both files, sorted, with their doubles."""
        return sorted(line["custom_id"] for line in [*self.output, *self.errors])

    @property
    def faults(self) -> list[Json]:
        """Return what the validation found."""
        assert self.batch["errors"] is not None, self.batch
        found: list[Json] = self.batch["errors"]["data"]
        return found


@dataclass
class Api:
    """The server under test, as one key sees it."""

    client: httpx.Client
    model: str
    patience: float
    made: list[str] = field(default_factory=list)

    # Requests

    def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        """Send one request to a path below /v1."""
        return self.client.request(method, f"/v1{path}", **options)

    def get(self, path: str, **params: Any) -> Json:
        """Return the JSON of something that must be there."""
        return answered(self.ask("GET", path, params=params))

    def try_upload(
        self, content: Any, *, name: str = "input.jsonl", purpose: str = "batch", **fields: str
    ) -> httpx.Response:
        """Upload a file as the openai package does: the fields, then the bytes."""
        return self.ask("POST", "/files", data={"purpose": purpose, **fields}, files={"file": (name, content)})

    def upload(self, content: Any, **options: Any) -> Json:
        """Upload a file that must be taken."""
        made = answered(self.try_upload(content, **options))
        self.made.append(made["id"])
        return made

    def try_create(self, file_id: str, *, headers: Mapping[str, str] | None = None, **fields: Any) -> httpx.Response:
        """Make a batch; `fields` replace the usual ones, None leaves one out."""
        body = {"input_file_id": file_id, "endpoint": CHAT, "completion_window": "24h"} | fields
        kept = {name: value for name, value in body.items() if value is not None}
        return self.ask("POST", "/batches", json=kept, headers=headers)

    def create(self, file_id: str, **options: Any) -> Json:
        """Make a batch that must be taken."""
        return answered(self.try_create(file_id, **options))

    def start(self, *lines: Json | bytes | str, **options: Any) -> Json:
        """Upload these lines and make a batch of them."""
        return self.create(self.upload(jsonl(*lines))["id"], **options)

    def unknown_file(self) -> str:
        """Return the id of a file that was there, and is no more."""
        file_id = str(self.upload(b"{}\n")["id"])
        answered(self.ask("DELETE", f"/files/{file_id}"))
        return file_id

    # Following a batch to its end

    def states(self, batch: Json) -> Iterator[Json]:
        """Yield the batch again and again, until it has ended."""
        until, pause = time.monotonic() + self.patience, 0.05
        while True:
            yield batch
            if batch["status"] in FINAL:
                return
            assert time.monotonic() < until, f"not ended within {self.patience:.0f} s: {batch}"
            time.sleep(pause)
            pause = min(pause * 1.2, 5.0)
            batch = self.get(f"/batches/{batch['id']}")

    def end(self, batch: Json) -> Ended:
        """Wait for the end of a batch and fetch its files."""
        documents = list(self.states(batch))
        seen = tuple(status for status, _ in itertools.groupby(documents, key=lambda one: str(one["status"])))
        last, files = documents[-1], [documents[-1][name] for name in ("output_file_id", "error_file_id")]
        self.made += [file_id for file_id in files if file_id is not None]
        return Ended(last, seen, *(self.lines(file_id) for file_id in files))

    def run(self, *lines: Json | bytes | str, **options: Any) -> Ended:
        """Upload these lines, run them as a batch, and wait for its end."""
        return self.end(self.start(*lines, **options))

    def content(self, file_id: str) -> bytes:
        """Return the bytes of a file."""
        response = self.ask("GET", f"/files/{file_id}/content")
        assert response.status_code == 200, response.text
        return response.content

    def lines(self, file_id: str | None) -> list[Json]:
        """Return the lines of an output or error file, none where there is no file."""
        if file_id is None:
            return []
        return [json.loads(line) for line in self.content(file_id).splitlines()]

    # Lines

    def body(self, prompt: str = "Say hello.", **fields: Any) -> Json:
        """Return a chat, small enough for any model."""
        return {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": 8,
        } | fields

    def line(self, custom_id: str = "a", **fields: Any) -> Json:
        """Return an input line; `fields` replace those of its body."""
        return {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": self.body(**fields)}

    def refused_line(self, custom_id: str) -> Json:
        """Return a line that is well formed, and that any engine answers with 4xx."""
        return self.line(custom_id, max_tokens=-1)

    def slow_line(self, custom_id: str, words: int = 400) -> Json:
        """Return a line that takes seconds: a long text to be repeated."""
        text = "Repeat this text word by word: " + " ".join(f"word{n}" for n in range(words))
        return self.line(custom_id, prompt=text, max_tokens=3 * words)


def jsonl(*lines: Json | bytes | str) -> bytes:
    """Return these lines as JSON Lines; bytes and texts are taken as they are."""
    made = []
    for line in lines:
        if isinstance(line, dict):
            made.append(json.dumps(line).encode())
        else:
            made.append(line.encode() if isinstance(line, str) else line)
    return b"".join(line + b"\n" for line in made)


def answered(response: httpx.Response) -> Json:
    """Return the JSON of a request that must be answered with 200."""
    assert response.status_code == 200, f"{response.status_code}: {response.text[:2000]}"
    found: Json = response.json()
    return found


ANY: Any = object()
"""What the contract does not say."""


def refused(response: httpx.Response, *statuses: int, code: Any = ANY, param: Any = ANY) -> Json:
    """Check that a request was refused in OpenAI's envelope; return the error."""
    assert response.status_code in statuses, f"{response.status_code}: {response.text[:2000]}"
    assert response.headers["content-type"].partition(";")[0] == "application/json"
    error: Json = response.json()["error"]
    assert set(error) >= {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert error["message"]
    assert isinstance(error["type"], str)
    assert error["param"] is None or isinstance(error["param"], str)
    assert error["code"] is None or isinstance(error["code"], str)
    assert code is ANY or error["code"] == code
    assert param is ANY or error["param"] == param
    return error


def faulty(ended: Ended, code: Any = ANY, *, param: Any = ANY, line: Any = ANY) -> Json:
    """Check that a batch failed its validation, with a fault like this among those found; return that fault."""
    assert ended.batch["status"] == "failed", ended.batch
    for fault in ended.faults:
        wanted = {"code": code, "param": param, "line": line}
        if all(value is ANY or fault[name] == value for name, value in wanted.items()):
            return fault
    raise AssertionError(f"no fault with code {code}, param {param}, line {line} in {ended.faults}")


def every_once(ended: Ended, custom_ids: Sequence[str]) -> None:
    """Check that each custom_id is in exactly one of the two files, once."""
    assert Counter(ended.custom_ids) == Counter(custom_ids)


def moments(batch: Json) -> list[int]:
    """Return when a batch came to each of its states, in the order in which these follow."""
    names = ("created", "in_progress", "finalizing", "cancelling", "completed", "failed", "expired", "cancelled")
    return [batch[f"{name}_at"] for name in names if batch[f"{name}_at"] is not None]


def in_order(statuses: Sequence[str]) -> bool:
    """Tell whether each status may follow the one before it."""
    return all(after in LATER[before] for before, after in itertools.pairwise(statuses))


def fresh(prefix: str = "") -> str:
    """Return a text that was never used before."""
    return f"{prefix}{uuid.uuid4().hex}"
