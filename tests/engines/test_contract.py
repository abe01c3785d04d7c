"""What every engine promises, held against each of them."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from tasks.engines.base import Completion, Outcome, Rejection, Request
from tests.engines.subjects import CHAT, NAME, Subject

# vLLM and torch warn of themselves while they load and run.
pytestmark = pytest.mark.filterwarnings("default")


def running(subject: Subject) -> set[str]:
    """Return the requests that the engine has taken and not ended."""
    return set(subject.engine._runner._tasks.values())  # type: ignore[attr-defined]


def until(true: Callable[[], object]) -> None:
    """Wait for something."""
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def gather(outcomes: list[Outcome], subject: Subject, first: Request, second: Request, stop: threading.Event) -> None:
    """Collect the outcomes of two requests."""
    outcomes.extend(subject.ask(first, second, stop=stop))


def test_each_request_gets_one_outcome(subject: Subject) -> None:
    """Forty requests in one batch yield forty outcomes, one for each id."""
    outcomes = subject.ask(*(subject.chat(f"job-{i}") for i in range(40)))
    assert sorted(outcome.id for outcome in outcomes) == sorted(f"job-{i}" for i in range(40))
    assert all(isinstance(outcome, Completion) for outcome in outcomes)


def test_no_request_is_no_outcome(subject: Subject) -> None:
    """An empty batch ends at once."""
    assert subject.ask() == []


@pytest.mark.parametrize(
    ("endpoint", "body", "kind"),
    [
        (CHAT, {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 3}, "chat.completion"),
        ("/v1/completions", {"prompt": "hello", "max_tokens": 3}, "text_completion"),
        ("/v1/responses", {"input": "hello", "max_output_tokens": 3}, "response"),
    ],
)
def test_answers_are_openais_objects(subject: Subject, endpoint: str, body: dict[str, Any], kind: str) -> None:
    """The answer is the endpoint's own object, for the model asked for, and the usage is the one it states."""
    request = Request("job", endpoint, json.dumps({"model": NAME, **body}), "standard", 60.0)
    (outcome,) = subject.ask(request)
    assert isinstance(outcome, Completion), outcome
    answer = json.loads(outcome.body)
    assert answer["object"] == kind
    assert answer["model"] == NAME
    usage = answer["usage"]
    assert outcome.usage.prompt_tokens == usage.get("prompt_tokens", usage.get("input_tokens")) > 0
    assert outcome.usage.completion_tokens == usage.get("completion_tokens", usage.get("output_tokens")) > 0
    assert outcome.usage.completion_tokens <= 3


def test_n_answers_come_together(subject: Subject) -> None:
    """With `n` one request is answered by so many choices."""
    (outcome,) = subject.ask(subject.chat("job", n=3))
    assert isinstance(outcome, Completion)
    assert len(json.loads(outcome.body)["choices"]) == 3


def test_an_outcome_comes_as_soon_as_it_is_done(subject: Subject) -> None:
    """A quick request is answered while a slow one of the same batch still runs."""
    outcomes = subject.engine.generate([subject.slow("slow", 30), subject.chat("quick")], threading.Event())
    assert next(outcomes).id == "quick"
    # Still running: it can be taken out.
    subject.engine.abort(["slow"])
    assert list(outcomes) == []


def test_batches_overlap(subject: Subject) -> None:
    """A batch that comes later is answered while an earlier one runs."""
    ended: list[str] = []

    def run(request: Request) -> None:
        ended.extend(outcome.id for outcome in subject.ask(request))

    first = threading.Thread(target=run, args=[subject.slow("first", 3)])
    second = threading.Thread(target=run, args=[subject.chat("second")])
    first.start()
    until(lambda: "first" in running(subject))
    second.start()
    first.join(60)
    second.join(60)
    assert ended == ["second", "first"]


def test_stop_ends_generate_within_a_second(subject: Subject) -> None:
    """When `stop` is set, what is unfinished is aborted and has no outcome."""
    spent = []
    for _ in range(3):  # the quickest counts: the others may have met a busy machine
        stop = threading.Event()
        outcomes: list[Outcome] = []
        asked = threading.Thread(
            target=gather, args=[outcomes, subject, subject.slow("a", 30), subject.slow("b", 30), stop]
        )
        asked.start()
        until(lambda: running(subject) >= {"a", "b"})
        started = time.monotonic()
        stop.set()
        asked.join(60)
        spent.append(time.monotonic() - started)
        assert outcomes == []
    assert min(spent) < 1.0
    assert len(subject.ask(subject.chat("after"))) == 1


def test_stop_keeps_what_was_done(subject: Subject) -> None:
    """Outcomes that came before `stop` are yielded."""
    stop = threading.Event()
    outcomes = []
    for outcome in subject.engine.generate([subject.slow("slow", 30), subject.chat("quick")], stop):
        outcomes.append(outcome.id)
        stop.set()
    assert outcomes == ["quick"]


def test_abort_takes_single_requests_out(subject: Subject) -> None:
    """Aborted requests have no outcome, the others of the batch go on; unknown ids are ignored."""
    asked = [subject.slow("gone", 30), subject.slow("stays", 2), subject.chat("quick")]
    outcomes = subject.engine.generate(asked, threading.Event())
    assert next(outcomes).id == "quick"
    subject.engine.abort(["gone", "never seen"])
    assert [outcome.id for outcome in outcomes] == ["stays"]


def test_turning_away_aborts(subject: Subject) -> None:
    """Closing the iterator aborts what is unfinished, and the engine goes on."""
    outcomes = subject.engine.generate([subject.slow("slow", 30), subject.chat("quick")], threading.Event())
    assert next(iter(outcomes)).id == "quick"
    outcomes.close()  # type: ignore[attr-defined]  # a generator
    until(lambda: not running(subject))


def test_a_request_may_not_run_for_ever(subject: Subject) -> None:
    """A request over its timeout is aborted and rejected with 408; its neighbours are not."""
    outcomes = {o.id: o for o in subject.ask(subject.slow("late", 30, timeout=0.15), subject.chat("quick"))}
    late = outcomes["late"]
    assert isinstance(late, Rejection)
    assert (late.status, late.code) == (408, "request_timeout")
    assert json.loads(late.body)["error"]["code"] == "request_timeout"
    assert isinstance(outcomes["quick"], Completion)


@pytest.mark.parametrize(
    ("endpoint", "body", "status", "code", "param"),
    [
        (CHAT, "{", 400, "invalid_request", "body"),
        (CHAT, "[" * 100_000, 400, "invalid_request", "body"),
        (CHAT, "[]", 400, "invalid_request", "body"),
        (CHAT, {}, 400, "invalid_request", "messages"),
        (CHAT, {"messages": "hello"}, 400, "invalid_request", "messages"),
        (
            CHAT,
            {"messages": [{"role": "user", "content": "x"}], "stream": True},
            400,
            "streaming_unsupported",
            "stream",
        ),
        (
            CHAT,
            {"messages": [{"role": "user", "content": "x"}], "max_tokens": -3},
            400,
            "invalid_request",
            "max_tokens",
        ),
        (CHAT, {"messages": [{"role": "user", "content": "x"}], "model": "other"}, 404, "model_not_found", "model"),
        ("/v1/completions", {"prompt": {"a": 1}}, 400, "invalid_request", "prompt"),
        ("/v1/nothing", {}, 400, "unsupported_endpoint", None),
    ],
)
def test_bad_bodies_are_rejected(
    subject: Subject, endpoint: str, body: Any, status: int, code: str, param: str | None
) -> None:
    """What is wrong with a body is a Rejection with an OpenAI error that names the field, and stops nobody else."""
    text = body if isinstance(body, str) else json.dumps({"model": NAME, **body})
    outcomes = {o.id: o for o in subject.ask(Request("bad", endpoint, text, "bulk", 60.0), subject.chat("good"))}
    bad = outcomes["bad"]
    assert isinstance(bad, Rejection), bad
    assert (bad.status, bad.code) == (status, code)
    error = json.loads(bad.body)["error"]
    assert (error["code"], error["param"], error["message"]) == (code, param, bad.message)
    assert error["type"] == "invalid_request_error"
    assert isinstance(outcomes["good"], Completion)


def test_a_prompt_longer_than_the_context_is_rejected(subject: Subject) -> None:
    """A prompt that does not fit is a Rejection with the code OpenAI has for it."""
    (outcome,) = subject.ask(subject.chat("long", "word " * 2_000))
    assert isinstance(outcome, Rejection)
    assert (outcome.status, outcome.code) == (400, "context_length_exceeded")


def test_progress_is_now_while_idle_and_moves_while_busy(subject: Subject) -> None:
    """An idle engine is never taken for a hung one; a busy one is judged by its tokens and outcomes."""
    now = time.monotonic()
    assert subject.engine.last_progress() >= now
    outcomes = iter(subject.engine.generate([subject.slow("slow"), subject.chat("quick")], threading.Event()))
    next(outcomes)
    seen = subject.engine.last_progress()
    assert seen >= now
    assert next(outcomes).id == "slow"
    assert subject.engine.last_progress() > seen


def test_prompts_are_not_logged(
    subject: Subject, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Neither an answered nor a rejected prompt reaches a log or the terminal."""
    secret = "xyzzy-secret"
    caplog.set_level("DEBUG")
    subject.ask(
        subject.chat("good", secret),
        subject.chat("long", f"{secret} " * 2_000),
        subject.chat("odd", secret, tools=secret, temperature=secret),
        subject.chat("late", secret, max_tokens=400, ignore_eos=True, timeout=0.001),
        Request("bad", CHAT, json.dumps({"messages": [{"role": "user", "content": {secret: secret}}]}), "bulk", 9.0),
    )
    out, err = capfd.readouterr()
    assert secret not in out + err + caplog.text


def test_what_an_engine_serves_is_known(subject: Subject) -> None:
    """Its slots, name and context are known after the start."""
    assert subject.engine.slots > 1
    (model,) = subject.engine.models
    assert (model.name, model.max_model_len) == (NAME, 512)
