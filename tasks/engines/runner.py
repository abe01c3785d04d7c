"""Runs requests as coroutines on one event loop, for engines that have the answers.

An engine says how one request is answered (`answer`). The runner keeps what all of them promise: one outcome per
request, the gate's order, timeouts, `stop`, `abort`, and that a broken engine breaks every `generate`.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from dataclasses import replace
from functools import partial
from queue import Empty, SimpleQueue
from threading import Event, Lock
from typing import Any, TypeVar

from tasks.engines.base import EngineFailure, Outcome, Request
from tasks.engines.gate import Gate
from tasks.engines.refusals import timed_out

LOOK_EVERY = 0.05
"""Seconds between looks at the `stop` events and the engine's health."""
STOP_WITHIN = 1.0
"""Seconds after `stop` when `generate` ends even if the engine does not let go of a request."""

Answer = Callable[[Request], Awaitable[Outcome]]
Health = Callable[[], EngineFailure | None]
Result = TypeVar("Result")


class Batch:
    """One call of `generate`: what it waits for."""

    def __init__(self, size: int, stop: Event) -> None:
        self.open = size
        self.stop = stop
        self.stopped_at: float | None = None
        self.tasks: set[asyncio.Task[Outcome]] = set()
        # None: a request that was aborted. An exception: raised in the thread that called `generate`.
        self.done: SimpleQueue[Outcome | BaseException | None] = SimpleQueue()
        self._telling = Lock()
        self._silent = False

    def heard(self, request: Request) -> Request:
        """Return a request whose events end with the batch."""
        emit = request.emit
        return request if emit is None else replace(request, emit=partial(self._tell, emit))

    def silence(self) -> None:
        """Let no event through from now on: the loop may take a while to learn that nobody listens."""
        with self._telling:
            self._silent = True

    def _tell(self, emit: Callable[[str], None], data: str) -> None:
        with self._telling:
            if not self._silent:
                emit(data)


class Runner:
    """An event loop in a thread of its own, from `start` to `close`, and the requests on it."""

    # Known after `start` and `open`.
    _loop: asyncio.AbstractEventLoop
    _gate: Gate | None
    _answer: Answer
    _health: Health

    def __init__(self, name: str) -> None:
        # Not a daemon: it would be torn down in the middle of a token. Whoever starts an engine closes it.
        self._thread = threading.Thread(target=self._work, name=name)
        self._batches: set[Batch] = set()
        self._tasks: dict[asyncio.Task[Outcome], str] = {}
        self._watch: asyncio.Task[None] | None = None
        self._progress = time.monotonic()
        self._failure: EngineFailure | None = None

    @property
    def failure(self) -> EngineFailure | None:
        """Return why the engine is broken, None while it is not."""
        return self._failure

    def check(self) -> None:
        """Raise what broke the engine, if anything did."""
        if self._failure is not None:
            # Raised in many threads, and a raised exception is not to be shared.
            raise type(self._failure)(*self._failure.args)

    def start(self) -> None:
        """Start the loop."""
        self._loop = asyncio.new_event_loop()
        self._thread.start()

    def call(self, work: Coroutine[Any, Any, Result], timeout: float | None = None) -> Result:
        """Run a coroutine on the loop and wait for its result; `TimeoutError` after `timeout` seconds."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout)

    def open(self, gate: Gate | None, answer: Answer, health: Health = lambda: None) -> None:
        """Begin to answer requests; `health` is asked all the time whether the engine broke.

        Without a gate `answer` itself says when a request begins and how long it may take.
        """
        self._gate = gate
        self._answer = answer
        self._health = health
        self.call(self._begin_watch())

    def submit(self, requests: Sequence[Request], stop: Event) -> Batch:
        """Hand requests over; `outcomes` has what becomes of them."""
        batch = Batch(len(requests), stop)
        if requests and not self._post(partial(self._take, tuple(map(batch.heard, requests)), batch)):
            batch.done.put(self._failure or EngineFailure("the engine is closed"))
        return batch

    def outcomes(self, batch: Batch) -> Iterator[Outcome]:
        """Yield each outcome as it is done; abort the rest when the caller turns away."""
        try:
            while batch.open:
                try:
                    item = batch.done.get(timeout=STOP_WITHIN)
                except Empty:
                    if batch.stop.is_set():  # and the loop itself does not answer
                        return
                    continue
                batch.open -= 1
                if isinstance(item, EngineFailure):
                    self.check()
                if isinstance(item, BaseException):
                    raise item
                if item is not None:
                    yield item
        finally:
            self.drop(batch)

    def drop(self, batch: Batch) -> None:
        """Abort what is left of a batch: nobody waits for it any more."""
        batch.silence()
        if batch.open:
            self._post(partial(self._drop, batch))

    def abort(self, ids: Sequence[str]) -> None:
        """Abort requests by id."""
        self._post(partial(self._abort, frozenset(ids)))

    def fail(self, failure: EngineFailure) -> None:
        """Declare the engine broken: every `generate`, now and later, raises `failure`."""
        self._failure = self._failure or failure
        self._post(self._break)

    def progressed(self) -> None:
        """Note that a token or an outcome came."""
        self._progress = time.monotonic()

    def last_progress(self) -> float:
        """Return when the newest token or outcome came; now, while no request is inside the engine."""
        if self._watch is None or (self._gate is not None and not self._gate.line.inside):
            return time.monotonic()
        return self._progress

    def close(self, last: Callable[[], Awaitable[None]] | None = None, timeout: float = 5.0) -> None:
        """End the running requests, then `last`, the loop and its thread; waits at most `timeout` seconds for each."""
        self._failure = self._failure or EngineFailure("the engine is closed")
        if not self._thread.is_alive():
            return
        ending = asyncio.run_coroutine_threadsafe(self._end(last), self._loop)
        try:
            ending.result(timeout)
        finally:
            self._post(self._loop.stop)
            self._thread.join(timeout)

    # Below: on the loop.

    def _work(self) -> None:
        self._loop.run_forever()
        self._loop.close()

    async def _begin_watch(self) -> None:
        self._watch = asyncio.create_task(self._look_after())

    async def _look_after(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY)
            if self._failure is None and (failure := self._health()):
                self.fail(failure)
            for batch in tuple(self._batches):
                self._look_at(batch)

    def _look_at(self, batch: Batch) -> None:
        if not batch.stop.is_set():
            return
        now = time.monotonic()
        if batch.stopped_at is None:
            batch.stopped_at = now
            _cancel(batch.tasks)
        elif now - batch.stopped_at > STOP_WITHIN:
            for _ in tuple(batch.tasks):
                batch.done.put(None)
            self._batches.discard(batch)

    def _take(self, requests: Sequence[Request], batch: Batch) -> None:
        if self._failure is not None:
            batch.done.put(self._failure)
            return
        self._batches.add(batch)
        for request in requests:
            task = self._loop.create_task(self._run(request))
            batch.tasks.add(task)
            self._tasks[task] = request.id
            task.add_done_callback(partial(self._finished, batch))

    async def _run(self, request: Request) -> Outcome:
        if self._gate is None:
            outcome = await self._answer(request)
            self.progressed()
            return outcome
        async with self._gate.slot(request.lane):
            if self._gate.line.inside == 1:
                self.progressed()  # an engine that stood idle has only now something to be slow at
            limit = asyncio.timeout(request.timeout)
            try:
                async with limit:
                    outcome = await self._answer(request)
            except TimeoutError:
                if not limit.expired():
                    raise
            # Asked again without an exception: vLLM's handlers turn a cancellation into an answer of theirs.
            if limit.expired():
                return timed_out(request)
            self.progressed()
            return outcome

    def _finished(self, batch: Batch, task: asyncio.Task[Outcome]) -> None:
        batch.tasks.discard(task)
        del self._tasks[task]
        if task.cancelled() or task.cancelling():
            batch.done.put(None)
        elif isinstance(error := task.exception(), EngineFailure):
            self.fail(error)
        else:
            batch.done.put(error or task.result())

    def _drop(self, batch: Batch) -> None:
        self._batches.discard(batch)
        _cancel(batch.tasks)

    def _abort(self, ids: frozenset[str]) -> None:
        _cancel({task for task, name in self._tasks.items() if name in ids})

    def _break(self) -> None:
        for batch in tuple(self._batches):
            batch.done.put(self._failure)
            self._drop(batch)

    async def _end(self, last: Callable[[], Awaitable[None]] | None) -> None:
        if self._watch is not None:
            self._watch.cancel()
        self._break()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=STOP_WITHIN)
        if last is not None:
            await last()

    def _post(self, work: Callable[[], object]) -> bool:
        if not self._thread.is_alive():
            return False
        try:
            self._loop.call_soon_threadsafe(work)
        except RuntimeError:  # the loop was closed in between
            return False
        return True


def _cancel(tasks: set[asyncio.Task[Outcome]]) -> None:
    for task in tuple(tasks):
        task.cancel()
