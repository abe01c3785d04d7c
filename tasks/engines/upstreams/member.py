"""One upstream as routing sees it: what it serves, how it is doing, how much it may be asked at once. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tasks.engines.base import Completion
from tasks.engines.upstreams.answers import Fate, Verdict
from tasks.engines.upstreams.knee import Knee
from tasks.engines.upstreams.listing import Place

MISSES = 2
"""Checks in a row without an answer after which an upstream counts as hung."""
COINCIDENCE = 3
"""So many requests in a row may each be blamed for an upstream's 500s; after that it is the upstream."""
LONGEST_LOSS = 300.0
"""Seconds for which a model that an upstream lists but denies is left alone, at most."""
BREATH = 1.0
"""Seconds for which an upstream that takes no more, and does not say for how long, is left alone."""
FAILURES = frozenset({Fate.SICK, Fate.CUT, Fate.HALF})
WEIGHT = 0.1
"""Of the newest latency in the average."""


@dataclass(frozen=True, slots=True)
class Facts:
    """An upstream at one moment, for metrics. `latency` is a moving average in seconds, None before the first answer.

    `waiting` counts the requests in line that it could serve, `errors` what was its own fault.
    """

    url: str
    healthy: bool
    limit: int
    in_flight: int
    waiting: int
    requests: int
    errors: int
    latency: float | None
    models: tuple[str, ...]
    why_down: str


@dataclass(frozen=True, slots=True)
class Begun:
    """A request that an upstream was given: when, and what the knee calls it."""

    at: float
    knee: Knee | None
    ticket: int


class Upstream:
    """The state of one upstream. Begins down: nothing is sent to one that was never seen."""

    def __init__(self, place: Place, check_every: float) -> None:
        self._every = check_every
        self.place = place
        self.knee = Knee() if place.connections is None else None
        self.models: dict[str, int | None] = {}
        self.up = False
        self.removed = False
        self.suspect = False
        self.trial = False
        self.why_down = "not checked yet"
        self.paused_until = 0.0
        self.in_flight = 0
        self.others = 0  # of them, those of the lanes below realtime
        self.turn = 0
        self.requests = 0
        self.errors = 0
        self.latency: float | None = None
        self.check_at = 0.0
        self._missed = 0
        self._failures = 0
        self._failed_at = 0.0
        self._in_a_row = 0
        self._lost: dict[str, tuple[float, int]] = {}

    @property
    def url(self) -> str:
        """Return the address, which is also its name."""
        return self.place.url

    @property
    def limit(self) -> int:
        """Return how many requests it may have at once."""
        return self.knee.limit if self.knee else self.place.connections or 1

    @property
    def slots(self) -> int:
        """Return what it adds to the engine's slots: nothing while it is down."""
        return self.limit if self.up and not self.removed else 0

    def serves(self, model: str) -> bool:
        """Tell whether requests for this model may be sent to it, now or when it has room."""
        return self.up and not self.removed and model in self.models

    def has_room(self, now: float) -> bool:
        """Tell whether one more request may be sent at once."""
        return now >= self.paused_until and self.in_flight < (1 if self.trial else self.limit)

    def move(self, place: Place) -> None:
        """Take over what the operator changed: the limit, the key, the models; the next check uses them."""
        if place.connections != self.place.connections:
            self.knee = Knee() if place.connections is None else None
        self.place = place
        self.check_at = 0.0

    def facts(self, waiting: int) -> Facts:
        """Return how it is doing."""
        return Facts(
            self.url,
            self.up,
            self.limit,
            self.in_flight,
            waiting,
            self.requests,
            self.errors,
            self.latency,
            tuple(sorted(self.models)) if self.up else (),
            self.why_down,
        )

    # What its answers say

    def begin(self, now: float) -> Begun:
        """Note that a request is sent."""
        self.requests += 1
        return Begun(now, self.knee, self.knee.begun(now) if self.knee else 0)

    def end(self, begun: Begun, now: float, *, strained: bool = False) -> None:
        """Note that a request ended without an answer, `strained` when that may be for having too many."""
        if begun.knee and strained:
            begun.knee.strained(begun.ticket, now)
        elif begun.knee:
            begun.knee.gone(begun.ticket, now)

    def judge(self, verdict: Verdict, begun: Begun, model: str, now: float) -> None:
        """Learn from how a request ended."""
        if isinstance(verdict.outcome, Completion):
            self._answered(model, now - begun.at)
            if begun.knee:
                begun.knee.done(begun.ticket, now, verdict.outcome.usage.completion_tokens)
            return
        if verdict.fate is Fate.BUSY and begun.knee and not verdict.unavailable:
            begun.knee.refused(begun.ticket, now)
        else:
            self.end(begun, now, strained=verdict.fate is Fate.BUSY)
        if verdict.fate is Fate.BUSY:
            self._busy(now, verdict)
        if verdict.fate in FAILURES or (verdict.fate is Fate.BUSY and verdict.unavailable):
            self._failed(now, verdict.why, begun.at)
        if verdict.fate is Fate.KEY:
            self._refused_key(now, verdict.why)
        if verdict.fate is Fate.MODEL:
            self._denied(model, now)

    def _answered(self, model: str, latency: float) -> None:
        self._failures = self._in_a_row = 0
        self.trial = False
        self._lost.pop(model, None)
        self.latency = latency if self.latency is None else self.latency + WEIGHT * (latency - self.latency)

    def _failed(self, now: float, why: str, begun: float) -> None:
        """Take it out of the rotation for a request, begun at `begun`, that failed by its fault.

        It comes back with the next good check, which is due at once after the first failure and, while nothing but
        failures come, 1 s, 2 s, ... after the later ones, and then with one request on trial.
        """
        self.errors += 1
        self._in_a_row += 1
        if begun < self._failed_at:
            return  # it was on its way already when the last one was noted: the same mishap
        self._failed_at = now
        self._down(why)
        self.suspect = self._failures == 0
        self.trial = not self.suspect
        self.check_at = now + (0.0 if self.suspect else self._pause(self._failures))
        self._failures += 1

    def _busy(self, now: float, verdict: Verdict) -> None:
        """Leave it alone for as long as it asked for; a limit that cannot go down any more takes a breath."""
        if not verdict.unavailable:
            self.errors += 1
        breath = BREATH if self.knee is None or self.limit == 1 else 0.0
        pause = breath if verdict.retry_after is None else verdict.retry_after
        self.paused_until = max(self.paused_until, now + pause)

    def _refused_key(self, now: float, why: str) -> None:
        self.errors += 1
        self._down(why)
        self.trial = True
        self._failures += 1
        # Not at once: a server whose /v1/models asks for no key would be back each time.
        self.check_at = now + self._every

    def _denied(self, model: str, now: float) -> None:
        """Forget a model that it lists but does not serve: until a check that comes after a growing pause."""
        self.errors += 1
        _, times = self._lost.get(model, (0.0, 0))
        self._lost[model] = (now + min(LONGEST_LOSS, self._every * 2.0 ** min(times, 16)), times + 1)
        self.models.pop(model, None)

    def may_have(self, model: str) -> bool:
        """Tell whether it may serve a model later that it does not serve now."""
        return not self.up or model in self.models or model in self._lost

    def absolve(self) -> None:
        """Take back the last failure: it was the request's fault."""
        self.errors = max(0, self.errors - 1)
        self._failures = 0
        self.trial = False
        if self.suspect:
            self.up, self.suspect, self.why_down = True, False, ""

    @property
    def plausible(self) -> bool:
        """Tell whether its failures may still be the requests' faults."""
        return self._in_a_row <= COINCIDENCE

    # What its checks say

    def check_passed(self, now: float, listed: Mapping[str, int | None]) -> bool:
        """Take it into the rotation with the models that it lists; True when it was not."""
        names = listed if self.place.models is None else {name: listed.get(name) for name in self.place.models}
        self.models = {name: length for name, length in names.items() if self._lost.get(name, (0.0, 0))[0] <= now}
        self._missed = 0
        self.check_at = now + self._every
        came = not self.up
        self.up, self.suspect, self.why_down = True, False, ""
        return came

    def check_failed(self, now: float, why: str, *, silent: bool) -> bool:
        """Take it out, at once for a wrong answer, after two checks for none at all; True when that changed it."""
        self._missed += 1
        self.check_at = now + self._pause(self._missed)
        self.suspect = False
        if silent and self.up and self._missed < MISSES:
            return False
        went = self.up or self.why_down != why
        self._down(why)
        return went

    @property
    def hung(self) -> bool:
        """Tell whether checks in a row had no answer."""
        return self._missed >= MISSES

    def _down(self, why: str) -> None:
        self.up = False
        self.why_down = why

    def _pause(self, times: int) -> float:
        return float(min(self._every, 2.0 ** min(times - 1, 16)))
