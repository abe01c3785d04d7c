"""The clients: threads that submit, watch, wait, stream, cancel and upload, and write down each promise they are given.

Each request that makes something has an Idempotency-Key, which its prompt and its metadata carry too, so that whatever
is stored can be told to have been asked for, and each answer to belong to its question.
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from typing import Any

import httpx

from tests.chaos.ledger import Ledger

FINAL = frozenset({"succeeded", "failed", "cancelled", "expired"})
PATIENCE = 15.0
MOST_TOKENS = 32
GIVE_UP_AFTER = 180.0
"""Seconds after the last fault in which a request that must get through still may not."""
_GIVES_UP = 0.15
_RETRIED = frozenset({409, 429, 500, 502, 503, 504, 507})


class Load:
    """A crowd of clients on one service."""

    def __init__(
        self, url: str, ledger: Ledger, seed: int, *, hook: str, threads: int = 4, pace: float = 0.15, model: str = ""
    ) -> None:
        """Prepare; a `model` is a real one, which neither repeats its prompt nor obeys marks in it."""
        self.ledger = ledger
        self.model = model
        self.statuses: Counter[str] = Counter()
        self.violations: list[str] = []
        self.slowest = 0.0
        self._url = url
        self._hook = hook
        self._pace = pace
        self._seen: dict[str, tuple[str, Any]] = {}
        self._accepted: list[str] = []
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._given_up = threading.Event()
        self._threads = [
            threading.Thread(target=self._work, args=(f"{seed}-{number}",), name=f"load-{number}", daemon=True)
            for number in range(threads)
        ]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Begin nothing new; what is under way gets through first, or is given up."""
        self._stop.set()
        until = time.monotonic() + GIVE_UP_AFTER
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        self._given_up.set()
        for thread in self._threads:
            thread.join(PATIENCE * 2)
        assert not any(thread.is_alive() for thread in self._threads), "a client hangs"

    def accepted(self) -> int:
        """Return how many requests have been promised something."""
        return len(self._accepted)

    def _work(self, name: str) -> None:
        chance = random.Random(name)
        # Nothing of the environment: no proxy reaches loopback.
        with httpx.Client(transport=httpx.HTTPTransport(), base_url=self._url, timeout=PATIENCE) as http:
            client = _Client(self, http, chance, name)
            while not self._stop.wait(chance.random() * 2 * self._pace):
                try:
                    client.act()
                except httpx.HTTPError:
                    self.count("unanswered")
                except Exception as error:  # noqa: BLE001  # the thread's edge: what a client cannot read is a finding
                    self.violate(f"a client could not go on: {type(error).__name__}: {error}")

    def count(self, what: str) -> None:
        """Count an answer."""
        with self._lock:
            self.statuses[what] += 1

    def violate(self, what: str) -> None:
        """Note a broken promise that only a client can see."""
        self.ledger.note("violation", text=what)
        with self._lock:
            self.violations.append(what)

    def promise(self, job_id: str) -> None:
        """Note a job to come back to."""
        with self._lock:
            self._accepted.append(job_id)

    def pick(self, chance: random.Random) -> str | None:
        """Return a job that was accepted."""
        with self._lock:
            return chance.choice(self._accepted) if self._accepted else None

    def end(self, job_id: str) -> str | None:
        """Return the end of a job, if one was seen."""
        seen = self._seen.get(job_id)
        return seen and seen[0]

    def look(self, job: dict[str, Any], ended: str | None) -> None:
        """Compare a job with what was seen of it before, `ended` before it was asked for: an end never changes."""
        if job["state"] not in FINAL:
            # Not by what is seen by now: another client may have asked later and be here sooner.
            if ended is not None:
                self.violate(f"job {job['id']} was {ended} and is {job['state']}")
            return
        now = (job["state"], repr(job.get("result")))
        with self._lock:
            before = self._seen.setdefault(job["id"], now)
        if before != now:
            self.violate(f"the end of job {job['id']} changed from {before[0]} to {now[0]}")

    def wait(self, seconds: float) -> bool:
        """Sleep; True when everything is to be given up."""
        return self._given_up.wait(seconds)


class _Client:
    def __init__(self, load: Load, http: httpx.Client, chance: random.Random, name: str) -> None:
        self._load = load
        self._http = http
        self._chance = chance
        self._name = name
        self._number = 0

    def act(self) -> None:
        """Do one of the things that clients do."""
        acts = {
            self._submit: 70,
            self._poll: 14,
            self._wait: 4,
            self._cancel: 4,
            self._bulk: 3,
            self._batch: 1,
            self._chat: 2,
            self._stream: 2,
        }
        self._chance.choices(list(acts), list(acts.values()))[0]()

    def _key(self) -> str:
        self._number += 1
        return f"key-{self._name}-{self._number}"

    def _mark(self) -> str:
        if self._load.model:
            return ""
        kinds = {"": 50, f"[[slow:{self._chance.uniform(0.1, 3):.2f}]] ": 45, "[[reject]] ": 2, "[[defer:1]] ": 1}
        return self._chance.choices(list(kinds), list(kinds.values()))[0]

    def _submit(self) -> None:
        key, mark = self._key(), self._mark()
        body: dict[str, Any] = {"prompt": f"{mark}{key}", "metadata": {"key": key}, "max_tokens": MOST_TOKENS}
        body["lane"] = self._chance.choices(["realtime", "standard", "bulk"], [1, 4, 5])[0]
        if self._chance.random() < 0.4:
            body["webhook_url"] = f"{self._load._hook}/{key}"
        if self._chance.random() < 0.03:
            body["expires_in"] = self._chance.choice([1, 2, 30])
        self._make("job", key, "/v1/jobs", json=body)

    def _bulk(self) -> None:
        key = self._key()
        lines = [
            f'{{"custom_id": "{n}", "prompt": "{self._mark()}{key}/{n}"}}' for n in range(self._chance.randint(1, 60))
        ]
        params = {"metadata.key": key, "max_tokens": str(MOST_TOKENS)}
        if self._chance.random() < 0.5:
            params["webhook_url"] = f"{self._load._hook}/{key}"
        content = "\n".join(lines).encode()
        self._make(
            "bulk", key, "/v1/bulks", content=content, params=params, headers={"Content-Type": "application/x-ndjson"}
        )

    def _batch(self) -> None:
        """Upload a file and make an OpenAI batch of it."""
        key = self._key()
        url = "/v1/chat/completions"
        lines = [
            json.dumps({"custom_id": str(n), "method": "POST", "url": url, "body": self._chat_body(f"{key}/{n}")})
            for n in range(self._chance.randint(1, 40))
        ]
        file = ("in.jsonl", "\n".join(lines).encode())
        sent = self._http.post("/v1/files", files={"file": file}, data={"purpose": "batch"})
        self._load.count(f"file {sent.status_code}")
        if sent.status_code != 200:
            return
        asked = {"input_file_id": sent.json()["id"], "endpoint": url, "completion_window": "24h"}
        self._make("batch", key, "/v1/batches", json={**asked, "metadata": {"key": key}})

    def _make(self, kind: str, key: str, path: str, **request: Any) -> None:
        """Ask until it is promised; some give up at the first answer that is an error."""
        gives_up = kind == "job" and self._chance.random() < _GIVES_UP
        headers = {"Idempotency-Key": key, **request.pop("headers", {})}
        self._load.ledger.note("asked", kind=kind, key=key)
        while True:
            try:
                started = time.monotonic()
                answer = self._http.post(path, headers=headers, **request)
                self._load.slowest = max(self._load.slowest, time.monotonic() - started)
            except httpx.HTTPError:
                self._load.count(f"{kind} unanswered")
                if gives_up:
                    self._load.ledger.note("unanswered", kind=kind, key=key)
                    return
            else:
                if self._heard(kind, key, answer) or gives_up:
                    return
            if self._load.wait(self._chance.uniform(0.1, 0.6)):
                self._load.ledger.note("unanswered", kind=kind, key=key)
                return

    def _heard(self, kind: str, key: str, answer: httpx.Response) -> bool:
        """Take an answer down; True when it is the last one."""
        status = answer.status_code
        self._load.count(f"{kind} {status}")
        if status in {200, 202}:
            found = answer.json()
            self._load.ledger.note("accepted", kind=kind, key=key, id=found["id"])
            if kind == "job":
                self._load.promise(found["id"])
            return True
        text = answer.text[:300]
        if status not in _RETRIED:
            self._load.violate(f"{kind} {key} was answered {status}: {text}")
            return True
        if status == 500:
            self._load.violate(f"{kind} {key} met an internal error: {text}")
        unknown = "outcome_unknown" in text or status == 409
        self._load.ledger.note("unknown" if unknown else "refused", kind=kind, key=key, status=status)
        return False

    def _poll(self) -> None:
        self._ask()

    def _wait(self) -> None:
        self._ask(wait=3)

    def _ask(self, **params: int) -> None:
        if (job_id := self._load.pick(self._chance)) is not None:
            ended = self._load.end(job_id)
            self._shown(job_id, ended, self._http.get(f"/v1/jobs/{job_id}", params=params))

    def _shown(self, job_id: str, ended: str | None, answer: httpx.Response) -> None:
        self._load.count(f"poll {answer.status_code}")
        if answer.status_code == 200:
            self._load.look(answer.json(), ended)
        elif answer.status_code not in {429, 503}:
            self._load.violate(f"looking at the accepted job {job_id} was answered {answer.status_code}")

    def _cancel(self) -> None:
        if (job_id := self._load.pick(self._chance)) is not None:
            answer = self._http.post(f"/v1/jobs/{job_id}/cancel")
            self._load.count(f"cancel {answer.status_code}")
            if answer.status_code == 200:
                self._load.ledger.note("cancelled", id=job_id)
            elif answer.status_code not in {409, 429, 503}:
                self._load.violate(f"cancelling the accepted job {job_id} was answered {answer.status_code}")

    def _chat_body(self, key: str, **more: Any) -> dict[str, Any]:
        content = f"{self._mark()}{key}"
        messages = [{"role": "user", "content": content}]
        return {"model": self._model(), "messages": messages, "max_tokens": MOST_TOKENS, **more}

    def _model(self) -> str:
        return self._load.model or "fake"

    def _is_own(self, key: str, said: str) -> bool:
        return bool(self._load.model) or key in said

    def _chat(self) -> None:
        key = self._key()
        answer = self._http.post("/v1/chat/completions", json=self._chat_body(key))
        self._load.count(f"chat {answer.status_code}")
        if answer.status_code == 200 and not self._is_own(key, answer.json()["choices"][0]["message"]["content"]):
            self._load.violate(f"the chat {key} got somebody else's answer: {answer.text[:200]}")

    def _stream(self) -> None:
        """Stream a chat: it ends whole with `[DONE]`, or says that it does not."""
        key, said = self._key(), ""
        with self._http.stream("POST", "/v1/chat/completions", json=self._chat_body(key, stream=True)) as answer:
            self._load.count(f"stream {answer.status_code}")
            if answer.status_code != 200:
                return
            for line in answer.iter_lines():
                said += line + "\n"
        events = [line.removeprefix("data: ") for line in said.splitlines() if line.startswith("data: {")]
        text = "".join(
            choice["delta"].get("content") or "" for event in events for choice in json.loads(event).get("choices", [])
        )
        if "[DONE]" in said and '"error"' not in said and not self._is_own(key, text):
            self._load.violate(f"the stream {key} was whole and not its own: {text[-200:]}")
