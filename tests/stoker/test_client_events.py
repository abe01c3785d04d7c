"""Both clients and the events of a job: parsed however they are cut, read on behind the last one, each once."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker import Client, Event, StokerAPIError, steps
from stoker.job_events import Events
from stoker.resources import piece_of
from tests.stoker.blocking import Blocking
from tests.stoker.test_cli import stoker

JOB = {"id": "job_1", "state": "succeeded", "lane": "realtime", "model": "m", "endpoint": "/", "attempts": 1}
JOB |= {"created_at": 1.0, "result": {"choices": [{"message": {"content": "one two\u2028 thrée"}}]}}


def state(name: str) -> bytes:
    """Return an event that tells a state."""
    return f'event: state\ndata: {{"id": "job_1", "state": "{name}"}}\n\n'.encode()


def chunk(ident: str, text: str) -> bytes:
    """Return an event of the endpoint's own stream."""
    data = json.dumps({"choices": [{"index": 0, "delta": {"content": text}}]}, ensure_ascii=False)
    return f"event: chunk\nid: {ident}\ndata: {data}\n\n".encode()


def told(kind: str, data: Any) -> bytes:
    """Return any other event."""
    return f"event: {kind}\ndata: {json.dumps(data)}\n\n".encode()


END = told("end", JOB)
BEGIN = b": keep-alive\n\n" + state("queued") + state("running") + chunk("1-1", "one ") + chunk("1-2", "two\u2028")
WHOLE = BEGIN + chunk("1-3", " thrée") + state("succeeded") + END


def seen(events: Iterator[Event] | list[Event]) -> list[str]:
    """Return events as a test compares them."""
    return [f"{one.kind} {one.id or one.data.get('state') or ''}".strip() for one in events]


ALL = ["state queued", "state running", "chunk 1-1", "chunk 1-2", "chunk 1-3", "state succeeded", "end succeeded"]


@given(cuts=st.lists(st.integers(0, len(WHOLE)), max_size=12), crlf=st.booleans())
def test_events_are_the_same_however_the_network_cuts_them(cuts: list[int], crlf: bool) -> None:
    """Blocks end anywhere, in the middle of a letter too; separators that JSON allows in texts split nothing."""
    whole = WHOLE.replace(b"\n", b"\r\n") if crlf else WHOLE
    reader, found = Events("job_1"), []
    edges = [0, *sorted(cuts), len(whole)]
    for begin, end in pairwise(edges):
        found += reader.feed(whole[begin:end])
    assert seen(found) == ALL
    assert "".join(one.text for one in found) == "one two\u2028 thrée" == found[-1].job.text
    assert (reader.ended, reader.after) == (True, "1-3")


def test_pieces_of_each_endpoint() -> None:
    """Chats, completions and responses each say it in their own way; the first answer's text counts."""
    assert piece_of({"choices": [{"index": 0, "text": "a"}]}) == "a"
    assert piece_of({"choices": [{"index": 1, "delta": {"content": "of the second answer"}}]}) == ""
    assert piece_of({"type": "response.output_text.delta", "delta": "b"}) == "b"
    assert piece_of({"choices": [], "usage": {}}) == piece_of({"choices": None}) == piece_of([]) == ""


class Scripted:
    """A service that answers each request for events with what comes next: bytes, and then the end; or a status."""

    def __init__(self, *answers: bytes | int) -> None:
        self.answers = list(answers)
        self.asked_after: list[str] = []
        self.url = ""


@contextmanager
def scripted(*answers: bytes | int) -> Iterator[Scripted]:
    """Run such a service on loopback."""
    script = Scripted(*answers)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            script.asked_after.append(self.headers.get("Last-Event-ID", ""))
            answer = script.answers.pop(0)
            if isinstance(answer, int):
                self.send_response(answer)
                self.end_headers()
                self.wfile.write(b'{"detail": "not now", "code": "some"}')
                return
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            # More than will come: the connection is seen to break, not to end.
            self.send_header("Content-Length", "1000000") if not answer.endswith(END) else None
            self.end_headers()
            self.wfile.write(answer)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(202)
            self.end_headers()
            self.wfile.write(json.dumps(JOB | {"state": "queued", "result": None}).encode())

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        script.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield script
        server.shutdown()
        thread.join()


@pytest.fixture(params=[Client, Blocking], ids=["client", "async client"])
def made(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Return what makes a client, each of the two, which pauses only for a moment."""
    monkeypatch.setattr(steps, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(steps, "LONGEST_PAUSE", 0.02)
    return lambda url: closing(request.param(url))


def test_a_broken_stream_goes_on_behind_its_last_event(made: Callable[[str], Any]) -> None:
    """Cut in the middle of an event, refused, cut before anything new: each event comes once, no state twice."""
    torn = chunk("1-3", " thrée")[:-20]
    again = state("running")
    with scripted(BEGIN + torn, 503, again, again + chunk("1-3", " thrée") + END) as service, made(service.url) as it:
        found = list(it.events("job_1"))
    assert seen(found) == [event for event in ALL if event != "state succeeded"]
    assert service.asked_after == ["", "1-2", "1-2", "1-2"]


def test_what_a_client_has_it_does_not_get_again(made: Callable[[str], Any]) -> None:
    """`after` is the id that it begins behind; a later attempt begins the answer anew."""
    later = told("restart", {"attempt": 2}) + chunk("2-1", "one") + END
    with scripted(later) as service, made(service.url) as it:
        found = list(it.events("job_1", after="1-7"))
    assert (seen(found), service.asked_after) == (["restart", "chunk 2-1", "end succeeded"], ["1-7"])


def test_a_job_that_is_not_there(made: Callable[[str], Any]) -> None:
    """A refusal for good is told at once, in the service's words."""
    with scripted(404) as service, made(service.url) as it, pytest.raises(StokerAPIError, match="not now") as refused:
        list(it.events("job_1"))
    assert (refused.value.status, len(service.asked_after)) == (404, 1)


def test_it_gives_up_a_service_that_ends_each_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked again for a while only, if nothing new comes."""
    monkeypatch.setattr(steps, "FIRST_PAUSE", 0.01)
    reader = Events("job_1", patience=0.0)
    reader.outcome = steps.Lost("http://stoker", OSError("gone"))
    with pytest.raises(StokerAPIError, match="does not answer"):
        reader.pause()
    with scripted(BEGIN) as service, Client(service.url) as client:
        reader = Events("job_1", patience=0.0)
        list(client._read_events(reader))
        with pytest.raises(StokerAPIError, match=r"does not answer|again and again"):
            reader.pause()


@pytest.mark.parametrize("sent", [b"event: state\ndata: {oops\n\n", b"event: state\ndata: [1]\n\n"])
def test_events_of_some_other_server(sent: bytes) -> None:
    """What is none of stoker's is an error, not a traceback of the parser's."""
    with pytest.raises(StokerAPIError, match="as stoker does"):
        Events("job_1").feed(sent)


def test_only_the_end_has_the_job() -> None:
    """Asking another event for it is a mistake that is told."""
    with pytest.raises(ValueError, match="state"):
        _ = Event("state", {"state": "queued"}).job


# The command line


def test_submit_prints_an_answer_as_it_comes() -> None:
    """`--stream` prints the text and nothing else."""
    with scripted(WHOLE) as service:
        ran = stoker("submit", "hi", "--stream", "--url", service.url)
    assert (ran.exit_code, ran.stdout) == (0, "one two\u2028 thrée\n")


def test_follow_prints_what_was_not_streamed() -> None:
    """A job without a stream has its answer at the end."""
    with scripted(state("queued") + END) as service:
        ran = stoker("follow", "job_1", "--url", service.url)
    assert (ran.exit_code, ran.stdout) == (0, "one two\u2028 thrée\n")


def test_follow_tells_of_an_answer_begun_anew() -> None:
    """On the standard error; the standard output ends with the whole answer."""
    broken = chunk("1-1", "one two th") + told("restart", {"attempt": 2}) + chunk("2-1", "one ") + END
    with scripted(broken) as service:
        ran = stoker("follow", "job_1", "--url", service.url)
    assert (ran.exit_code, ran.stdout) == (0, "one two thone two\u2028 thrée\n")
    assert "begins anew" in ran.stderr


def test_follow_prints_the_whole_answer_when_parts_were_lost() -> None:
    """What is printed last is right."""
    broken = chunk("1-1", "one ") + told("lost", {"message": "gone"}) + chunk("1-5", "thrée") + END
    with scripted(broken) as service:
        ran = stoker("follow", "job_1", "--url", service.url)
    assert (ran.exit_code, ran.stdout) == (0, "one thréeone two\u2028 thrée\n")
    assert "parts were lost" in ran.stderr


def test_follow_as_json_is_a_line_an_event() -> None:
    """Each with its kind, id and data; a job that failed is status 1."""
    failed = JOB | {"state": "failed", "result": None, "error": {"message": "too long", "code": "some"}}
    with scripted(chunk("1-1", "one") + told("end", failed), 404) as service:
        # The scripted answer does not end as WHOLE does: the connection breaks behind the end, which is no matter.
        ran = stoker("follow", "job_1", "--json", "--url", service.url)
    lines = [json.loads(line) for line in ran.stdout.splitlines()]
    assert [(line["event"], line["id"]) for line in lines] == [("chunk", "1-1"), ("end", "")]
    assert (ran.exit_code, ran.stderr) == (1, "stoker: job job_1 failed: too long (some)\n")
