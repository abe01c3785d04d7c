"""Clients that wait for their answer, at a real service: the stock openai client, and faults in mid-stream."""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import httpx
import openai
import pytest

from stoker.client import Client
from tests.journeys.running import Up, left_of
from tests.tasks.inprocess import until

pytestmark = [pytest.mark.journey, pytest.mark.timeout(600)]

SLOW = {"STOKER_FAKE_TOKEN_MS": "50", "STOKER_LEASE": "10", "STOKER_HEARTBEAT": "1", "STOKER_SWEEP_EVERY": "0.5"}
CHAT = "/v1/chat/completions"
FINAL = {"succeeded", "failed", "cancelled", "expired"}


class Service:
    """A service whose engine takes its time, and ways to ask it."""

    def __init__(self, data: Path, **environment: str) -> None:
        self.data = data
        self.up = Up(data, "--engine", "fake", **(SLOW | environment))
        self.url = self.up.url()
        self.http = httpx.Client(base_url=self.url, timeout=120)
        self.openai = openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0)

    def job(self, job_id: str) -> Any:
        """Return a job as it is; asks again while the server is started anew."""
        found: list[Any] = []

        def look() -> bool:
            try:
                found.append(self.http.get(f"/v1/jobs/{job_id}").raise_for_status().json())
            except httpx.HTTPError:
                return False
            return True

        until(look, 90)
        return found[-1]

    def ended(self, job_id: str) -> Any:
        """Wait for a job's end and return it."""
        until(lambda: self.job(job_id)["state"] in FINAL, 90)
        return self.job(job_id)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the service; nothing is left of it."""
        self.http.close()
        self.openai.close()
        assert self.up.end() == 0
        assert left_of(self.data) == []


@pytest.fixture
def service(data: Path) -> Iterator[Service]:
    """Run a service with the fake engine on SQLite."""
    with Service(data) as running:
        yield running


def words(count: int) -> str:
    """Return so many words, none like another."""
    return " ".join(f"w{n}" for n in range(count))


def chat(text: str, **more: Any) -> dict[str, Any]:
    """Return a chat's body."""
    return {"model": "fake", "messages": [{"role": "user", "content": text}], **more}


class Stream:
    """A stream that is read in a thread of its own."""

    def __init__(self, service: Service, path: str, body: Any = None, **headers: str) -> None:
        self.events: list[tuple[str, str, Any]] = []
        self.job_id = ""
        self.done = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(service, path, body, headers), daemon=True)
        self._thread.start()

    def _work(self, service: Service, path: str, body: Any, headers: dict[str, str]) -> None:
        method = "GET" if body is None else "POST"
        try:
            with httpx.stream(method, service.url + path, json=body, headers=headers, timeout=120) as answer:
                self.job_id = answer.headers.get("X-Stoker-Job", "")
                self._read(answer)
        except httpx.HTTPError as error:
            self.events.append(("cut", "", type(error).__name__))
        self.done.set()

    def _read(self, answer: httpx.Response) -> None:
        fields: dict[str, str] = {}
        for line in answer.iter_lines():
            if line:
                name, _, value = line.partition(": ")
                fields[name] = value
            elif "data" in fields:
                data = fields["data"]
                found = data if data == "[DONE]" else json.loads(data)
                self.events.append((fields.get("event", ""), fields.get("id", ""), found))
                fields = {}

    @property
    def texts(self) -> list[str]:
        """Return the words that came, chunk by chunk."""
        chunks = [data for _, _, data in list(self.events) if isinstance(data, dict) and data.get("choices")]
        found = [chunk["choices"][0]["delta"].get("content") for chunk in chunks]
        return [text for text in found if text]

    @property
    def text(self) -> str:
        """Return all that was said."""
        return "".join(self.texts)

    @property
    def last(self) -> Any:
        """Return the last event's data."""
        return self.events[-1][2]

    def has(self, count: int) -> None:
        """Wait until so many words have come."""
        until(lambda: len(self.texts) >= count, 60)

    def end(self, seconds: float = 120) -> None:
        """Wait for the end."""
        assert self.done.wait(seconds), self.events[-3:]


def test_the_stock_client(service: Service) -> None:
    """Chats, completions, embeddings, responses and models, whole and streamed, by the openai package unchanged."""
    client = service.openai
    messages: Any = [{"role": "user", "content": "one two three"}]
    said = "echo: one two three"
    assert [model.id for model in client.models.list()] == ["fake"]
    assert client.models.retrieve("fake").id == "fake"
    whole = client.chat.completions.create(model="fake", messages=messages)
    assert whole.choices[0].message.content == said
    with client.chat.completions.create(
        model="fake", messages=messages, stream=True, stream_options={"include_usage": True}
    ) as chunks:
        got = list(chunks)
    assert "".join(one.choices[0].delta.content or "" for one in got if one.choices) == said
    assert got[-1].usage
    assert got[-1].usage.completion_tokens == 4
    assert len(got) > 4
    assert client.completions.create(model="fake", prompt="one two three").choices[0].text == said
    texts = client.completions.create(model="fake", prompt="one two three", stream=True)
    assert "".join(one.choices[0].text for one in texts) == said
    assert len(client.embeddings.create(model="fake", input=["a", "b"]).data) == 2
    _responses(client, said)
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="nobody", messages=messages)


def _responses(client: openai.OpenAI, said: str) -> None:
    assert client.responses.create(model="fake", input="one two three").output_text == said
    with client.responses.create(model="fake", input="one two three", stream=True) as stream:
        events = list(stream)
    assert "".join(one.delta for one in events if one.type == "response.output_text.delta") == said
    assert events[-1].type == "response.completed"
    assert events[-1].response.output_text == said
    assert client.responses.retrieve(events[-1].response.id).output_text == said
    background = client.responses.create(model="fake", input="one two three", background=True)
    assert background.status == "queued"
    until(lambda: client.responses.retrieve(background.id).status == "completed", 60)
    assert client.responses.retrieve(background.id).output_text == said
    cancelled = client.responses.create(model="fake", input="[[hang]]", background=True)
    assert client.responses.cancel(cancelled.id).status == "cancelled"


@pytest.mark.parametrize("streamed", [True, False])
def test_a_client_that_hangs_up_frees_the_engine(data: Path, streamed: bool) -> None:
    """An engine of one slot begins the next request soon after: the first would have kept it for a minute."""
    with Service(data, STOKER_ENGINE_SLOTS="1") as service:
        took = _next_after_a_hang_up(service, streamed)
        for _ in range(2):
            if took >= 4:  # about one; more where the machine was busy with something else just then
                took = _next_after_a_hang_up(service, streamed)
        assert took < 4


def _next_after_a_hang_up(service: Service, streamed: bool) -> float:
    """Return the seconds from a client's end to the first word for the next one."""
    with httpx.Client(base_url=service.url, timeout=120) as first:
        thread = threading.Thread(target=_ask_and_be_cut, args=(first, chat(words(1200), stream=streamed)))
        thread.start()
        jobs: list[Any] = []

        def running() -> bool:
            jobs[:] = service.http.get("/v1/jobs?state=running").json()["data"]
            return bool(jobs)

        until(running, 60)
        _hang_up(first)
        left = time.monotonic()
        stream = Stream(service, CHAT, chat("next", stream=True))
        stream.has(1)
        took = time.monotonic() - left
        stream.end()
        thread.join(30)
    assert stream.text == "echo: next"
    assert service.job(jobs[0]["id"])["state"] == "cancelled"
    return took


def _ask_and_be_cut(client: httpx.Client, body: dict[str, Any]) -> None:
    try:
        with client.stream("POST", CHAT, json=body) as answer:
            for _ in answer.iter_raw():
                pass
    except httpx.HTTPError:
        pass


def _hang_up(client: httpx.Client) -> None:
    """End the client's connections under it, as the end of its process does."""
    pool: Any = client._transport
    for connection in pool._pool.connections:
        found = connection._connection._network_stream.get_extra_info("socket")
        found.shutdown(socket.SHUT_RDWR)


def test_redis_dies_in_mid_stream(service: Service) -> None:
    """The stream goes on, or ends with an error: no token is missing or doubled, and the result is stored."""
    streams = [Stream(service, CHAT, chat(words(200), stream=True)) for _ in range(3)]
    for stream in streams:
        stream.has(10)
    service.up.kill("redis")
    said = f"echo: {words(200)}"
    for stream in streams:
        stream.end()
        assert stream.job_id
        job = service.ended(stream.job_id)
        assert job["state"] == "succeeded"
        assert job["result"]["choices"][0]["message"]["content"] == said
        if stream.last == "[DONE]":
            assert stream.text == said
        else:
            assert stream.last["error"]["code"] == "stream_interrupted"
            assert said.startswith(stream.text)

    def is_whole_again() -> bool:
        stream = Stream(service, CHAT, chat("after all", stream=True))
        stream.end()
        return (stream.text, stream.last) == ("echo: after all", "[DONE]")

    until(is_whole_again, 60)


def test_the_engine_dies_in_mid_stream(service: Service) -> None:
    """OpenAI's stream ends with an error; the native one says `restart`, and then the whole answer."""
    native = service.http.post("/v1/jobs", json={"prompt": words(200), "stream": True}).json()["id"]
    follower = Stream(service, f"/v1/jobs/{native}/events")
    stream = Stream(service, CHAT, chat(words(200), stream=True))
    for one in (follower, stream):
        one.has(5)
    service.up.kill("engine")
    stream.end()
    assert stream.last["error"]["code"] == "stream_interrupted"
    said = f"echo: {words(200)}"
    assert said.startswith(stream.text)
    follower.end()
    kinds = [kind for kind, _, _ in follower.events]
    assert kinds.count("restart") == 1
    again = [data for kind, _, data in follower.events[kinds.index("restart") :] if kind == "chunk"]
    assert "".join(data["choices"][0]["delta"].get("content", "") for data in again) == said
    assert kinds[-1] == "end"
    assert follower.last["result"]["choices"][0]["message"]["content"] == said
    assert follower.last["attempts"] == 2


def test_a_client_comes_back_to_its_events(service: Service) -> None:
    """Cut off in the middle, several times, it gets each token once and in order."""
    job_id = service.http.post("/v1/jobs", json={"prompt": words(60), "stream": True}).json()["id"]
    texts: list[str] = []
    last = ""
    while True:
        ended, last = _read_some(service, job_id, last, texts)
        if ended:
            break
    assert "".join(texts) == f"echo: {words(60)}"


def _read_some(service: Service, job_id: str, last: str, texts: list[str]) -> tuple[bool, str]:
    headers = {"Last-Event-ID": last} if last else {}
    taken, kind, ident = 0, "", ""
    with httpx.stream("GET", f"{service.url}/v1/jobs/{job_id}/events", headers=headers, timeout=120) as answer:
        for line in answer.iter_lines():
            name, _, value = line.partition(": ")
            if name == "event":
                kind = value
            elif name == "id":
                ident = value
            elif name == "data" and kind == "chunk":
                texts.append(json.loads(value)["choices"][0]["delta"].get("content", ""))
                last, taken = ident, taken + 1
            elif name == "data" and kind == "end":
                return True, last
            if taken == 15:
                return False, last
    return False, last


def test_who_follows_outlives_the_web_server(service: Service) -> None:
    """The web server is killed in mid-stream: our client goes on with the next one, each word once, to the end."""
    texts = []
    with Client(service.url) as client:
        job = client.submit(prompt=words(200), stream=True, lane="realtime")
        for event in client.events(job.id):
            if len(texts) == 5:
                service.up.kill("web")
            if event.text:
                texts.append(event.text)
        assert (event.kind, event.job.state, event.job.attempts) == ("end", "succeeded", 1)
    assert "".join(texts) == f"echo: {words(200)}" == event.job.text


def test_the_web_server_is_stopped(service: Service) -> None:
    """SIGTERM: streams end at once with an error event, the next server takes over."""
    stream = Stream(service, CHAT, chat(words(1200), stream=True))
    stream.has(5)
    stopped = time.monotonic()
    service.up.kill("web", signal.SIGTERM)
    stream.end()
    assert time.monotonic() - stopped < 10
    assert stream.last["error"]["code"] == "stopping"
    assert service.ended(stream.job_id)["state"] == "cancelled"


def test_a_client_that_never_reads(data: Path) -> None:
    """Its stream is ended after a while and its job cancelled; others get all of theirs."""
    with Service(data, STOKER_STREAM_STALL="1", STOKER_FAKE_TOKEN_MS="3") as service, _deaf(service) as send:
        send(chat(" ".join([f"{n}" + "x" * 2000 for n in range(4000)]), stream=True, max_tokens=100_000))
        other = Stream(service, CHAT, chat(words(40), stream=True))

        def states() -> list[str]:
            return [job["state"] for job in service.http.get("/v1/jobs").json()["data"]]

        until(lambda: "cancelled" in states(), 120)
        other.end()
        assert (other.text, other.last) == (f"echo: {words(40)}", "[DONE]")
        assert sorted(states()) == ["cancelled", "succeeded"]


@contextmanager
def _deaf(service: Service) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Open a connection on which nothing is ever read."""
    host, port = service.url.removeprefix("http://").split(":")
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((host, int(port)))

        def send(body: dict[str, Any]) -> None:
            raw = json.dumps(body).encode()
            head = [
                f"POST {CHAT} HTTP/1.1",
                "Host: 127.0.0.1",
                "Content-Type: application/json",
                f"Content-Length: {len(raw)}",
            ]
            connection.sendall("\r\n".join([*head, "", ""]).encode() + raw)

        yield send
