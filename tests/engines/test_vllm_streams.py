"""How vLLM's streams become events and outcomes, with handlers that stand in for vLLM's."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import BaseModel, TypeAdapter

from stoker.settings import Settings
from tasks.engines.base import Completion, Deferred, EngineFailure, Outcome, Rejection, Request
from tasks.engines.vllm import VllmEngine
from tasks.engines.vllm_answers import ENDPOINTS, Call
from tasks.engines.vllm_streams import payload

CHAT = "/v1/chat/completions"
RESPONSES = "/v1/responses"
USAGE = {"choices": [], "usage": {"prompt_tokens": 2, "completion_tokens": 1}}


class Info(BaseModel):
    """vLLM's ErrorInfo."""

    message: str
    code: int
    param: str | None = None


class Failed(BaseModel):
    """vLLM's ErrorResponse."""

    error: Info


class Body(BaseModel):
    """A request as vLLM parses it."""

    model_config = {"extra": "allow"}
    priority: int = 0
    request_id: str = "resp_random"


class Event(BaseModel):
    """An event of a response."""

    type: str
    response: dict[str, Any]


def piece(text: str, finish: str | None = None) -> str:
    """Write a chunk as vLLM does."""
    return sse({"id": "c", "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}]})


def sse(event: Any) -> str:
    """Write an event as vLLM does."""
    return f"data: {json.dumps(event)}\n\n"


class Server:
    """A handler of vLLM's, and what it was asked."""

    def __init__(self, *events: Any, answer: Any = None, hangs: bool = False) -> None:
        self.events = events
        self.answer = answer
        self.hangs = hangs
        self.closed = False
        self.asked: Any = None

    async def handle(self, asked: Any) -> Any:
        """Answer at once, or with a stream."""
        self.asked = asked
        return self.answer or self.stream()

    async def stream(self) -> AsyncGenerator[Any]:
        """Yield the events, and note how that ended."""
        try:
            for event in self.events:
                yield event
            if self.hangs:
                await asyncio.Event().wait()
        finally:
            self.closed = True

    def call(self, endpoint: str = CHAT, *, by_lane: bool = False) -> Call:
        """Bind the handler."""
        return Call(ENDPOINTS[endpoint], self.handle, TypeAdapter(Body).validate_python, Failed, by_lane)


def stream(server: Server, endpoint: str = CHAT, **body: Any) -> tuple[Outcome, list[Any]]:
    """Ask for a stream: its outcome, and its events."""
    events: list[Any] = []
    request = Request("job_1", endpoint, "", "bulk", 9.0, emit=lambda data: events.append(json.loads(data)))
    return asyncio.run(server.call(endpoint).answer(request, {"stream": True, **body})), events


def test_events_pass_and_the_answer_is_whole() -> None:
    """Each chunk is emitted as it is, but for the usage that only we asked for; the Completion has it."""
    server = Server(piece("a"), piece("b", "stop"), sse(USAGE), "data: [DONE]\n\n")
    outcome, events = stream(server)
    assert isinstance(outcome, Completion)
    assert (outcome.usage.prompt_tokens, outcome.usage.completion_tokens) == (2, 1)
    answer = json.loads(outcome.body)
    assert answer["usage"] == USAGE["usage"]
    assert answer["choices"][0]["message"]["content"] == "ab"
    assert [event["choices"][0]["delta"]["content"] for event in events] == ["a", "b"]
    assert server.asked.stream_options == {"include_usage": True}


@pytest.mark.parametrize(
    ("options", "sent"),
    [
        ({"include_usage": True, "continuous_usage_stats": True}, None),
        ({"include_usage": False, "continuous_usage_stats": True}, {"include_usage": True}),
        ({}, {"include_usage": True}),
        ("odd", None),
        ([1], None),
    ],
)
def test_the_clients_options_stay_its_own(options: Any, sent: Any) -> None:
    """What the client set stays, what it did not ask for it does not get, what is wrong is vLLM's to refuse."""
    server = Server(piece("a", "stop"), sse(USAGE), "data: [DONE]\n\n")
    _, events = stream(server, stream_options=options)
    assert server.asked.stream_options == (options if sent is None else sent)
    wanted = isinstance(options, dict) and bool(options.get("include_usage"))
    assert (events[-1] == USAGE) is wanted


@pytest.mark.parametrize("before", [[], [piece("a")]])
@pytest.mark.parametrize(
    ("info", "outcome"),
    [
        ({"message": "no", "type": "BadRequestError", "param": "n", "code": 400}, (400, "invalid_request", "n")),
        ({"message": "maximum context length", "param": None, "code": 400}, (400, "context_length_exceeded", None)),
        ({"message": "Internal server error", "code": 500}, (500, "engine_error", None)),
        ({"message": "strange", "code": "strange"}, (500, "engine_error", None)),
    ],
)
def test_an_error_in_the_stream_ends_it(before: list[str], info: Any, outcome: tuple[int, str, str | None]) -> None:
    """It is the outcome, with the body that it would have without a stream; nothing is emitted after or of it."""
    server = Server(*before, sse({"error": info}), piece("after"), "data: [DONE]\n\n")
    made, events = stream(server)
    assert isinstance(made, Rejection)
    error = json.loads(made.body)["error"]
    assert (made.status, made.code, error["param"]) == outcome
    assert (error["message"], error["code"]) == (info["message"], made.code)
    assert len(events) == len(before)
    assert server.closed


def test_an_error_that_vllm_cannot_write_is_not_the_clients() -> None:
    """In a stream of a response vLLM stumbles over its own error: the body is not to blame."""

    async def broken() -> AsyncGenerator[Any]:
        yield Event(type="response.created", response={})
        Event.model_validate({"error": {}})

    outcome, events = stream(Server(answer=broken()), RESPONSES)
    assert isinstance(outcome, Rejection)
    assert (outcome.status, outcome.code) == (500, "engine_error")
    assert len(events) == 1


def test_a_busy_engine_defers_a_stream() -> None:
    """503 is Deferred, in the stream and before it."""
    busy = {"message": "busy", "code": 503}
    assert stream(Server(piece("a"), sse({"error": busy})))[0] == Deferred("job_1", "busy")
    assert stream(Server(answer=Failed(error=Info(message="busy", code=503)))) == (Deferred("job_1", "busy"), [])


def test_a_stream_that_just_ends_is_deferred() -> None:
    """Without a finish reason and without [DONE] the answer is not whole."""
    outcome, events = stream(Server(piece("a")))
    assert isinstance(outcome, Deferred)
    assert len(events) == 1


def test_a_cancelled_stream_is_closed() -> None:
    """Cancelling closes vLLM's generator, which is how vLLM aborts the request."""
    server = Server(piece("a"), hangs=True)

    async def cancel() -> None:
        begun = asyncio.Event()
        request = Request("job_1", CHAT, "", "bulk", 9.0, emit=lambda _: begun.set())
        task = asyncio.ensure_future(server.call().answer(request, {"stream": True}))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert server.closed

    asyncio.run(cancel())


def test_a_responses_events_are_models() -> None:
    """They are written as vLLM's server does, and the last one is the answer."""
    whole = {"id": "resp_1", "object": "response", "output": [], "usage": {"input_tokens": 2, "output_tokens": 3}}
    server = Server(
        Event(type="response.created", response={"id": "resp_1"}), Event(type="response.completed", response=whole)
    )
    outcome, events = stream(server, RESPONSES)
    assert isinstance(outcome, Completion)
    assert json.loads(outcome.body) == whole
    assert (outcome.usage.prompt_tokens, outcome.usage.completion_tokens) == (2, 3)
    assert [event["type"] for event in events] == ["response.created", "response.completed"]
    assert server.asked.request_id == "resp_1"
    assert not hasattr(server.asked, "stream_options")


def test_a_dead_engine_is_no_bad_request() -> None:
    """In a stream, vLLM tells of its core's death as of any error: the batch fails, not the job."""
    engine = VllmEngine(Settings(model_name="tiny"), "tiny")
    server = Server(piece("a"), sse({"error": {"message": "EngineCore died", "code": 500}}))
    engine._calls = {CHAT: server.call()}
    engine._client = SimpleNamespace(errored=True)
    request = Request("job_1", CHAT, '{"stream": true}', "bulk", 9.0, emit=lambda _: None)
    with pytest.raises(EngineFailure, match="vLLM's engine process died"):
        asyncio.run(engine._answer(request))
    engine._client.errored = False
    assert isinstance(asyncio.run(engine._answer(request)), Rejection)


@pytest.mark.parametrize(
    ("event", "data"),
    [
        ('data: {"a": 1}\n\n', '{"a": 1}'),
        ('event: x\ndata: {"a": 1}\n\n', '{"a": 1}'),
        ("data:{}\n\n", "{}"),
        (": ping\n\n", ""),
        ("data: [DONE]\n\n", "[DONE]"),
    ],
)
def test_the_payload_of_an_event(event: str, data: str) -> None:
    """It is what stands behind `data:`, and a comment has none."""
    assert payload(event) == data


@pytest.mark.parametrize(("lane", "priority"), [("realtime", 0), ("standard", 1), ("bulk", 2), ("other", 2)])
def test_a_lane_is_a_priority(lane: str, priority: int) -> None:
    """The smaller goes first, whatever the client says; without priority scheduling its word is vLLM's to judge."""
    for by_lane in (True, False):
        server = Server(answer=Failed(error=Info(message="no", code=400)))
        call = server.call(by_lane=by_lane)
        asyncio.run(call.answer(Request("job_1", CHAT, "", lane, 9.0), {"priority": -5}))
        assert server.asked.priority == (priority if by_lane else -5)
        assert server.asked.request_id == "resp_random"


def test_a_request_without_a_priority_gets_none() -> None:
    """Not every endpoint of every version has one."""

    class Plain(BaseModel):
        text: str = ""

    server = Server(answer=Failed(error=Info(message="no", code=400)))
    call = Call(ENDPOINTS[CHAT], server.handle, TypeAdapter(Plain).validate_python, Failed, by_lane=True)
    asyncio.run(call.answer(Request("job_1", CHAT, "", "bulk", 9.0), {}))
    assert not hasattr(server.asked, "priority")
