"""The streams of the fake engine, as clients of OpenAI's read them."""

from __future__ import annotations

import json
import math
import threading
import time
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types import Completion as TextCompletion
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from tasks.engines import echo
from tasks.engines.base import Completion, Deferred, Request, ServedModel
from tests.engines.subjects import CHAT, NAME, Subject, heard

MODEL = ServedModel(NAME)


def asked(endpoint: str, prompt: str, **body: Any) -> Request:
    """Make a request of any endpoint."""
    field = {
        CHAT: {"messages": [{"role": "user", "content": prompt}]},
        "/v1/completions": {"prompt": prompt},
        "/v1/responses": {"input": prompt},
    }[endpoint]
    return Request("job_0a", endpoint, json.dumps({"model": NAME, **field, **body}), "realtime", 9.0)


def events_of(request: Request) -> tuple[list[Any], Any]:
    """Return the events of a request's stream, and its whole answer."""
    answer = echo.answer(heard(request)[0], MODEL)
    assert isinstance(answer, echo.Echo)
    assert isinstance(answer.outcome, Completion)
    return [json.loads(event) for event in answer.speech.part(0)], json.loads(answer.outcome.body)


@pytest.mark.parametrize(
    ("endpoint", "chunk", "whole"),
    [
        (CHAT, ChatCompletionChunk, ChatCompletion),
        ("/v1/completions", None, TextCompletion),  # its type has no reason for the chunks that have none
        ("/v1/responses", ResponseStreamEvent, Response),
    ],
)
@pytest.mark.parametrize("limit", [None, 2])
def test_the_events_are_openais(endpoint: str, chunk: Any, whole: Any, limit: int | None) -> None:
    """Each event, and the whole answer, has the fields that openai's client has types for."""
    name = "max_output_tokens" if endpoint == "/v1/responses" else "max_tokens"
    events, answer = events_of(asked(endpoint, "hello there", **{name: limit}))
    assert events
    if chunk is not None:
        reader = TypeAdapter(chunk)
        for event in events:
            reader.validate_python(event)
    TypeAdapter(whole).validate_python(answer)


def test_one_event_a_word() -> None:
    """After the role there is one event for each word, with the space behind it, then the reason of the end."""
    events, _ = events_of(asked(CHAT, "one  two\nthree "))
    deltas = [event["choices"][0]["delta"] for event in events]
    assert deltas == [
        {"role": "assistant", "content": ""},
        *({"content": word} for word in ("echo: ", "one  ", "two\n", "three ")),
        {},
    ]


def test_choices_are_said_side_by_side() -> None:
    """With `n` each word comes so many times, as from an engine that writes all choices at once."""
    events, _ = events_of(asked(CHAT, "a", n=2))
    assert [event["choices"][0]["index"] for event in events] == [0, 1] * 4


@given(st.text(st.characters(codec=None), max_size=50), st.sampled_from([CHAT, "/v1/completions", "/v1/responses"]))
def test_any_text_is_said_exactly(prompt: str, endpoint: str) -> None:
    """Whatever the prompt holds, the deltas are the answer's text, and its words are its tokens."""
    events, answer = events_of(asked(endpoint, prompt))
    if endpoint == "/v1/responses":
        said = [event["delta"] for event in events if event["type"] == "response.output_text.delta"]
        assert "".join(said) == answer["output"][0]["content"][0]["text"]
        assert len(said) == answer["usage"]["output_tokens"]
        return
    choices = [event["choices"][0] for event in events]
    said = [choice["text"] if "text" in choice else choice["delta"].get("content", "") for choice in choices]
    (choice,) = answer["choices"]
    assert "".join(said) == (choice["text"] if "text" in choice else choice["message"]["content"])
    assert len([word for word in said if word]) == answer["usage"]["completion_tokens"]


def test_garbage_is_streamed_too() -> None:
    """NUL, lone surrogates and 5 MB come through a stream as through an answer."""
    events, answer = events_of(asked(CHAT, "[[garbage]]"))
    assert events[1]["choices"][0]["delta"]["content"] == answer["choices"][0]["message"]["content"]
    assert len(json.dumps(answer)) > 5_000_000


@pytest.mark.parametrize("engine", ["fake", "paced"])
def test_a_cut_stream_is_deferred(engine: str, request: pytest.FixtureRequest) -> None:
    """`[[cut]]` breaks off after two words; without a stream it means nothing."""
    speaker: Subject = request.getfixturevalue(engine)
    stream, events = heard(speaker.chat("job", "[[cut]] a b c", max_tokens=9))
    assert speaker.ask(stream) == [Deferred("job", "cut")]
    assert [event["choices"][0]["delta"]["content"] for event in events] == ["", "echo: ", "[[cut]] "]
    (plain,) = speaker.ask(speaker.chat("job", "[[cut]] a b c"))
    assert isinstance(plain, Completion)


def test_words_come_at_the_pace_that_is_set(paced: Subject) -> None:
    """The first comes after the base time, the others each a token's time later, the outcome after the last."""
    firsts, wholes = [], []
    for _ in range(20):  # the quickest counts: the others may have met a busy machine
        times: list[float] = []
        emit = lambda _, times=times: times.append(time.monotonic())  # noqa: E731
        request = replace(heard(paced.chat("job", "a b c d", max_tokens=9))[0], emit=emit)
        started = time.monotonic()
        (outcome,) = list(paced.engine.generate([request], threading.Event()))
        wholes.append(time.monotonic() - started)
        assert isinstance(outcome, Completion)
        assert len(times) == 7
        assert all(later - sooner >= 0.02 for sooner, later in pairwise(times[1:]))
        firsts.append(times[0] - started)
        if min(firsts) < 0.09 and min(wholes) < 0.4:
            break
    assert 0.03 <= min(firsts) < 0.09
    assert 0.155 <= min(wholes) < 0.4


def test_a_stream_costs_the_time_of_an_answer(paced: Subject) -> None:
    """The same words take the same time, heard or not."""
    requests = [paced.chat("job", "word " * 12, max_tokens=20), heard(paced.long("job"), max_tokens=13)[0]]
    least = [math.inf, math.inf]
    for _ in range(10):  # the quickest counts: the others may have met a busy machine
        for number, request in enumerate(requests):
            started = time.monotonic()
            paced.ask(request)
            least[number] = min(least[number], time.monotonic() - started)
        if abs(least[0] - least[1]) < 0.15:
            break
    assert abs(least[0] - least[1]) < 0.15
