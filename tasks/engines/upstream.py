"""The engine `upstream`: a router over a pool of OpenAI-compatible servers.

```
request -> errand -> line (routing) -> one HTTP call (calls) -> verdict -> outcome
              ^                                          |
              +------- another upstream, if one is left -+
```

Everything below runs on the one event loop of the runner; `member`, `routing`, `knee` and `errand` are pure.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from itertools import count
from threading import Event

import structlog

from stoker.settings import Settings
from tasks.engines import bodies
from tasks.engines.base import EngineFailure, EngineStartError, Outcome, Rejection, Request, ServedModel
from tasks.engines.refusals import refuse, timed_out
from tasks.engines.runner import Runner
from tasks.engines.upstreams import calls
from tasks.engines.upstreams.answers import Fate, Verdict
from tasks.engines.upstreams.calls import Call, Caller
from tasks.engines.upstreams.errand import Errand
from tasks.engines.upstreams.member import Begun, Facts, Upstream
from tasks.engines.upstreams.pool import Pool
from tasks.engines.upstreams.routing import Need, Router

log = structlog.get_logger(__name__)

PATIENCE = 5.0
"""Seconds that a request waits in line while no upstream that is up serves its model."""


@dataclass(slots=True, eq=False)
class _Ticket:
    """Somebody in line. The result is None when waiting makes no sense any more."""

    lane: str
    turn: asyncio.Future[Upstream | None]


class UpstreamEngine:
    """Serves what its upstreams serve, which may change at any time."""

    # Known after `start`.
    _caller: Caller
    _watch: asyncio.Task[None]

    def __init__(self, settings: Settings) -> None:
        """Prepare; raises EngineStartError when the settings name no upstreams."""
        if not settings.upstreams and settings.upstreams_file is None:
            raise EngineStartError(
                "there are no upstreams: set STOKER_UPSTREAMS (http://10.0.0.5:8000,http://10.0.0.6:8000) "
                "or STOKER_UPSTREAMS_FILE (a JSON list that may change while the engine runs)"
            )
        self._settings = settings
        self._router: Router[_Ticket] = Router(settings.realtime_reserve)
        self._pool = Pool(settings, self._router.upstreams, self._look)
        self._runner = Runner("upstream-engine")
        self._numbers = count()
        self._alive_at = time.monotonic()
        self._way = AsyncExitStack()

    @property
    def slots(self) -> int:
        """Return how many requests may run at once on all upstreams that are up now."""
        return self._router.slots

    @property
    def models(self) -> tuple[ServedModel, ...]:
        """Return what the upstreams that are up serve now."""
        return self._router.models()

    @property
    def failure(self) -> EngineFailure | None:
        """Return why the engine is broken, None while it is not."""
        return self._runner.failure

    def upstreams(self) -> list[Facts]:
        """Return how each upstream is doing."""
        return [one.facts(self._router.waiting(one)) for one in list(self._router.upstreams.values())]

    def start(self) -> None:
        """Look for the upstreams once; those that are down now are found when they are up."""
        self._runner.start()
        self._runner.call(self._open())
        self._runner.open(None, self._answer, self._broken)

    def generate(self, requests: Sequence[Request], stop: Event) -> Iterator[Outcome]:
        """Yield what the upstreams answer."""
        self._runner.check()
        yield from self._runner.outcomes(self._runner.submit(requests, stop))

    def abort(self, ids: Sequence[str]) -> None:
        """Abort these requests by closing their connections."""
        self._runner.abort(ids)

    def last_progress(self) -> float:
        """Return when something last came from an upstream, or when the engine last looked after them.

        What can hang in here is the engine's own loop. An upstream that hangs is no reason to end this process: that
        would mend nothing, and crash the jobs on all the others. Its requests are bounded by their timeouts, and by
        the checks, which give them up and send them elsewhere. So a loop that turns is progress.
        """
        if not self._router.inside and not self._router.waiting():
            return time.monotonic()
        return max(self._alive_at, self._runner.last_progress())

    def close(self) -> None:
        """End what runs and the thread."""
        self._runner.close(self._end)

    # Below: on the loop.

    async def _open(self) -> None:
        connect = self._settings.upstream_connect_timeout
        self._caller = await self._way.enter_async_context(calls.opened(connect))
        if first := self._pool.first_checks(self._caller):
            await asyncio.wait(first, timeout=self._pool.patience)
        self._watch = asyncio.create_task(self._pool.run(self._caller))
        if not self.models:
            reasons = {one.url: one.why_down for one in self._router.upstreams.values()}
            log.warning("no upstream is up yet, the engine waits for them", upstreams=reasons)

    def _broken(self) -> EngineFailure | None:
        """Tell of a mistake in here: without its watch the engine would never find an upstream again."""
        if not self._watch.done() or self._watch.cancelled():
            return None
        return EngineFailure(f"the watch over the upstreams ended: {self._watch.exception()!r}")

    async def _end(self) -> None:
        self._watch.cancel()
        await asyncio.wait({self._watch})
        await self._pool.end()
        await self._way.aclose()

    def _look(self) -> None:
        """Let in whoever can go on, and send away who waits for nothing."""
        self._alive_at = time.monotonic()
        for ticket in self._router.hopeless(self._alive_at, PATIENCE):
            if not ticket.turn.done():
                ticket.turn.set_result(None)
        self._let_in()

    def _let_in(self) -> None:
        while admitted := self._router.admit(time.monotonic()):
            upstream, ticket = admitted
            if ticket.turn.done():
                # Cancelled, but its coroutine had no turn yet to withdraw.
                self._router.leave(ticket.lane, upstream)
            else:
                ticket.turn.set_result(upstream)

    async def _answer(self, request: Request) -> Outcome:
        """Ask upstreams until one has the outcome or none is left."""
        body = bodies.read(request)
        if isinstance(body, Rejection):
            return body
        errand = Errand.of(request, body, next(self._numbers))
        if self._router.unknown(errand.model):
            message = f"no upstream has a model {errand.model!r}"
            return refuse(request, message, code="model_not_found", param="model", status=404)
        while (avoid := self._avoid(errand)) is not None:
            upstream = await self._connection(errand, avoid)
            if upstream is None:
                break
            verdict = await self._ask(upstream, errand)
            if verdict.outcome is not None:
                return verdict.outcome
            errand.note(upstream, verdict)
            if verdict.fate is Fate.HALF:
                break
            if errand.to_blame:
                return errand.blamed()
        return errand.given_up(self._router.pause(errand.model, time.monotonic()))

    def _avoid(self, errand: Errand) -> frozenset[str] | None:
        """Return whom the request is not to be sent to again; None when nobody is left."""
        now = time.monotonic()
        avoid = errand.visited()
        if not avoid or self._router.hope(errand.model, avoid, now):
            return avoid
        avoid = errand.used_up()
        return avoid if errand.may_repeat and self._router.hope(errand.model, avoid, now) else None

    async def _connection(self, errand: Errand, avoid: frozenset[str]) -> Upstream | None:
        """Wait for a free connection; None when there will be none soon. It is the caller's to give back."""
        need = Need(errand.request.lane, errand.model, avoid)
        ticket = _Ticket(need.lane, asyncio.get_running_loop().create_future())
        self._router.arrive(need, errand.number, ticket, time.monotonic())
        self._let_in()
        try:
            return await ticket.turn
        except asyncio.CancelledError:
            if ticket.turn.cancelled():
                self._router.withdraw(need, errand.number)
            elif upstream := ticket.turn.result():
                # Let in and cancelled in the same turn of the loop: the connection is ours to give back.
                self._router.leave(need.lane, upstream)
                self._let_in()
            raise

    async def _ask(self, upstream: Upstream, errand: Errand) -> Verdict:
        """Send the request over the connection that it got, and give that back however it ends."""
        request, now = errand.request, time.monotonic()
        begun = upstream.begin(now)
        call: Call | None = None
        try:
            # From here on, not from its arrival: waiting in line is not the request's fault.
            async with asyncio.timeout(request.timeout) as limit:
                call = Call(request, errand.body, errand.choices, limit, self._runner.progressed)
                self._pool.add(upstream, call)
                verdict = await self._caller.post(upstream.place, call)
            self._judge(upstream, verdict, begun, errand.model)
            return verdict
        except TimeoutError:
            hung = call is not None and call.given_up
            upstream.end(begun, time.monotonic(), strained=not hung)
            return Verdict(Fate.STOPPED, "it hung") if hung else Verdict(Fate.DONE, outcome=timed_out(request))
        except BaseException:
            upstream.end(begun, time.monotonic())
            raise
        finally:
            if call is not None:
                self._pool.remove(upstream, call)
            self._router.leave(request.lane, upstream)
            self._let_in()

    def _judge(self, upstream: Upstream, verdict: Verdict, begun: Begun, model: str) -> None:
        now, was_up = time.monotonic(), upstream.up
        upstream.judge(verdict, begun, model, now)
        if verdict.fate is Fate.KEY:
            log.error("upstream refuses the API key", upstream=upstream.url, status=verdict.status)
        elif verdict.fate is Fate.MODEL:
            log.warning("upstream lists a model that it does not serve", upstream=upstream.url, model=model)
        elif was_up and not upstream.up:
            log.warning("upstream failed, it is checked now", upstream=upstream.url, reason=verdict.why)
        if not upstream.up:
            self._pool.hurry()
        if upstream.paused_until > now:
            asyncio.get_running_loop().call_later(upstream.paused_until - now, self._let_in)
