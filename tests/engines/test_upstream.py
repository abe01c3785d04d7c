"""The router over OpenAI-compatible servers, held against servers that misbehave."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from email.utils import formatdate
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import structlog

from stoker.settings import Settings
from tasks import engine_process
from tasks.engines import upstream as upstream_module
from tasks.engines.base import Completion, Deferred, EngineStartError, Outcome, Rejection, Request
from tasks.engines.upstream import UpstreamEngine
from tasks.engines.upstreams import pool as pool_module
from tasks.engines.upstreams.member import Facts
from tests.engines.subjects import CHAT
from tests.upstreams import Machine, Reply, Server, error, events, upstream, whole


@dataclass
class Pool:
    """An engine over some servers."""

    engine: UpstreamEngine
    servers: Sequence[Server]

    def ask(self, *requests: Request) -> list[Outcome]:
        """Run requests to the end."""
        return list(self.engine.generate(requests, threading.Event()))

    def one(self, request: Request | None = None) -> Outcome:
        """Run one request to the end."""
        (outcome,) = self.ask(request or chat())
        return outcome

    def facts(self, number: int = 0) -> Facts:
        """Return how a server is doing."""
        url = self.servers[number].url
        return next(one for one in self.engine.upstreams() if one.url == url)

    def until(self, true: Callable[[], object], seconds: float = 60.0) -> None:
        """Wait for something."""
        deadline = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < deadline, self.engine.upstreams()
            time.sleep(0.01)

    def checked(self, times: int) -> None:
        """Wait until every server was checked so many times more; the list is read again before each."""
        before = [server.checks for server in self.servers]
        self.until(lambda: all(one.checks >= was + times for one, was in zip(self.servers, before, strict=True)))

    def behind(self, *requests: Request, stop: threading.Event | None = None) -> tuple[threading.Thread, list[Outcome]]:
        """Run requests in another thread."""
        outcomes: list[Outcome] = []

        def run() -> None:
            outcomes.extend(self.engine.generate(requests, stop or threading.Event()))

        thread = threading.Thread(target=run)
        thread.start()
        return thread, outcomes


Make = Callable[..., Pool]


def chat(name: str = "job", text: str = "hello there", **rest: Any) -> Request:
    """Make a chat request."""
    own = {key: rest.pop(key) for key in ("lane", "timeout", "emit", "endpoint", "trace") if key in rest}
    body = {"model": "tiny", "messages": [{"role": "user", "content": text}], **rest}
    return replace(Request(name, CHAT, json.dumps(body), "standard", 30.0), **own)


def stream(name: str = "job", **rest: Any) -> tuple[Request, list[str]]:
    """Make a request for a stream, and the list that its events come into."""
    heard: list[str] = []
    return chat(name, stream=True, emit=heard.append, **rest), heard


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Build an engine over as many servers as are asked for, or over those given."""
    monkeypatch.setattr(upstream_module, "PATIENCE", 0.6)
    with ExitStack() as stack:

        def build(count: int | Sequence[Server] = 1, *, patience: float = 5.0, **settings: Any) -> Pool:
            # A busy machine takes its time over a check, and that is not what is tested here.
            monkeypatch.setattr(pool_module.Pool, "patience", patience)
            servers = [stack.enter_context(upstream()) for _ in range(count)] if isinstance(count, int) else count
            given = {"upstreams": ",".join(one.url for one in servers), "upstream_check_every": 0.3, **settings}
            engine = UpstreamEngine(Settings(engine="upstream", **given))
            stack.callback(engine.close)
            engine.start()
            return Pool(engine, servers)

        yield build


# Discovery


def test_models_are_discovered(make: Make) -> None:
    """The models of all servers are the engine's, with the slots of those that serve them."""
    with upstream("a", "b") as first, upstream("b") as second:
        pool = make([first, second], upstream_max_connections=8)
        assert pool.engine.slots == 16
        found = [(one.name, one.slots, one.max_model_len) for one in pool.engine.models]
        assert found == [("a", 8, 512), ("b", 16, 512)]
        first.models = ["a"]
        pool.until(lambda: [one.slots for one in pool.engine.models] == [8, 8])


def test_without_a_limit_it_starts_high(make: Make) -> None:
    """A server whose limit nobody names begins with 32 connections."""
    assert make(2).engine.slots == 64


def test_urls_may_end_in_v1(make: Make) -> None:
    """The URL of OpenAI's clients works as well."""
    with upstream() as server:
        assert isinstance(make([server], upstreams=f"{server.url}/v1/").one(), Completion)


def test_started_before_its_upstreams(make: Make) -> None:
    """The engine starts with nothing, and serves as soon as a server comes up."""
    with upstream(listening=False) as server:
        pool = make([server])
        assert (pool.engine.slots, pool.engine.models) == (0, ())
        outcome = pool.one()
        assert isinstance(outcome, Deferred)
        server.up()
        pool.until(lambda: pool.engine.models)
        assert isinstance(pool.one(), Completion)


def test_a_request_waits_a_moment_for_an_upstream(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that comes up within the patience gets the request that came too early."""
    with upstream(listening=False) as server:
        pool = make([server])
        monkeypatch.setattr(upstream_module, "PATIENCE", 60.0)
        running, outcomes = pool.behind(chat())
        pool.until(pool.engine._router.waiting)
        server.up()
        running.join(60)
        assert isinstance(outcomes[0], Completion)


def test_no_upstreams_stop_the_start() -> None:
    """Without either setting the engine cannot start, and says what to set."""
    with pytest.raises(EngineStartError, match=r"STOKER_UPSTREAMS .* or STOKER_UPSTREAMS_FILE"):
        engine_process.make_engine(Settings(engine="upstream"))


def test_the_engine_is_made_by_its_name() -> None:
    """STOKER_ENGINE=upstream makes this engine; there is no default model unless one is named."""
    settings = Settings(engine="upstream", upstreams="http://127.0.0.1:1")
    assert isinstance(engine_process.make_engine(settings), UpstreamEngine)
    assert settings.served_name == ""
    assert Settings(engine="upstream", model_name="m").served_name == "m"


# The file


def test_upstreams_come_and_go(make: Make, tmp_path: Path) -> None:
    """A server added to the file is used within two seconds; one taken out gets nothing more and ends what it has."""
    spent, end = [], threading.Event()
    with upstream() as first, upstream() as second:
        file = tmp_path / "upstreams.json"
        file.write_text(json.dumps([{"url": first.url, "max_connections": 3}]))
        pool = make([first, second], upstreams="", upstreams_file=file)
        assert pool.engine.slots == 3
        first.answer = lambda _body: Reply(until=end)
        running, outcomes = pool.behind(chat("old"))
        pool.until(lambda: first.in_flight)
        for slots in (5, 6, 7):  # the quickest of three counts: the others may have met a busy machine
            changed = time.monotonic()
            listed = [{"url": second.url, "max_connections": slots}]
            file.write_text(json.dumps(listed))
            pool.until(lambda slots=slots: pool.engine.slots == slots)  # type: ignore[misc]
            spent.append(time.monotonic() - changed)
            file.write_text("[]")
            pool.until(lambda: pool.engine.slots == 0)
        file.write_text(json.dumps(listed))
        pool.until(lambda: pool.engine.slots == 7)
        assert min(spent) < 2.0
        assert len(pool.ask(*(chat(str(number)) for number in range(10)))) == 10
        assert outcomes == []
        end.set()
        running.join(60)
        assert isinstance(outcomes[0], Completion)
        assert len(first.bodies) == 1


def test_a_broken_file_changes_nothing(make: Make, tmp_path: Path) -> None:
    """What is wrong with it is said once, in a line without the key, and the last good list stays."""
    with upstream() as server:
        file = tmp_path / "upstreams.json"
        file.write_text(json.dumps([{"url": server.url, "api_key": "sk-secret"}]))
        pool = make([server], upstreams="", upstreams_file=file)
        with structlog.testing.capture_logs() as logs:
            file.write_text(json.dumps([{"url": server.url, "api_key": "sk-secret", "max_connections": 0}]))
            pool.until(lambda: "max_connections" in str(logs))
            pool.checked(4)
        assert str(logs).count("entry 1: max_connections must be a whole number") == 1
        assert "sk-secret" not in str(logs)
        file.unlink()
        pool.checked(3)
        assert isinstance(pool.one(), Completion)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (None, "cannot be read"),
        ("{", "not JSON"),
        ("{}", "must be a JSON list"),
        ('["http://a"]', "entry 1: must be an object"),
        ('[{"url": "ftp://a"}]', "entry 1: url must be like"),
        ('[{"url": "http://me:pw@a"}]', "entry 1: url must be like"),
        ('[{"url": "http://a"}, {"url": "http://a/v1/"}]', "entry 2: http://a is listed twice"),
        ('[{"url": "http://a", "api_key_env": "NOT_SET"}]', "'NOT_SET' is not set"),
        ('[{"url": "http://a", "api_key": "k", "api_key_env": "K"}]', "not both"),
        ('[{"url": "http://a", "models": []}]', "models must be a list"),
        ('[{"url": "http://a", "max_conections": 3}]', "unknown field 'max_conections'"),
    ],
)
def test_a_broken_file_stops_the_start(tmp_path: Path, text: str | None, why: str) -> None:
    """At the start it is a bad setting: one line that names the file, the entry and what is wrong."""
    file = tmp_path / "upstreams.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(EngineStartError, match="STOKER_UPSTREAMS_FILE") as raised:
        UpstreamEngine(Settings(engine="upstream", upstreams_file=file))
    assert why in str(raised.value)
    assert str(file) in str(raised.value)
    assert "pw" not in str(raised.value)


def test_keys(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Each server gets its own key, or the common one, and keys appear nowhere else."""
    monkeypatch.setenv("SECOND_KEY", "sk-second")
    with upstream() as first, upstream() as second, upstream() as third:
        first.key, second.key, third.key = "sk-first", "sk-second", "sk-common"
        file = tmp_path / "upstreams.json"
        entries = [{"url": first.url, "api_key": "sk-first"}, {"url": second.url, "api_key_env": "SECOND_KEY"}]
        file.write_text(json.dumps(entries))
        with structlog.testing.capture_logs() as logs:
            pool = make([first, second, third], upstreams=third.url, upstreams_file=file, upstream_api_key="sk-common")
            outcomes = pool.ask(*(chat(str(n)) for n in range(9)))
        assert all(isinstance(outcome, Completion) for outcome in outcomes)
        assert all(server.finished == 3 for server in pool.servers)
        shown = repr(pool.engine._router.upstreams) + repr(
            [one.place for one in pool.engine._router.upstreams.values()]
        )
        assert "upstream is up" in str(logs)
        assert "sk-" not in shown + repr(pool.engine.upstreams()) + str(logs) + "".join(capfd.readouterr())


def test_models_that_the_operator_named(make: Make, tmp_path: Path) -> None:
    """A server without /v1/models is used for the models named in the file."""
    with upstream() as server:
        server.listing = Reply(404)
        file = tmp_path / "upstreams.json"
        file.write_text(json.dumps([{"url": server.url, "models": ["tiny"]}]))
        pool = make([server], upstreams="", upstreams_file=file)
        assert [one.name for one in pool.engine.models] == ["tiny"]
        assert isinstance(pool.one(), Completion)
        file.write_text(json.dumps([{"url": server.url}]))
        pool.until(lambda: "name its models in STOKER_UPSTREAMS_FILE" in pool.facts().why_down)


# Routing


def test_bodies_go_out_unaltered(make: Make) -> None:
    """Large integers, the order of keys, spaces and unknown fields arrive as they were sent; so does the answer."""
    pool = make()
    body = (
        '{"seed":12345678901234567890123, "model" : "tiny","x_unknown":[1.10,1e5],"messages":[{"content":"\\u00fcü"}]}'
    )
    answer = b'{"id": 98765432109876543210987, "choices":[ {"index":0}], "z":1.0, "a": 0}'
    pool.servers[0].script.append(Reply(body=answer))
    outcome = pool.one(Request("job", CHAT, body, "bulk", 30.0))
    assert pool.servers[0].bodies == [body.encode()]
    assert isinstance(outcome, Completion)
    assert outcome.body == answer.decode()


def test_a_trace_goes_on_at_the_upstream(make: Make) -> None:
    """What the server traces itself belongs to the trace of the client's request; without one nothing is said."""
    pool = make()
    trace = f"00-{'ab' * 16}-{'cd' * 8}-01"
    for request in (chat("plain"), chat("traced", trace=trace)):
        assert isinstance(pool.one(request), Completion)
    assert [headers.get("traceparent") for headers in pool.servers[0].headers] == [None, trace]


def test_a_job_is_not_put_in_the_background(make: Make) -> None:
    """`background`, which a job is already, is the one thing that is taken out."""
    pool = make()
    body = '{"background": true, "seed": 12345678901234567890123, "model":"tiny","messages":[{"content": "x"}]}'
    assert isinstance(pool.one(Request("job", CHAT, body, "bulk", 30.0)), Completion)
    sent = pool.servers[0].bodies[0]
    assert b"background" not in sent
    assert b"12345678901234567890123" in sent


def test_no_more_than_the_limit(make: Make) -> None:
    """Connections never exceed the limit of an upstream, and both are used."""
    pool = make(2, upstream_max_connections=3)
    for server in pool.servers:
        server.answer = lambda _body: Reply(delay=0.1)
    assert len(pool.ask(*(chat(str(number)) for number in range(60)))) == 60
    assert [server.most_in_flight for server in pool.servers] == [3, 3]
    assert pool.facts(0).requests + pool.facts(1).requests == 60


def test_nobody_overtakes_in_line(make: Make) -> None:
    """While all are busy the line is strict: realtime, standard, bulk, and first come first served in each."""
    pool = make(1, upstream_max_connections=1)
    server, go = pool.servers[0], threading.Event()
    server.answer = lambda _body: Reply(until=go)
    lanes = ["bulk", "standard", "realtime"] * 4
    first, _ = pool.behind(chat("first", "first", lane="bulk"))
    pool.until(lambda: server.in_flight)
    others, _ = pool.behind(*(chat(f"{n}", f"{n}", lane=lane) for n, lane in enumerate(lanes)))
    pool.until(lambda: pool.facts().waiting == len(lanes))
    go.set()
    first.join(60)
    others.join(60)
    order = [json.loads(body)["messages"][0]["content"] for body in server.bodies]
    assert order == ["first"] + [
        str(n) for lane in ("realtime", "standard", "bulk") for n in range(12) if lanes[n] == lane
    ]


def test_a_free_connection_is_taken_at_once(make: Make) -> None:
    """Between two requests in line no time passes that a poll would take."""
    pool = make(1, upstream_max_connections=1)
    pool.ask(*(chat(str(number)) for number in range(150)))
    server = pool.servers[0]
    gaps = sorted(begun - ended for ended, begun in zip(server.ended, server.begun[1:], strict=False))
    assert len(gaps) == 149
    assert gaps[40] < 0.02  # a poll would be in all of them, a busy machine is not


def test_a_waiting_model_holds_up_no_other(make: Make) -> None:
    """Requests pass one whose model's only upstream is busy."""
    with upstream("big") as big, upstream("tiny") as small:
        pool = make([big, small], upstream_max_connections=1)
        end = threading.Event()
        big.answer = lambda _body: Reply(until=end)
        running, outcomes = pool.behind(chat("one", model="big"), chat("two", model="big"))
        pool.until(lambda: big.in_flight and pool.facts().waiting == 1)
        assert len(pool.ask(*(chat(str(number)) for number in range(5)))) == 5
        assert (big.finished, outcomes) == (0, [])
        end.set()
        running.join(60)
        assert len(outcomes) == 2


def test_timeouts_count_from_the_connection(make: Make) -> None:
    """Waiting in line is no part of a request's time; running is."""
    pool = make(1, upstream_max_connections=1)
    pool.servers[0].answer = lambda _body: Reply(delay=1.5)
    outcomes = pool.ask(*(chat(str(number), timeout=4.0) for number in range(3)))
    assert all(isinstance(outcome, Completion) for outcome in outcomes)
    assert pool.servers[0].ended[-1] - pool.servers[0].begun[0] > 4.0
    pool.servers[0].answer = lambda _body: Reply(hang=True)
    late = pool.one(chat(timeout=0.3))
    assert isinstance(late, Rejection)
    assert (late.status, late.code) == (408, "request_timeout")
    pool.until(lambda: pool.servers[0].aborted == 1)


# What upstreams answer


@pytest.mark.parametrize(
    ("status", "body", "code", "message"),
    [
        (400, '{"error": {"message": "bad n", "type": "x", "param": "n", "code": null}}', "invalid_request", "bad n"),
        (413, '{"detail": "too large"}', "invalid_request", "too large"),
        (422, '{"detail": [{"loc": ["body"], "msg": "field required"}]}', "invalid_request", "field required"),
        (422, '{"error": "inputs must have less", "error_type": "validation"}', "validation", "inputs must have less"),
        (
            400,
            '{"object": "error", "message": "maximum context length is 5", "code": 400}',
            "context_length_exceeded",
            "",
        ),
        (400, '{"error": {"message": "odd", "code": "a\\u0000b"}}', "invalid_request", "odd"),
        (400, "<html>no</html>", "invalid_request", "answered 400"),
        (418, "", "invalid_request", "answered 418"),
    ],
)
def test_refusals_keep_their_status(make: Make, status: int, body: str, code: str, message: str) -> None:
    """A request that an upstream refuses is rejected with its status and message, in OpenAI's envelope."""
    pool = make(2)
    for server in pool.servers:
        server.answer = lambda _body: Reply(status, body=body.encode())
    outcome = pool.one()
    assert isinstance(outcome, Rejection)
    assert (outcome.status, outcome.code) == (status, code)
    assert message in outcome.message
    envelope = json.loads(outcome.body)["error"]
    assert envelope["message"]
    if '"error": {' in body:
        assert outcome.body == body
    assert sum(len(server.bodies) for server in pool.servers) == 1
    assert all(one.healthy for one in pool.engine.upstreams())


@pytest.mark.parametrize(
    "reply",
    [
        error(500),
        error(502),
        error(503),
        error(429),
        error(408),
        Reply(body=b"<html>hello</html>"),
        Reply(body=b'{"object": "chat.completion"}'),
        Reply(body=b"[1]"),
        Reply(body=b'{"choices": [{}]} {'),
        Reply(302, {"location": "http://127.0.0.1:1/"}),
        Reply(cut=0),
    ],
    ids=lambda reply: f"{reply.status}{(reply.body or b'cut')[:10]!r}",
)
def test_what_fails_is_tried_on_another_upstream(make: Make, reply: Reply) -> None:
    """Whatever one upstream does wrong, the request is done by another, and nobody notices."""
    pool = make(2)
    bad, good = pool.servers
    bad.answer = lambda _body: reply
    outcomes = pool.ask(*(chat(str(number)) for number in range(4)))
    assert all(isinstance(outcome, Completion) for outcome in outcomes)
    assert good.finished >= 4
    assert pool.facts(0).errors >= (0 if reply.status == 408 else 1)


def test_a_failing_upstream_stops_drawing_traffic(make: Make) -> None:
    """One that fails fast is not the least busy one for ever: it gets one now and then, the others work."""
    pool = make(2, upstream_check_every=5.0)
    bad, good = pool.servers
    bad.answer = lambda _body: error(500)
    for number in range(5):
        assert len(pool.ask(*(chat(f"{number}.{n}") for n in range(20)))) == 20
    assert good.finished == 100
    # What a check let through once more, then one at a time, at growing distances.
    assert len(bad.bodies) <= 30
    assert pool.facts(1).healthy


def test_an_upstream_that_recovers_is_used_again(make: Make) -> None:
    """Down and up again: no request fails meanwhile, and it takes its share afterwards."""
    pool = make(2)
    first = pool.servers[0]
    first.down()
    assert all(isinstance(outcome, Completion) for outcome in pool.ask(*(chat(str(n)) for n in range(10))))
    assert not pool.facts(0).healthy
    pool.until(lambda: "refused" in pool.facts(0).why_down)  # at first it may be the connection that broke
    first.up()
    pool.until(lambda: pool.facts(0).healthy)
    before = first.finished
    pool.ask(*(chat(str(number)) for number in range(10)))
    assert first.finished > before


def test_a_check_that_fails_takes_it_out(make: Make) -> None:
    """A 503 from /v1/models means that its models are not available."""
    pool = make(2)
    pool.servers[0].listing = Reply(503)
    pool.until(lambda: not pool.facts(0).healthy)
    pool.ask(*(chat(str(number)) for number in range(5)))
    assert pool.servers[0].bodies == []
    assert pool.engine.slots == 32


def test_a_request_that_makes_servers_fail_takes_none_of_them_down(make: Make) -> None:
    """Two that fail on the same request: it is the request, which is rejected, and both go on."""
    pool = make(3)
    for server in pool.servers:
        server.answer = lambda body: error(500, "boom") if "poison" in str(body) else Reply()
    outcome = pool.one(chat(text="poison"))
    assert isinstance(outcome, Rejection)
    assert (outcome.status, outcome.code) == (502, "upstream_error")
    assert sum(len(server.bodies) for server in pool.servers) == 2
    assert all(one.healthy for one in pool.engine.upstreams())
    assert all(isinstance(outcome, Completion) for outcome in pool.ask(*(chat(str(n)) for n in range(30))))


def test_upstreams_that_fail_at_everything_do_not_reject_the_queue(make: Make) -> None:
    """When no request succeeds any more it is not the requests: they are deferred."""
    pool = make(2)
    for server in pool.servers:
        server.answer = lambda _body: error(500)
    outcomes = [pool.one(chat(str(number))) for number in range(8)]
    assert sum(isinstance(outcome, Rejection) for outcome in outcomes) <= 3
    assert isinstance(outcomes[-1], Deferred)


def test_a_single_failing_upstream_defers(make: Make) -> None:
    """With nobody to compare it with, a 500 is the upstream's fault, and the job is tried again later.

    The reason may be told to whoever submitted the job: it does not name the operator's servers.
    """
    pool = make()
    pool.servers[0].answer = lambda _body: error(500)
    outcome = pool.one()
    assert isinstance(outcome, Deferred)
    assert "500" in outcome.reason
    assert str(urlsplit(pool.servers[0].url).port) not in outcome.reason


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_obeyed(make: Make, status: int) -> None:
    """One that asks for a pause gets nothing until it is over; the job is deferred by the shortest pause told."""
    pool = make(2)
    first, second = pool.servers
    first.script.append(Reply(status, {"retry-after": "30"}, b"{}"))
    until = int(time.time()) + 20  # a date has whole seconds
    second.script.append(Reply(status, {"retry-after": formatdate(until, usegmt=True)}, b"{}"))
    outcome = pool.one()
    assert isinstance(outcome, Deferred)
    assert outcome.retry_after is not None
    assert until - time.time() <= outcome.retry_after + 0.5 <= 20.5
    assert all(one.healthy for one in pool.engine.upstreams())
    running, _ = pool.behind(chat("waits"))
    time.sleep(0.5)
    assert len(first.bodies) + len(second.bodies) == 2
    pool.engine.abort(["waits"])
    running.join(60)


def test_the_end_of_a_pause_is_noticed_at_once(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request in line goes out when the pause is over, whenever the pool looks next."""
    pool = make(1, upstream_max_connections=4, upstream_check_every=3600.0)
    monkeypatch.setattr(pool_module, "TICK", 3600.0)
    time.sleep(1.0)  # the look that was under way
    server = pool.servers[0]
    server.script.append(Reply(429, {"retry-after": "1"}, b"{}"))
    assert isinstance(pool.one(), Deferred)
    assert isinstance(pool.one(), Completion)
    assert server.begun[1] - server.ended[0] > 0.9


def test_a_server_with_a_ceiling_is_filled_to_it(make: Make) -> None:
    """A lone server that refuses above ten at once does all the work, without a deferral."""
    pool = make()
    pool.servers[0].most = 10
    pool.servers[0].answer = lambda _body: Reply(delay=0.03)
    outcomes = pool.ask(*(chat(str(number)) for number in range(120)))
    assert sum(isinstance(outcome, Completion) for outcome in outcomes) == 120
    assert pool.facts().limit <= 16


def test_a_wrong_key_is_the_operators_business(make: Make) -> None:
    """The upstream is out, with a clear line in the log; the job goes elsewhere or waits, and is never rejected."""
    pool = make(2, upstream_check_every=5.0)  # by which both come back
    first, second = pool.servers
    first.answer = second.answer = lambda _body: error(401, "Incorrect API key provided: sk-x")
    with structlog.testing.capture_logs() as logs:
        outcome = pool.one()
    assert isinstance(outcome, Deferred)
    assert "API key" in outcome.reason
    assert "API key" in str(logs)
    assert not any(one.healthy for one in pool.engine.upstreams())
    first.answer = second.answer = lambda _body: Reply()
    pool.until(lambda: pool.engine.models)
    assert isinstance(pool.one(), Completion)


def test_an_upstream_that_lies_about_its_models(make: Make) -> None:
    """It loses the model, the request goes to another one; its other models stay."""
    with upstream("tiny", "other") as liar, upstream("tiny") as honest:
        pool = make([liar, honest], upstream_check_every=5.0)
        liar.answer = lambda body: error(404, "no", code="model_not_found") if body["model"] == "tiny" else Reply()
        assert all(isinstance(outcome, Completion) for outcome in pool.ask(*(chat(str(n)) for n in range(6))))
        assert pool.facts(0).models == ("other",)
        assert pool.facts(0).healthy
        seen = len(liar.bodies)
        pool.ask(*(chat(str(n)) for n in range(6)))
        assert len(liar.bodies) == seen
        assert isinstance(pool.one(chat(model="other")), Completion)


def test_a_model_that_nobody_has_is_rejected(make: Make) -> None:
    """When all upstreams are up and none has it, waiting would help nobody."""
    outcome = make(2).one(chat(model="missing"))
    assert isinstance(outcome, Rejection)
    assert (outcome.status, outcome.code) == (404, "model_not_found")


@pytest.mark.parametrize("body", [b'{"detail":"Not Found"}', b"", b"404 page not found"])
def test_an_endpoint_that_nobody_has_is_rejected(make: Make, body: bytes) -> None:
    """A server without the endpoint says so in its own way; the model stays."""
    pool = make(2)
    for server in pool.servers:
        server.answer = lambda _body: Reply(404, body=body)
    outcome = pool.one(chat(endpoint="/v1/rerank"))
    assert isinstance(outcome, Rejection)
    assert outcome.code == "unsupported_endpoint"
    assert pool.engine.slots == 64


# Hanging


def test_an_upstream_that_hangs_loses_its_requests(make: Make) -> None:
    """When two checks have no answer what runs on it goes to another one, long before the timeout."""
    pool = make(2, patience=2.0)
    hung, well = pool.servers
    hung.answer = well.answer = lambda _body: Reply(delay=0.3)
    hung.frozen = True
    outcomes = pool.ask(*(chat(str(number)) for number in range(6)))
    assert all(isinstance(outcome, Completion) for outcome in outcomes)
    assert well.finished == 6
    pool.until(lambda: hung.in_flight == 0)
    assert not pool.facts(0).healthy


def test_one_that_hangs_is_found_while_more_requests_come(make: Make) -> None:
    """A request that was sent is no sign of life: one with many free connections does not take them all in."""
    pool = make(1, patience=1.0, upstream_max_connections=5000)
    hung, found = pool.servers[0], threading.Event()
    hung.frozen = True
    running = []
    while pool.facts().healthy:
        assert len(running) < 1500
        running.append(pool.behind(chat(str(len(running)))))
        found.wait(0.05)
    for thread, outcomes in running:
        thread.join(60)
        assert isinstance(outcomes[0], Deferred)
    assert pool.facts().in_flight == 0


def test_a_slow_upstream_is_left_alone(make: Make) -> None:
    """One that takes long and answers its checks keeps its request, and the engine is not taken for hung."""
    pool = make(2)
    end = threading.Event()
    for server in pool.servers:
        server.answer = lambda _body: Reply(until=end)
    running, outcomes = pool.behind(chat())
    pool.until(lambda: sum(server.in_flight for server in pool.servers) == 1)
    for _ in range(4):
        seen = pool.engine.last_progress()
        pool.until(lambda seen=seen: pool.engine.last_progress() > seen)  # type: ignore[misc]
    pool.checked(4)
    assert outcomes == []
    end.set()
    running.join(60)
    assert isinstance(outcomes[0], Completion)
    assert sum(len(server.bodies) for server in pool.servers) == 1


# Streams


def test_a_stream_passes_through(make: Make) -> None:
    """Each event arrives as the server sent it, and the outcome is the whole answer."""
    pool = make()
    request, heard = stream(text="grüße an alle")
    outcome = pool.one(request)
    sent = [event.decode()[6:].strip() for event in events(json.loads(request.body))]
    assert heard == sent[:-1]
    assert isinstance(outcome, Completion)
    assert json.loads(outcome.body)["choices"][0]["message"]["content"] == "echo: grüße an alle"


def test_events_come_as_they_are_made(make: Make) -> None:
    """The first event is out while the others are still to come."""
    pool = make()
    seen = threading.Event()
    request = chat(stream=True, emit=lambda _data: seen.set())
    first, *others = events(json.loads(request.body))
    pool.servers[0].script.append(Reply(events=[first, seen, *others]))
    assert isinstance(pool.one(request), Completion)


@pytest.mark.parametrize("cut", [1, 2, 3, 7])
def test_streams_may_be_cut_anywhere_on_the_wire(make: Make, cut: int) -> None:
    """Chunks end in the middle of lines, of CRLF and of characters; comments and other fields are skipped."""
    pool = make()
    request, heard = stream(text="ü€😀")
    raw = b": hello\r\n\r\n" + b"".join(events(json.loads(request.body))).replace(b"\n\n", b"\r\nid: 7\r\n\r\n")
    pool.servers[0].script.append(Reply(events=[raw[at : at + cut] for at in range(0, len(raw), cut)][:2000]))
    outcome = pool.one(request)
    assert isinstance(outcome, Completion)
    assert len(heard) == 3
    assert json.loads(outcome.body)["choices"][0]["message"]["content"] == "echo: ü€😀"


def test_a_stream_cut_before_its_first_event_goes_elsewhere(make: Make) -> None:
    """Nobody notices a cut before anything was passed on."""
    pool = make(2)
    pool.servers[0].script.append(Reply(cut=0, events=[b"x"]))
    pool.servers[1].script.append(Reply(delay=0.01))
    for number in range(2):
        request, heard = stream(str(number))
        assert isinstance(pool.one(request), Completion)
        assert len(heard) == 4


def test_a_stream_cut_in_the_middle_is_deferred(make: Make) -> None:
    """After an event nobody else may go on: the job is deferred, and not tried elsewhere."""
    pool = make(2)
    for server in pool.servers:
        server.answer = lambda _body: Reply(cut=2)
    request, heard = stream()
    assert isinstance(pool.one(request), Deferred)
    assert len(heard) == 2
    assert sum(len(server.bodies) for server in pool.servers) == 1


def test_a_stream_may_end_without_done(make: Make) -> None:
    """When every choice said why it ended the answer is whole, and when not it was cut."""
    pool = make()
    request, _ = stream()
    body = json.loads(request.body)
    pool.servers[0].script.append(Reply(events=events(body, done=False)))
    assert isinstance(pool.one(request), Completion)
    pool.servers[0].script.append(Reply(events=events(body, done=False, finish=False)))
    assert isinstance(pool.one(request), Deferred)


def test_an_error_inside_a_stream(make: Make) -> None:
    """Before the first event it is what its status would be; after it the job is deferred unless it is refused."""
    pool = make()
    request, heard = stream()
    refused = b'data: {"error": {"message": "too long", "type": "BadRequestError", "code": 400}}\n\n'
    broken = b'data: {"error": {"message": "engine died", "type": "InternalServerError", "code": 500}}\n\n'
    pool.servers[0].script.append(Reply(events=[refused]))
    outcome = pool.one(request)
    assert isinstance(outcome, Rejection)
    assert (outcome.status, outcome.message) == (400, "too long")
    assert heard == []
    pool.servers[0].script.append(Reply(events=[*events(json.loads(request.body))[:2], broken]))
    assert isinstance(pool.one(request), Deferred)
    assert len(heard) == 2


DEEP = '{"a":' * 900 + "1" + "}" * 900


@pytest.mark.parametrize(
    "choice",
    [
        f'"delta": {DEEP}',
        '"delta": {"tool_calls": [1]}',
        '"delta": {"tool_calls": [{"index": "x"}, {"index": 2}]}',
        '"delta": {"tool_calls": {"a": 1}}',
        '"message": 5, "delta": {"content": "x"}',
        '"delta": [1]',
    ],
    ids=range(6),
)
def test_nonsense_in_a_stream_is_the_upstreams_fault(make: Make, choice: str) -> None:
    """Whatever an event holds, the request is deferred and the others of its batch have their answers."""
    pool = make()
    sent = f'data: {{"choices": [{{"index": 0, "finish_reason": "stop", {choice}}}]}}\n\ndata: [DONE]\n\n'
    odd = Reply(events=[sent.encode()])
    pool.servers[0].answer = lambda body: odd if body.get("stream") else Reply(delay=1.0)
    outcomes = {one.id: one for one in pool.ask(stream("odd")[0], chat("good"))}
    assert isinstance(outcomes["odd"], Deferred)
    assert isinstance(outcomes["good"], Completion)


def test_events_without_data_are_signs_of_life(make: Make) -> None:
    """Some servers keep a stream alive with empty events: they are passed over."""
    pool = make()
    request, heard = stream()
    first, *others = events(json.loads(request.body))
    pool.servers[0].script.append(Reply(events=[b"data:\n\n", first, b"data: \n\n", *others]))
    assert isinstance(pool.one(request), Completion)
    assert len(heard) == len(others)


def test_a_server_that_makes_one_choice_of_many(make: Make) -> None:
    """Not all servers know `n`: what says `[DONE]` is whole, what just ends was cut."""
    pool = make()
    request, _ = stream(n=3)
    body = json.loads(request.body)
    pool.servers[0].script.append(Reply(events=events(body)))
    outcome = pool.one(request)
    assert isinstance(outcome, Completion)
    assert len(json.loads(outcome.body)["choices"]) == 1
    pool.servers[0].script.append(Reply(events=events(body, done=False)))
    assert isinstance(pool.one(request), Deferred)


def test_a_server_that_does_not_stream(make: Make) -> None:
    """A plain answer to a request for a stream is the outcome, without events."""
    pool = make()
    pool.servers[0].script.append(Reply(plain=True))
    request, heard = stream()
    outcome = pool.one(request)
    assert isinstance(outcome, Completion)
    assert json.loads(outcome.body) == whole(CHAT, json.loads(request.body), 100)
    assert heard == []


def test_a_stream_without_end_is_given_up(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line that does not end is cut at a bound."""
    monkeypatch.setattr("tasks.engines.upstreams.events.Events.__init__.__defaults__", (1000,))
    pool = make()
    pool.servers[0].script.append(Reply(events=[b"data: " + b"x" * 600, b"x" * 600]))
    assert isinstance(pool.one(stream()[0]), Deferred)


def test_an_answer_without_end_is_given_up(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer beyond the bound counts as none."""
    monkeypatch.setattr("tasks.engines.upstreams.calls.MOST", 1000)
    pool = make()
    pool.servers[0].answer = lambda _body: Reply(body=b'{"choices": [' + b"1," * 1000 + b"1]}")
    outcome = pool.one()
    assert isinstance(outcome, Deferred)
    assert "more than 1000 bytes" in outcome.reason


# Ends


@pytest.mark.parametrize("streamed", [True, False])
def test_a_client_that_leaves_costs_nothing_more(make: Make, streamed: bool) -> None:
    """Aborting closes the connection within a second, and the upstream stops."""
    pool = make()
    server, spent = pool.servers[0], []
    server.answer = lambda _body: Reply(hang=not streamed)
    for number in range(3):  # the quickest counts: the others may have met a busy machine
        request, heard = stream(text="word " * 20_000) if streamed else (chat(), [])
        running, outcomes = pool.behind(request)
        pool.until(lambda heard=heard: server.in_flight and (heard or not streamed))  # type: ignore[misc]
        started = time.monotonic()
        pool.engine.abort(["job"])
        pool.until(lambda number=number: server.aborted == number + 1)  # type: ignore[misc]
        spent.append(time.monotonic() - started)
        running.join(60)
        assert outcomes == []
    assert min(spent) < 1.0
    assert pool.facts().in_flight == 0


def test_stop_closes_the_connections(make: Make) -> None:
    """`stop` ends what runs and what waits, and every connection."""
    pool = make(1, upstream_max_connections=2)
    pool.servers[0].answer = lambda _body: Reply(hang=True)
    stop = threading.Event()
    running, outcomes = pool.behind(*(chat(str(number)) for number in range(5)), stop=stop)
    pool.until(lambda: pool.servers[0].in_flight == 2)
    assert pool.facts().waiting == 3
    stop.set()
    running.join(60)
    assert outcomes == []
    pool.until(lambda: pool.servers[0].aborted == 2)
    pool.until(lambda: (pool.facts().in_flight, pool.facts().waiting) == (0, 0))


def test_stop_leaves_the_others_in_line(make: Make) -> None:
    """A batch that is stopped leaves the line to the others, and what is told of it stays true."""
    pool = make(1, upstream_max_connections=1)
    pool.servers[0].answer = lambda _body: Reply(hang=True)
    stops = [threading.Event() for _ in range(2)]
    running = []
    for number, stop in enumerate(stops):
        running.append(pool.behind(*(chat(f"{number}.{n}") for n in range(20)), stop=stop)[0])
        pool.until(lambda number=number: pool.facts().waiting == 20 * number + 19)  # type: ignore[misc]
    stops[0].set()
    running[0].join(60)
    pool.until(lambda: (pool.facts().in_flight, pool.facts().waiting) == (1, 19))
    stops[1].set()
    running[1].join(60)
    pool.until(lambda: (pool.facts().in_flight, pool.facts().waiting) == (0, 0))


def test_facts(make: Make) -> None:
    """What metrics need is there for each upstream."""
    pool = make(1, upstream_max_connections=2)
    pool.ask(chat("a"), chat("b"))
    facts = pool.facts()
    assert facts == Facts(pool.servers[0].url, True, 2, 0, 0, 2, 0, facts.latency, ("tiny",), "")
    assert facts.latency is not None
    assert facts.latency > 0


def test_idle_is_progress(make: Make) -> None:
    """An engine with nothing to do is not hung."""
    pool = make()
    before = time.monotonic()
    assert pool.engine.last_progress() >= before


def test_close_may_come_twice(make: Make) -> None:
    """Closing ends the thread; a second time is harmless."""
    pool = make()
    pool.engine.close()
    pool.engine.close()
    assert not pool.engine._runner._thread.is_alive()


def test_two_batching_servers_are_filled(make: Make) -> None:
    """In adaptive mode 200 requests over two servers of the published curve take about what the best limit takes."""
    ratio = 0.0
    for scale in (0.2, 0.5, 1.0):  # on a busy machine the servers must be slower to be what is waited for
        with upstream(machine=Machine()) as first, upstream(machine=Machine()) as second:
            first.scale = second.scale = scale
            pool = make([first, second], upstream_check_every=2.0)
            started = time.monotonic()
            assert len(pool.ask(*(chat(str(number)) for number in range(200)))) == 200
            ideal = scale * (3 * 4.942 + 2.067)  # batches of 32, 32, 32 and 4 on each
            ratio = max(ratio, ideal / (time.monotonic() - started))
        if ratio > 0.8:  # 0.9 is what a quiet machine shows
            break
    assert ratio > 0.8
