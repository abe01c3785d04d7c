"""An engine without a model: it answers `echo: <prompt>`, takes its time by a setting, and fails on request.

For tests and for measuring what everything around an engine costs; never a default. The marks that a prompt may
carry are in docs/engines.md.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
from collections.abc import Iterator, Sequence
from threading import Event

from stoker.settings import Settings
from tasks.engines import echo
from tasks.engines.base import (
    Deferred,
    EngineFailure,
    EngineStartError,
    Outcome,
    Rejection,
    Request,
    ServedModel,
    reserved,
)
from tasks.engines.echo import Echo
from tasks.engines.gate import Gate
from tasks.engines.refusals import refuse
from tasks.engines.runner import Runner

MARK = re.compile(r"\[\[(slow|reject|raise|hang|kill|garbage|defer)(?::([0-9.]+))?\]\]")
STEP = 0.02
"""Seconds between two wake-ups of an answer that takes its time: several words may come in one."""


class FakeEngine:
    """Serves every text endpoint with the prompt itself."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._slots = settings.engine_slots or settings.fake_slots
        self._gate = Gate(self._slots, reserved(self._slots, settings.realtime_reserve))
        self._runner = Runner("fake-engine")
        self._log = -1
        self._takes_time = bool(settings.fake_base_ms or settings.fake_token_ms)

    @property
    def slots(self) -> int:
        """Return how many requests run at once."""
        return self._slots

    @property
    def models(self) -> tuple[ServedModel, ...]:
        """Return the one name that it answers to."""
        return (ServedModel(self._settings.served_name, self._settings.max_model_len),)

    @property
    def failure(self) -> EngineFailure | None:
        """Return why the engine is broken, None while it is not."""
        return self._runner.failure

    def start(self) -> None:
        """Open the log of starts and begin to answer."""
        if self._settings.fake_log is not None:
            try:
                self._log = os.open(self._settings.fake_log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            except OSError as error:
                raise EngineStartError(f"STOKER_FAKE_LOG cannot be opened: {error}") from error
        self._runner.start()
        self._runner.open(self._gate, self._answer)

    def generate(self, requests: Sequence[Request], stop: Event) -> Iterator[Outcome]:
        """Yield the echoes; what takes no time is answered at once, in the order given."""
        self._runner.check()
        quick: list[Request] = []
        slow: list[Request] = []
        for request in requests:
            (quick if self._is_quick(request) else slow).append(request)
        batch = self._runner.submit(slow, stop)
        try:
            for request in quick:
                self._runner.check()
                if stop.is_set():
                    break
                outcome = self._begin(request, mark_of(request))
                yield outcome or self._answer_at_once(request)
                self._runner.progressed()
            yield from self._runner.outcomes(batch)
        finally:
            self._runner.drop(batch)

    def abort(self, ids: Sequence[str]) -> None:
        """Abort these requests."""
        self._runner.abort(ids)

    def last_progress(self) -> float:
        """Return the time of the newest word or outcome; now, while idle."""
        return self._runner.last_progress()

    def close(self) -> None:
        """End the thread."""
        self._runner.close()
        if self._log >= 0:
            os.close(self._log)
            self._log = -1

    def _is_quick(self, request: Request) -> bool:
        """Tell whether a request can be answered without a place in line: then the gate costs more than the answer."""
        if self._takes_time or not self._gate.line.has_room(request.lane):
            return False
        return "[[slow" not in request.body and "[[hang" not in request.body

    def _begin(self, request: Request, mark: tuple[str, float]) -> Outcome | None:
        """Log the start, then do what the mark says if it needs no time."""
        if self._log >= 0:
            os.write(self._log, f"{request.id} {os.getpid()} {time.time()}\n".encode())
        match mark:
            case "reject", _:
                return refuse(request, "the prompt asked to be rejected", code="invalid_request", param="messages")
            case "defer", seconds:
                return Deferred(request.id, "the prompt asked to be deferred", seconds)
            case "raise", _:
                failure = EngineFailure("the fake engine broke: a prompt asked for it")
                self._runner.fail(failure)
                raise failure
            case "kill", _:
                os.kill(os.getpid(), signal.SIGKILL)
        return None

    async def _answer(self, request: Request) -> Outcome:
        mark, seconds = mark_of(request)
        if outcome := self._begin(request, (mark, seconds)):
            return outcome
        if mark == "hang":
            await asyncio.Event().wait()
        if mark == "slow":
            await asyncio.sleep(seconds)
        answer = echo.answer(request, self.models[0])
        if isinstance(answer, Rejection):
            return answer
        await self._say(request, answer)
        return answer.outcome

    def _answer_at_once(self, request: Request) -> Outcome:
        answer = echo.answer(request, self.models[0])
        if isinstance(answer, Rejection):
            return answer
        _tell(request, answer.speech.part(0))
        return answer.outcome

    async def _say(self, request: Request, answer: Echo) -> None:
        """Take the time that so many words take, each slower the more requests are inside; tell them to a stream."""
        settings = self._settings
        await asyncio.sleep(settings.fake_base_ms / 1000)
        self._runner.progressed()
        said = 0
        while said < answer.words and settings.fake_token_ms:
            company = max(0, self._gate.line.inside - 1)
            each = settings.fake_token_ms / 1000 * (1 + settings.fake_batch_factor * company)
            step = min(answer.words - said, max(1, int(STEP / each)))
            _tell(request, answer.speech.part(said, said + step))
            await asyncio.sleep(step * each)
            said += step
            self._runner.progressed()
        _tell(request, answer.speech.part(said))


def _tell(request: Request, events: list[str]) -> None:
    if request.emit is not None:
        for event in events:
            request.emit(event)


def mark_of(request: Request) -> tuple[str, float]:
    """Find the first mark in a request and its seconds; `("", 0)` when there is none."""
    if "[[" not in request.body:
        return "", 0.0
    found = MARK.search(request.body)
    return (found[1], float(found[2] or 0)) if found else ("", 0.0)
