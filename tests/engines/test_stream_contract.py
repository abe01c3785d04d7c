"""What every engine promises of a stream, held against each of them."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from tasks.engines.assembly import Assembly
from tasks.engines.base import Completion, Outcome, Rejection, Request
from tests.engines.subjects import CHAT, NAME, Subject, heard

# vLLM and torch warn of themselves while they load and run.
pytestmark = pytest.mark.filterwarnings("default")

COMPLETIONS = "/v1/completions"
RESPONSES = "/v1/responses"
HELLO = [{"role": "user", "content": "hello  there,\n you"}]
BODIES: list[tuple[str, dict[str, Any]]] = [
    (CHAT, {"messages": HELLO, "max_tokens": 12}),
    (CHAT, {"messages": HELLO, "max_tokens": 2, "n": 3, "temperature": 0.8}),
    (COMPLETIONS, {"prompt": ["hello there", "you"], "max_tokens": 12, "n": 2, "temperature": 0.8}),
    (RESPONSES, {"input": "hello  there, you", "max_output_tokens": 12}),
    (RESPONSES, {"input": "hello there", "max_output_tokens": 2}),
]


def asked(endpoint: str, body: dict[str, Any], job: str = "job_1") -> Request:
    """Make a request whose answer is always the same."""
    fixed = {"model": NAME, "temperature": 0, **({} if endpoint == RESPONSES else {"seed": 1}), **body}
    return Request(job, endpoint, json.dumps(fixed), "realtime", 60.0)


def completed(outcomes: list[Outcome]) -> Any:
    """Return the one answer."""
    (outcome,) = outcomes
    assert isinstance(outcome, Completion), outcome
    return json.loads(outcome.body)


def said(answer: Any) -> list[tuple[str, str]]:
    """Return the text of each choice and why it ended."""
    if "choices" not in answer:
        return [(answer["output"][0]["content"][0]["text"], answer["status"])]
    choices = answer["choices"]
    return [(one["text"] if "text" in one else one["message"]["content"], one["finish_reason"]) for one in choices]


def spoken(events: list[Any]) -> list[str]:
    """Join the deltas of each choice."""
    joined: dict[int, str] = {}
    for event in events:
        if event.get("type") == "response.output_text.delta":
            joined[0] = joined.get(0, "") + event["delta"]
        for choice in event.get("choices", []):
            more = choice["text"] if "text" in choice else choice["delta"].get("content") or ""
            joined[choice["index"]] = joined.get(choice["index"], "") + more
    return [joined[index] for index in sorted(joined)]


@pytest.mark.parametrize(("endpoint", "body"), BODIES)
def test_the_deltas_are_the_answer(speaker: Subject, endpoint: str, body: dict[str, Any]) -> None:
    """The deltas of a stream, joined, are the text of its Completion, which is the endpoint's whole answer."""
    request, events = heard(asked(endpoint, body))
    answer = completed(speaker.ask(request))
    assert spoken(events) == [text for text, _ in said(answer)]
    assert answer["object"] in {"chat.completion", "text_completion", "response"}
    assembly = Assembly(endpoint)
    for event in events:
        assert event
        assembly.add(json.dumps(event))
    assert assembly.complete
    assert said(json.loads(assembly.body())) == said(answer)


@pytest.mark.parametrize(("endpoint", "body"), BODIES)
def test_a_stream_changes_nothing_of_the_answer(speaker: Subject, endpoint: str, body: dict[str, Any]) -> None:
    """Content, finish reason, usage, model and object are those of the same request without a stream."""
    request, _ = heard(asked(endpoint, body))
    (plain,), (streamed,) = speaker.ask(asked(endpoint, body)), speaker.ask(request)
    assert isinstance(plain, Completion)
    assert isinstance(streamed, Completion)
    one, other = json.loads(plain.body), json.loads(streamed.body)
    assert said(one) == said(other)
    assert (one["object"], one["model"]) == (other["object"], other["model"])
    assert one["usage"]["total_tokens"] == other["usage"]["total_tokens"]
    assert replace(plain.usage, cached_tokens=0) == replace(streamed.usage, cached_tokens=0)


def test_a_chat_begins_with_its_role_and_ends_with_a_reason(speaker: Subject) -> None:
    """The first event tells the role, the last one why the choice ended; all are of one answer."""
    request, events = heard(asked(*BODIES[0]))
    answer = completed(speaker.ask(request))
    assert events[0]["choices"][0]["delta"]["role"] == "assistant"
    reasons = [event["choices"][0]["finish_reason"] for event in events]
    assert reasons[-1] == said(answer)[0][1]
    assert not any(reasons[:-1])
    assert {(event["id"], event["object"], event["model"]) for event in events} == {
        (answer["id"], "chat.completion.chunk", NAME)
    }


def test_the_events_of_a_response(speaker: Subject) -> None:
    """They are numbered without a gap, in the order of OpenAI's, and the last one is the answer."""
    request, events = heard(asked(*BODIES[3]))
    answer = completed(speaker.ask(request))
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    kinds = [event["type"].removeprefix("response.") for event in events]
    assert kinds[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert set(kinds[4:-4]) == {"output_text.delta"}
    assert kinds[-4:-1] == ["output_text.done", "content_part.done", "output_item.done"]
    assert events[-1]["response"] == answer


@pytest.mark.parametrize("stream", [False, True])
def test_a_response_has_the_name_of_its_job(speaker: Subject, stream: bool) -> None:
    """The answer of `job_<hex>` is `resp_<hex>`, from its first event on, and `background` asks for nothing."""
    request, events = heard(asked(RESPONSES, {"input": "hello", "max_output_tokens": 2, "background": True}, "job_0f"))
    if not stream:
        request = asked(RESPONSES, {"input": "hello", "max_output_tokens": 2, "background": True}, "job_0f")
    assert completed(speaker.ask(request))["id"] == "resp_0f"
    assert {event["response"]["id"] for event in events if "response" in event} <= {"resp_0f"}
    assert bool(events) == stream


@pytest.mark.parametrize(("endpoint", "body"), BODIES[:3])
def test_usage_comes_when_asked_for(speaker: Subject, endpoint: str, body: dict[str, Any]) -> None:
    """Only with `include_usage` the last event has no choice, but the usage; without it no event has."""
    request, events = heard(asked(endpoint, body), stream_options={"include_usage": True})
    answer = completed(speaker.ask(request))
    assert events[-1]["choices"] == []
    assert events[-1]["usage"] == {key: value for key, value in answer["usage"].items() if value is not None}
    for options in (None, {"include_usage": False}, {"include_usage": False, "continuous_usage_stats": True}):
        request, events = heard(asked(endpoint, body), stream_options=options)
        assert completed(speaker.ask(request))["usage"]["total_tokens"] == answer["usage"]["total_tokens"]
        assert all(event["choices"] and not event.get("usage") for event in events)


def test_events_come_one_by_one_before_the_outcome(talker: Subject) -> None:
    """The first event is there long before the outcome, and the others come in between."""
    for words in (39, 80, 160):  # on a busy machine it must take longer to be what is waited for
        times = spread(talker, words)
        if well_spread(times):
            break
    assert well_spread(times)


def spread(talker: Subject, words: int) -> list[float]:
    """Return when the events of a stream came, as parts of the time that all of it took."""
    times: list[float] = []
    request, _ = heard(talker.long("long", words))
    request = replace(request, emit=lambda _: times.append(time.monotonic()))
    started = time.monotonic()
    completed(talker.ask(request))
    took = time.monotonic() - started
    return [(at - started) / took for at in times]


def well_spread(times: list[float]) -> bool:
    """Tell whether the first comes early, many before the end, and not in a few heaps."""
    return (
        times[0] < 0.5 and sum(at < 0.8 for at in times) > len(times) / 3 and len({round(at, 2) for at in times}) > 10
    )


def stopped(begin: Callable[[], object], events: list[Any], end: Callable[[], object]) -> float:
    """End a stream in the middle; return the seconds that `generate` took to end."""
    running = threading.Thread(target=begin)
    running.start()
    deadline = time.monotonic() + 60
    while not events:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    started = time.monotonic()
    end()
    running.join(60)
    return time.monotonic() - started


def is_whole(events: list[Any]) -> bool:
    """Tell whether a stream came to its end."""
    return any(choice["finish_reason"] for event in events for choice in event["choices"])


def quiet(events: list[Any]) -> bool:
    """Tell whether nothing comes any more."""
    before = len(events)
    time.sleep(0.3)
    return len(events) == before


def test_stop_ends_the_events(talker: Subject) -> None:
    """When `stop` is set, the stream breaks off without an outcome, and nothing comes after `generate` ended."""
    spent = []
    for _ in range(3):  # the quickest counts: the others may have met a busy machine
        stop = threading.Event()
        outcomes: list[Outcome] = []
        request, events = heard(talker.long("stopped", 300))
        ask = partial(talker.ask, request, stop=stop)
        spent.append(stopped(lambda ask=ask, into=outcomes: into.extend(ask()), events, stop.set))  # type: ignore[misc]
        assert outcomes == []
        assert quiet(events)
        assert not is_whole(events)
    assert min(spent) < 1.0


def test_abort_ends_the_events_of_one(talker: Subject) -> None:
    """An aborted stream falls silent, and its neighbour goes on to the end."""
    gone, cut = heard(talker.long("gone", 300))
    stays, whole = heard(talker.long("stays"))
    outcomes: list[Outcome] = []
    stopped(lambda: outcomes.extend(talker.ask(gone, stays)), cut, lambda: talker.engine.abort(["gone"]))
    assert [(outcome.id, isinstance(outcome, Completion)) for outcome in outcomes] == [("stays", True)]
    assert is_whole(whole)
    assert not is_whole(cut)
    assert quiet(cut)


def test_nothing_comes_after_the_caller_turned_away(talker: Subject) -> None:
    """Closing the iterator silences the streams at once, though the engine learns of it a little later."""
    request, events = heard(talker.long("left"))
    outcomes = talker.engine.generate([talker.chat("quick", max_tokens=2), request], threading.Event())
    assert next(iter(outcomes)).id == "quick"
    while not events:
        time.sleep(0.01)
    outcomes.close()  # type: ignore[attr-defined]  # a generator
    before = len(events)
    assert quiet(events)
    assert len(events) == before


def test_a_stream_may_not_run_for_ever(talker: Subject) -> None:
    """A stream over its timeout breaks off: 408, as without a stream."""
    request, events = heard(talker.long("late", timeout=0.3))
    (late,) = talker.ask(request)
    assert isinstance(late, Rejection)
    assert (late.status, late.code) == (408, "request_timeout")
    assert quiet(events)


@pytest.mark.parametrize(
    ("endpoint", "body", "codes"),
    [
        (CHAT, {}, {"invalid_request"}),
        (CHAT, {"messages": HELLO, "model": "other"}, {"model_not_found"}),
        (CHAT, {"messages": HELLO, "max_tokens": -3}, {"invalid_request"}),
        (CHAT, {"messages": [{"role": "user", "content": "word " * 2_000}]}, {"context_length_exceeded"}),
        (COMPLETIONS, {"prompt": {"a": 1}}, {"invalid_request"}),
        (RESPONSES, {"input": "word " * 2_000}, {"context_length_exceeded"}),
        ("/v1/embeddings", {"input": "hello"}, {"streaming_unsupported", "unsupported_endpoint"}),
    ],
)
def test_what_cannot_begin_has_no_events(
    speaker: Subject, endpoint: str, body: dict[str, Any], codes: set[str]
) -> None:
    """A request that is refused is a Rejection, as without a stream, and no event came before it."""
    request, events = heard(asked(endpoint, body))
    (outcome,) = speaker.ask(request)
    assert isinstance(outcome, Rejection), outcome
    assert outcome.code in codes
    assert outcome.status in {400, 404}
    assert events == []


def test_many_streams_at_once_do_not_mix(speaker: Subject) -> None:
    """Each stream of a batch gets the events of its own answer."""
    asks = [heard(speaker.chat(f"job-{number}", f"number {number}", max_tokens=6)) for number in range(20)]
    outcomes = {outcome.id: outcome for outcome in speaker.ask(*(request for request, _ in asks))}
    for request, events in asks:
        answer = completed([outcomes[request.id]])
        assert {event["id"] for event in events} == {answer["id"]}
        assert spoken(events) == [said(answer)[0][0]]
