"""Secrets, prompts and outputs are planted in a thousand requests, and looked for wherever they must not be."""

from __future__ import annotations

import gzip
import itertools
import json
import random
import secrets
import sqlite3
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from models import keys
from models.db import Database
from tests import servers
from tests.journeys.running import Up, left_of
from tests.receivers import Receiver, Reply, receiver
from tests.tasks.inprocess import until

pytestmark = [pytest.mark.journey, pytest.mark.timeout(600)]

REQUESTS = 1000
AT_ONCE = 8
CHAT = "/v1/chat/completions"


@dataclass(slots=True)
class Canary:
    """A word that is planted everywhere, and all the forms in which it, or a secret of the service, may come out."""

    word: str = field(default_factory=lambda: f"kanarie{secrets.token_hex(4)}")
    others: dict[str, str] = field(default_factory=dict)
    count: Iterator[int] = field(default_factory=itertools.count)

    def __call__(self, where: str = "") -> str:
        """Return a text to plant."""
        return f"{where} {self.word} {next(self.count)}".strip()

    def bare(self) -> str:
        """Return one without blanks."""
        return f"{self.word}{next(self.count)}"

    def secret(self) -> str:
        """Return a signing secret with the word in it: 15 bytes, so that its base64 is the same wherever it stands."""
        return "whsec_" + b64encode(self.word.encode() * 2).decode()

    def forms(self) -> dict[str, bytes]:
        """Return what is looked for, by what it is."""
        plain = {"the word": self.word, "in base64": b64encode(self.word.encode()).decode(), **self.others}
        return {name: text.encode() for name, text in plain.items()}

    def found_in(self, texts: Iterable[tuple[str, bytes]]) -> list[str]:
        """Return where which form stands, with what is around it."""
        return [
            f"{where}: {name}: {text[max(0, text.index(form) - 300) : text.index(form) + 100]!r}"
            for where, text in texts
            for name, form in self.forms().items()
            if form in text
        ]


Request = Callable[[Canary, random.Random], dict[str, Any]]


def _post(path: str, body: Any, **more: Any) -> dict[str, Any]:
    return {"method": "POST", "url": path, "json": body, **more}


def _upload(canary: Canary, lines: bytes, **fields: str) -> dict[str, Any]:
    return {"method": "POST", "url": "/v1/files", "files": {"file": (f"{canary.bare()}.jsonl", lines)}, "data": fields}


def _lines(canary: Canary, count: int = 2) -> bytes:
    message = {"role": "user", "content": canary("prompt")}
    body = {"model": "fake", "messages": [message]}
    line = {"custom_id": canary.bare(), "method": "POST", "url": CHAT, "body": body}
    return b"".join(json.dumps(line | {"custom_id": f"{canary.bare()}-{n}"}).encode() + b"\n" for n in range(count))


def _hook(canary: Canary, url: str, **more: Any) -> dict[str, Any]:
    return {"url": f"{url}/{canary.bare()}?token={canary.bare()}", "secret": canary.secret(), **more}


def _bulk(content: bytes, **more: Any) -> dict[str, Any]:
    headers = {"Content-Type": "application/x-ndjson"}
    return {"method": "POST", "url": "/v1/bulks", "content": content, "headers": headers, "params": more}


def _chat(canary: Canary, **more: Any) -> dict[str, Any]:
    return _post(CHAT, {"messages": [{"role": "user", "content": canary("prompt")}], **more})


def _key(canary: Canary) -> dict[str, str]:
    return {"Idempotency-Key": canary.bare()}


def requests(receiving: str, away: str, file_id: str) -> list[Request]:
    """Return requests of every kind: good ones, malformed ones, hostile ones."""
    deep = "[" * 5000
    return [
        lambda c, r: _post("/v1/jobs", {"prompt": c("prompt"), "metadata": {"a": c("meta")}}, headers=_key(c)),
        lambda c, r: _post("/v1/jobs", {"prompt": c(), "webhook": _hook(c, receiving, include_result=True)}),
        lambda c, r: _post("/v1/jobs", {"prompt": c(), "webhook": _hook(c, away)}),
        lambda c, r: _post("/v1/jobs", {"prompt": c(), "webhook": _hook(c, "https://10.0.0.1")}),
        lambda c, r: _post("/v1/jobs", {"prompt": c(), "webhook": _hook(c, f"https://{c.bare()}:x@[::1")}),
        lambda c, r: _post("/v1/jobs", {"prompt": c(), "webhook": {"url": receiving, "secret": c.bare()}}),
        lambda c, r: _post("/v1/jobs", {"prompt": c(), "temperature": c()}),
        lambda c, r: _post("/v1/jobs", {"prompt": [c()], "metadata": {"a": [c()]}}),
        lambda c, r: _post("/v1/jobs", {"prompt": c(), "messages": c()}),
        lambda c, r: {"method": "POST", "url": "/v1/jobs", "content": f'{{"prompt": "{c()}'},
        lambda c, r: {"method": "POST", "url": "/v1/jobs", "content": f'{{"prompt": "{c()}", "x": {deep}'},
        lambda c, r: {"method": "POST", "url": "/v1/jobs", "content": f'{{"prompt": "{c()}\x00\\u0000"}}'},
        lambda c, r: {"method": "POST", "url": "/v1/jobs", "content": c().encode() + b"\xff\xfe"},
        lambda c, r: _post("/v1/jobs", {"prompt": c()}, headers={"Idempotency-Key": f"{c()} x"}),
        lambda c, r: {"method": "GET", "url": "/v1/jobs", "params": {"after": c(), "limit": c(), "metadata.a": c()}},
        lambda c, r: {"method": "GET", "url": "/v1/jobs/job_1", "params": {"wait": c()}},
        lambda c, r: {"method": "GET", "url": "/v1/models", "params": {"x": c.bare()}},
        lambda c, r: {"method": "GET", "url": "/nothing", "params": {"key": c.bare()}},
        lambda c, r: {"method": "GET", "url": "/v1/jobs", "headers": {"Authorization": f"Bearer sk-stoker-{c.bare()}"}},
        lambda c, r: {"method": "GET", "url": "/v1/jobs", "headers": {"Authorization": f"Basic {c.bare()}"}},
        lambda c, r: {"method": "GET", "url": "/v1/jobs", "headers": {"X-Request-Id": c("bad id")}},
        lambda c, r: {"method": "GET", "url": "/v1/jobs", "headers": {"Cookie": f"stoker_session={c.bare()}.x.y"}},
        lambda c, r: {"method": "POST", "url": "/dashboard/login", "data": {"key": c.bare(), "csrf": c.bare()}},
        lambda c, r: _post("/dashboard/login", {"key": c.bare()}, params={"key": c.bare()}),
        lambda c, r: _bulk(_lines(c), metadata=json.dumps({"a": c()}), webhook=json.dumps(_hook(c, away))),
        lambda c, r: _bulk(gzip.compress(_lines(c))[:-9]),
        lambda c, r: _bulk(c().encode() * 3, seed=c()),
        lambda c, r: _post("/v1/bulks", {"requests": [{"prompt": c()}, {"promt": c()}], "webhook": _hook(c, away)}),
        lambda c, r: _post("/v1/bulks", {"requests": [{"prompt": c()}], "system": c(), "metadata": {"b": c()}}),
        lambda c, r: _post("/v1/bulks", {"input_url": f"s3://{c.bare()}/x?{c.bare()}"}),
        lambda c, r: _upload(c, _lines(c), purpose="batch"),
        lambda c, r: _upload(c, c().encode(), purpose=c.bare()),
        lambda c, r: {
            "method": "POST",
            "url": "/v1/files",
            "content": c().encode(),
            "headers": {"Content-Type": c.bare()},
        },
        lambda c, r: _post("/v1/batches", {"input_file_id": c.bare(), "endpoint": c.bare(), "completion_window": c()}),
        lambda c, r: _post("/v1/batches", {"input_file_id": "file-1", "metadata": {"a": {"b": c()}}}, headers=_key(c)),
        lambda c, r: _post(
            "/v1/batches",
            {"input_file_id": file_id, "endpoint": CHAT, "completion_window": "24h", "metadata": {"a": c()}},
        ),
        lambda c, r: _chat(c),
        lambda c, r: _chat(c, stream=True),
        lambda c, r: _chat(c, temperature=c()),
        lambda c, r: _chat(c, tools=[{"type": c(), "function": c()}]),
        lambda c, r: _post(CHAT, {"messages": c()}, headers=_key(c)),
        lambda c, r: _post("/v1/responses", {"input": c(), "instructions": c(), "background": True}),
        lambda c, r: _post("/v1/completions", {"prompt": c(), "max_tokens": 4}),
        lambda c, r: _post(
            "/v1/webhook_endpoints", {"name": c(), "url": f"{receiving}/?t={c.bare()}", "event_types": [c()]}
        ),
        lambda c, r: _post(
            "/v1/webhook_endpoints",
            {"name": c(), "url": f"{away}/{c.bare()}?t={c.bare()}", "event_types": ["bulk.completed"]},
            headers=_key(c),
        ),
        lambda c, r: {"method": "GET", "url": "/v1/deliveries", "params": {"after": c.bare(), "state": c()}},
        lambda c, r: {"method": r.choice(["PUT", "PATCH", "DELETE"]), "url": "/v1/jobs", "content": c()},
    ]


def _listed(
    client: httpx.Client, canary: Canary, wanted: list[Request]
) -> tuple[Counter[int], list[tuple[str, bytes]]]:
    """Send the requests; return how they were answered, and the bodies of errors."""
    chance = random.Random(6)
    made = [kind(canary, chance) for kind in itertools.islice(itertools.cycle(wanted), REQUESTS)]
    sent = {"Authorization": client.headers.pop("Authorization"), "Content-Type": "application/json"}

    def send(request: dict[str, Any]) -> httpx.Response:
        typed = {name: value for name, value in sent.items() if name != "Content-Type" or "content" in request}
        return client.request(**{**request, "headers": typed | dict(request.get("headers", {}))})

    with ThreadPoolExecutor(AT_ONCE) as pool:
        answers = list(pool.map(send, made))
    wrong = [(f"error {n} {made[n]['url']}", it.content) for n, it in enumerate(answers) if it.status_code >= 400]
    return Counter(it.status_code for it in answers), wrong


def _files(data: Path) -> Iterator[tuple[str, bytes]]:
    """Return what the service has written about itself."""
    for file in [*(data / "logs").rglob("*"), *(data / "run").rglob("*"), *(data / "metrics").rglob("*")]:
        if file.is_file():
            yield str(file.relative_to(data)), file.read_bytes()


def _processes(data: Path) -> Iterator[tuple[str, bytes]]:
    for pid in left_of(data):
        yield f"command of {pid}", Path(f"/proc/{pid}/cmdline").read_bytes()


def _failing(received: Any) -> Reply:
    """Answer one in three well, and the others with an error that repeats what came."""
    status = (200, 500, 404)[len(received.body) % 3]
    return Reply(status, {"x-echo": received.path}, received.body)


@pytest.fixture
def failing() -> Iterator[Receiver]:
    """Run a receiver that mostly fails."""
    with receiver() as running:
        running.answer = _failing
        yield running


def test_no_secret_prompt_or_output_is_told(data: Path, failing: Receiver) -> None:
    """Not in a log at level debug, not in metrics, errors, settings or commands; whatever is sent, and however."""
    canary = Canary()
    given = {"STOKER_WEBHOOK_SECRET": canary.secret(), "STOKER_SECRET_KEY": b64encode(b"kanarie-" * 4).decode()}
    canary.others["the secret key"] = given["STOKER_SECRET_KEY"]
    quick = {"STOKER_WEBHOOK_SCHEDULE": "0,1,1", "STOKER_LOG_LEVEL": "debug"}
    up = Up(data, STOKER_WEBHOOK_ALLOW_CIDRS="127.0.0.1/32", **quick, **given)
    url = up.url()
    key = _owner(data)
    canary.others["the API key"] = key
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=60) as client:
        cookie = _login(client, key)
        canary.others["the cookie of a session"] = cookie
        away = f"http://127.0.0.1:{servers.free_port()}"
        wanted = requests(failing.url, away, _prepared(client, canary, failing.url))
        statuses, wrong = _listed(client, canary, wanted)
        until(lambda: _ended(data), 300)
        metrics = client.get("/metrics").content
        assert canary.found_in(_processes(data)) == []
    assert sum(statuses.values()) == REQUESTS
    assert {200, 202, 400, 401, 404, 415, 422} <= statuses.keys()
    assert 500 not in statuses, statuses
    assert len(failing.received) > 20
    assert up.end() == 0
    told = "\n".join(up.lines).encode()
    found = canary.found_in([("/metrics", metrics), ("stoker up", told), *wrong, *_files(data)])
    assert found == [], found[0]
    # Where it is meant to be, it is: the search finds it there.
    assert canary.found_in([("the database", (data / "stoker.db").read_bytes())])
    assert (data / "logs/web.log").stat().st_size > 0


def _prepared(client: httpx.Client, canary: Canary, receiving: str) -> str:
    """Have an endpoint told of every job, and upload a file of a batch; return its id."""
    told = {"name": canary(), "url": f"{receiving}/?t={canary.bare()}", "event_types": ["job.succeeded", "job.failed"]}
    made = client.post("/v1/webhook_endpoints", json={**told, "include_result": True, "coalesce": 1})
    assert made.status_code == 200, made.text
    canary.others["the secret of an endpoint"] = made.json()["signing_secret"]
    uploaded = client.request(**_upload(canary, _lines(canary), purpose="batch"))
    return str(uploaded.json()["id"])


def _owner(data: Path) -> str:
    """Make a key for alice, and return it."""
    with closing(Database(f"sqlite:///{data}/stoker.db")) as database, database.transaction() as tx:
        return keys.create(tx, "alice").secret


def _login(client: httpx.Client, key: str) -> str:
    """Log in to the dashboard, and return the cookie."""
    until(lambda: 'name="csrf"' in client.get("/dashboard").text)
    token = client.get("/dashboard").text.split('name="csrf" value="')[1].split('"')[0]
    assert client.post("/dashboard/login", data={"key": f"{key}x", "csrf": token}).status_code == 401
    answer = client.post("/dashboard/login", data={"key": key, "csrf": token})
    assert answer.status_code == 303
    found = str(client.cookies["stoker_session"])
    client.cookies.clear()
    return found


def _ended(data: Path) -> bool:
    """Tell whether all jobs and deliveries have ended."""
    with closing(sqlite3.connect(f"file:{data}/stoker.db?mode=ro", uri=True)) as database:
        jobs = "SELECT count(*) FROM jobs WHERE state IN ('queued', 'batched', 'running')"
        hooks = "SELECT count(*) FROM deliveries WHERE state IN ('pending', 'sending')"
        return not any(database.execute(asked).fetchone()[0] for asked in (jobs, hooks))


@pytest.mark.parametrize("where", ["logs/web.log", "run/settings.json", "logs/worker.log.1"])
def test_a_canary_that_is_there_is_found(where: str, data: Path) -> None:
    """Plain or in base64, in the midst of other things: so that finding none means something."""
    canary = Canary()
    for text in (canary("x"), canary.secret()):
        file = data / where
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("a line\n" * 1000 + f'{{"event": "{text}"}}\n')
        (found,) = canary.found_in(_files(data))
        assert found.startswith(where)
