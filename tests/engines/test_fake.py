"""What the fake engine does on request, and what it costs."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stoker.settings import Settings
from tasks.engines.base import Completion, Deferred, EngineFailure, EngineStartError, Rejection, Request
from tasks.engines.fake import FakeEngine
from tests.engines.subjects import NAME, Subject

Make = Callable[..., Subject]


@pytest.fixture
def make() -> Iterator[Make]:
    """Start fake engines with settings of their own."""
    engines: list[FakeEngine] = []

    def start(**settings: Any) -> Subject:
        engine = FakeEngine(Settings(engine="fake", model_name=NAME, **settings))
        engine.start()
        engines.append(engine)
        return Subject(engine, real=False)

    yield start
    for engine in engines:
        engine.close()


def text(outcome: object) -> str:
    """Read the text of a chat's first choice."""
    assert isinstance(outcome, Completion), outcome
    found: str = json.loads(outcome.body)["choices"][0]["message"]["content"]
    return found


def until(true: Callable[[], object]) -> None:
    """Wait for something."""
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def quickest(work: Callable[[], object], enough: float, clock: Callable[[], float] = time.monotonic) -> float:
    """Return the seconds that it takes when nothing else keeps the machine busy: the least of up to twenty times."""
    least = math.inf
    for _ in range(20):
        started = clock()
        work()
        least = min(least, clock() - started)
        if least < enough:
            break
    return least


def test_echo(fake: Subject) -> None:
    """The answer is `echo: ` and the last user message; words are counted as tokens."""
    messages = [
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "echo: first"},
        {"role": "user", "content": [{"type": "text", "text": "one two"}, {"type": "text", "text": "three"}]},
    ]
    (outcome,) = fake.ask(fake.chat("job", messages=messages, max_tokens=None))
    assert text(outcome) == "echo: one two three"
    assert isinstance(outcome, Completion)
    assert (outcome.usage.prompt_tokens, outcome.usage.completion_tokens) == (3, 4)


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_length(fake: Subject, name: str) -> None:
    """An answer longer than it may be is cut and says so."""
    (outcome,) = fake.ask(fake.chat("job", "one two three", **{"max_tokens": None, name: 2}))
    assert text(outcome) == "echo: one"
    assert isinstance(outcome, Completion)
    assert json.loads(outcome.body)["choices"][0]["finish_reason"] == "length"


def test_embeddings(fake: Subject) -> None:
    """Equal inputs have equal vectors, as numbers or as base64."""
    body = {"model": NAME, "input": ["a", "b", "a"]}
    plain = Request("plain", "/v1/embeddings", json.dumps(body), "bulk", 9.0)
    coded = Request("coded", "/v1/embeddings", json.dumps(body | {"encoding_format": "base64"}), "bulk", 9.0)
    for outcome in fake.ask(plain, coded):
        assert isinstance(outcome, Completion)
        first, second, third = (item["embedding"] for item in json.loads(outcome.body)["data"])
        assert first == third != second


def test_marks_that_are_outcomes(fake: Subject) -> None:
    """`[[reject]]` is a 400 for this job, `[[defer:S]]` a Deferred; the others go on."""
    requests = [fake.chat("no", "[[reject]]"), fake.chat("later", "[[defer:2.5]]"), fake.chat("yes")]
    outcomes = {outcome.id: outcome for outcome in fake.ask(*requests)}
    assert isinstance(outcomes["no"], Rejection)
    assert outcomes["no"].status == 400
    assert outcomes["later"] == Deferred("later", "the prompt asked to be deferred", 2.5)
    assert isinstance(outcomes["yes"], Completion)


def test_slow(fake: Subject) -> None:
    """`[[slow:S]]` takes S seconds."""
    assert 0.2 <= quickest(lambda: fake.ask(fake.chat("job", "[[slow:0.2]] x")), 0.4) < 0.4


def test_garbage(fake: Subject) -> None:
    """`[[garbage]]` answers with NUL and lone surrogates, as JSON escapes, and 5 MB."""
    (outcome,) = fake.ask(fake.chat("job", "[[garbage]]"))
    assert isinstance(outcome, Completion)
    assert "\\u0000" in outcome.body
    assert "\\ud800" in outcome.body
    assert outcome.body.isascii()
    assert len(outcome.body) > 5_000_000


def test_hang(make: Make) -> None:
    """`[[hang]]` ends only by its timeout, `stop` or an abort, soon after it, and is no progress."""
    subject = make()

    def late() -> None:
        (outcome,) = subject.ask(subject.chat("late", "[[hang]]", timeout=0.3))
        assert isinstance(outcome, Rejection)

    def abort() -> None:
        until(lambda: subject.engine._runner._tasks)  # type: ignore[attr-defined]  # else it is lost
        subject.engine.abort(["gone"])

    def aborted() -> None:
        threading.Timer(0.3, abort).start()
        assert subject.ask(subject.chat("gone", "[[hang]]")) == []

    def stopped() -> None:
        stop = threading.Event()
        threading.Timer(0.3, stop.set).start()
        assert subject.ask(subject.chat("hung", "[[hang]]"), stop=stop) == []

    for end in (late, aborted, stopped):
        assert 0.3 <= quickest(end, 0.45) < 0.45
    stop = threading.Event()
    hanging = threading.Thread(target=subject.ask, args=[subject.chat("hung", "[[hang]]")], kwargs={"stop": stop})
    hanging.start()
    until(lambda: time.monotonic() - subject.engine.last_progress() >= 0.2)
    stop.set()
    hanging.join(60)


def test_raise(make: Make) -> None:
    """`[[raise]]` breaks the engine: every `generate`, running or later, raises EngineFailure in one line."""
    subject = make()
    raised: list[str] = []

    def run() -> None:
        try:
            subject.ask(subject.chat("other", "[[hang]]"))
        except EngineFailure as failure:
            raised.append(str(failure))

    other = threading.Thread(target=run)
    other.start()
    until(lambda: subject.engine._runner._tasks)  # type: ignore[attr-defined]
    with pytest.raises(EngineFailure, match="a prompt asked for it"):
        subject.ask(subject.chat("ok"), subject.chat("bad", "[[raise]]"))
    other.join(60)
    assert raised == ["the fake engine broke: a prompt asked for it"]
    with pytest.raises(EngineFailure):
        subject.ask(subject.chat("later"))


def test_kill(tmp_path: Path) -> None:
    """`[[kill]]` ends the process at once, after its start was logged."""
    log = tmp_path / "starts"
    code = (
        "import threading\n"
        "from stoker.settings import Settings\n"
        "from tasks.engines.base import Request\n"
        "from tasks.engines.fake import FakeEngine\n"
        f"engine = FakeEngine(Settings(engine='fake', fake_log={str(log)!r}))\n"
        "engine.start()\n"
        'body = \'{"messages": [{"role": "user", "content": "[[kill]]"}]}\'\n'
        "list(engine.generate([Request('job', '/v1/chat/completions', body, 'bulk', 9.0)], threading.Event()))\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], check=False, timeout=60)
    assert ended.returncode == -signal.SIGKILL
    assert log.read_text().startswith("job ")


def test_each_start_is_logged_before_its_work(make: Make, tmp_path: Path) -> None:
    """The log has a line `<job> <pid> <time>` for each start, also of what is rejected or hangs."""
    log = tmp_path / "starts"
    subject = make(fake_log=log)
    before = time.time()
    hang = subject.chat("hang", "[[hang]]", timeout=0.2)
    subject.ask(subject.chat("good"), subject.chat("no", "[[reject]]"), hang)
    lines = [line.split() for line in log.read_text().splitlines()]
    assert sorted(job for job, _, _ in lines) == ["good", "hang", "no"]
    assert all(int(pid) == os.getpid() and before <= float(at) <= time.time() for _, pid, at in lines)


def test_slots_and_lanes(make: Make, tmp_path: Path) -> None:
    """With one slot, requests go one by one, realtime first, then standard, then bulk."""
    log = tmp_path / "starts"
    subject = make(fake_log=log, fake_slots=1)
    requests = [
        subject.chat("first", "[[slow:0.05]]", lane="bulk"),
        *(subject.chat(f"{lane}", "[[slow:0.05]]", lane=lane) for lane in ("bulk", "standard", "realtime")),
    ]
    started = time.monotonic()
    subject.ask(*requests)
    assert time.monotonic() - started >= 0.2
    assert [line.split()[0] for line in log.read_text().splitlines()] == ["first", "realtime", "standard", "bulk"]


def test_a_full_engine_keeps_quick_ones_waiting(make: Make) -> None:
    """While all slots are taken even a request that costs nothing waits for its turn."""
    subject = make(engine_slots=1)
    slow = threading.Thread(target=subject.ask, args=[subject.chat("slow", "[[slow:2]]")])
    slow.start()
    until(lambda: subject.engine._gate.line.inside)  # type: ignore[attr-defined]
    assert len(subject.ask(subject.chat("quick"))) == 1
    assert not subject.engine._runner._tasks  # type: ignore[attr-defined]
    slow.join(60)


def test_time_by_settings(make: Make) -> None:
    """An answer takes the base and its words' time, each word longer the more requests run at once."""
    subject = make(fake_base_ms=50, fake_token_ms=10, fake_batch_factor=1)
    request = subject.chat("job", "a b c d", max_tokens=None)

    def seconds(copies: int, enough: float) -> float:
        return quickest(lambda: subject.ask(*(request for _ in range(copies))), enough)

    assert 0.1 <= seconds(1, 0.2) < 0.2
    assert 0.25 <= seconds(4, 0.45) < 0.45


def test_time_is_not_slept_away(make: Make) -> None:
    """Without a latency setting an answer costs far less than a fifth of a millisecond."""
    subject = make()
    requests = [subject.chat(str(number), "tell me a story of a dragon") for number in range(2_000)]
    assert quickest(lambda: subject.ask(*requests), 0.4, time.process_time) < 0.4


def test_a_log_that_cannot_be_opened_is_one_line(tmp_path: Path) -> None:
    """A bad log setting stops the start and names the variable."""
    engine = FakeEngine(Settings(engine="fake", fake_log=tmp_path / "missing" / "log"))
    with pytest.raises(EngineStartError, match="STOKER_FAKE_LOG"):
        engine.start()


def test_close_ends_the_thread(make: Make) -> None:
    """Closing, even twice, ends the engine's thread, and what still runs raises EngineFailure."""
    subject = make()
    raised: list[EngineFailure] = []

    def run() -> None:
        try:
            subject.ask(subject.chat("hung", "[[hang]]"))
        except EngineFailure as failure:
            raised.append(failure)

    hanging = threading.Thread(target=run)
    hanging.start()
    until(lambda: subject.engine._runner._tasks)  # type: ignore[attr-defined]
    subject.engine.close()
    subject.engine.close()
    hanging.join(60)
    assert len(raised) == 1
    assert not [thread for thread in threading.enumerate() if thread is subject.engine._runner._thread]  # type: ignore[attr-defined]
    with pytest.raises(EngineFailure):
        subject.ask(subject.chat("later"))
