"""How many requests an upstream is given at once when nobody said: found by measuring. Pure.

A server's throughput grows with the requests that it computes together, up to a knee; beyond it they only wait inside
the server, where no lane overtakes another. The knee is looked for in windows, each about one generation of requests
long, that count only while the limit is used up:

- it begins high, since a limit that is too low costs throughput and one that is too high only order;
- now and then a higher limit is tried, and kept if throughput grew; now and then a lower one, and kept if it did not
  fall. What failed is tried again after twice the time;
- a server that answers a first burst one by one, in the order sent, shows its number of places at once;
- 429s, overloads and timeouts cut the limit, and where that happened it is approached again in small steps.
"""

from __future__ import annotations

import math

from tasks.engines.upstreams.windows import Burst, Rate, Window

START = 32
MOST = 1024
KEEPS = 0.93
"""A lower limit is as good when it has so much of the throughput."""
GAIN, LEAST_GAIN = 0.08, 0.04
"""Part of a step up that throughput must gain: doubling must bring 8 %, the smallest step 4 %."""
PLAIN = 1.25
"""Growth that one window is enough to believe."""
CHANGED = 1.4
"""Factor by which the throughput at one limit must change to be another server."""
CAUTIOUS, BOLD = 0.7, 0.5
UPS = (2.0, 1.25)
CUT = 0.7
PATIENCE = {"up": 8, "down": 32}
"""Windows between two probes of one direction, at most."""
FIRST_DOWN = 3
HOLD, LONGEST_HOLD = 10.0, 600.0
"""Seconds in which a limit at which the server refused is not tried again; doubles each time."""


class Knee:
    """The limit of one upstream: tell it of each request's begin and end, read `limit`. `now` is in seconds."""

    def __init__(self, start: int = START, least: int = 1, most: int = MOST) -> None:
        self.limit = start
        self._least, self._most = least, most
        self._inside: dict[int, float] = {}
        self._number = 0
        self._burst: Burst | None = None
        self._window: Window | None = None
        self._settling: set[int] = set()
        self._settled_after = 0
        # The limit that is known to be good, its throughput, and what is tried instead: "up", "down" or "".
        self._level = start
        self._rate: Rate | None = None
        self._probe = ""
        self._confirmed = False
        self._wait = {"up": 0, "down": FIRST_DOWN}
        self._patience = {"up": 1, "down": 2}
        self._down, self._up = CAUTIOUS, 0
        # After a refusal.
        self._cut_at = -1
        self._threshold = 0
        self._ceiling: int | None = None
        self._held_until = -math.inf
        self._hold = HOLD

    def begun(self, now: float) -> int:
        """Note that a request is sent; the number returned names it from here on."""
        self._pass(now)
        if not self._inside:
            self._burst = Burst(now)
        self._number += 1
        self._inside[self._number] = now
        if self._burst and not self._burst.order:
            self._burst.sent.add(self._number)
        if self._window is None and not self._settling:
            self._open(now)
        return self._number

    def done(self, request: int, now: float, tokens: int) -> None:
        """Note a good answer and how many tokens it has, 0 when it does not say."""
        self._pass(now)
        if self._window and self._window.over(now):
            self._close(self._window, now)
        began = self._leave(request, now)
        if self._spread_out(request, now - began, now, tokens):
            return
        if self._window:
            self._window.add(now, now - began, tokens, self.limit)
        else:
            self._settle(now)

    def refused(self, request: int, now: float) -> None:
        """Note that the server took no more: what else is in flight is, at most, what it takes."""
        self._leave(request, now)
        if request > self._cut_at:
            self._threshold = max(self._least, self._level // 2)
            self._hold = min(LONGEST_HOLD, self._hold * 2 if self._ceiling is not None else HOLD)
            self._cut_at = self._number
        self._ceiling = max(self._least, min(self.limit, len(self._inside)))
        self._held_until = now + self._hold
        self._settle_on(self._ceiling)

    def strained(self, request: int, now: float) -> None:
        """Note a request that timed out or met an overload; those that were in flight with it say nothing new."""
        self._leave(request, now)
        if request > self._cut_at:
            self._cut_at = self._number
            self._settle_on(max(self._least, int(self.limit * CUT)))

    def gone(self, request: int, now: float) -> None:
        """Note a request that ended without saying anything of the server's speed."""
        self._leave(request, now)
        self._settle(now)

    def _pass(self, now: float) -> None:
        if self._window:
            self._window.area += len(self._inside) * (now - self._window.at)
            self._window.at = now

    def _leave(self, request: int, now: float) -> float:
        self._pass(now)
        began = self._inside.pop(request)
        self._settling.discard(request)
        if self._window:
            self._window.pending.discard(request)
        return began

    def _spread_out(self, request: int, latency: float, now: float, tokens: int) -> bool:
        """Look at a burst; True when it showed the number of places."""
        burst = self._burst
        if burst is None or request not in burst.sent:
            return False
        burst.order.append(request)
        burst.latencies.append(latency)
        burst.normal.append(latency / max(tokens, 1))
        places = burst.places(now)
        if places is None or math.ceil(1.5 * places) >= self.limit:
            return False
        self._burst = None
        self._settle_on(max(self._least, math.ceil(1.5 * places)))
        self._wait = {"up": 0, "down": 1}
        return True

    # Windows

    def _settle(self, now: float) -> None:
        """Open a window when what ran under another limit is gone."""
        if self._window is None:
            self._settled_after -= 1
            if not self._settling or self._settled_after <= 0:
                self._settling.clear()
                self._open(now)

    def _open(self, at: float) -> None:
        self._window = Window(at, set(self._inside), at)

    def _close(self, window: Window, now: float) -> None:
        """Draw the conclusion from a full window; the next one begins where it ended."""
        self._window = None
        if window.loaded(self.limit):
            self._decide(window.rate(), now)
        else:
            self._back()
        if not self._settling:
            self._open(now if window.full_at is None else window.full_at)

    def _decide(self, rate: Rate, now: float) -> None:
        if not self._probe or self._rate is None:
            self._hold_level(rate, now)
        elif self._probe == "up":
            grown = rate.over(self._rate)
            if grown < 1 + max(LEAST_GAIN, GAIN * (self.limit / self._level - 1)):
                self._reject("up")
            elif grown < PLAIN and not self._confirmed:
                self._confirmed = True
            else:
                self._accept(rate)
                self._wait["down"] = FIRST_DOWN
                self._start("up", now)
        elif rate.over(self._rate) < KEEPS:
            self._reject("down")
        elif not self._confirmed:
            self._confirmed = True  # one window may have been luck, and a knee given up is dear
        else:
            # The old rate stays: small losses that are each within the tolerance must not add up.
            self._accept(max(self._rate, rate, key=lambda one: one.answers))
            self._down = BOLD
            self._start("down", now)

    def _hold_level(self, rate: Rate, now: float) -> None:
        change = rate.over(self._rate) if self._rate else 1.0
        if change > CHANGED or change * CHANGED < 1:
            # Another server, or another load: what was learnt does not hold any more.
            self._rate = rate
            self._patience = {"up": 1, "down": 2}
            self._wait = {"up": 0, "down": 2} if change > 1 else {"up": 2, "down": 0}
            self._down = CAUTIOUS if change > 1 else BOLD
        else:
            self._rate = self._rate.blended(rate) if self._rate else rate
        if self.limit < self._threshold:
            self._level = self.limit = min(self._most, self._threshold, self.limit * 2)
            self._rate = None
            return
        for direction in ("up", "down"):
            self._wait[direction] -= 1
        for direction in ("up", "down"):
            if self._wait[direction] < 0 and self._start(direction, now):
                return

    # Limits

    def _start(self, direction: str, now: float) -> bool:
        """Try another limit; False when there is none to try."""
        limit = self._higher(now) if direction == "up" else max(self._least, int(self._level * self._down))
        if limit == self._level:
            return False
        self._probe, self._confirmed = direction, False
        self._change(limit)
        return True

    def _higher(self, now: float) -> int:
        small = self._ceiling is not None and self._level * 2 > self._ceiling
        if small and now < self._held_until:
            return self._level
        step = max(1, self._level // 8) if small else math.ceil(self._level * (UPS[self._up] - 1))
        return min(self._most, self._level + step)

    def _accept(self, rate: Rate) -> None:
        self._level, self._rate, self._probe = self.limit, rate, ""

    def _reject(self, direction: str) -> None:
        self._patience[direction] = min(PATIENCE[direction], self._patience[direction] * 2)
        self._wait[direction] = self._patience[direction]
        self._down = CAUTIOUS
        self._up = (self._up + 1) % len(UPS) if direction == "up" else self._up
        self._back()

    def _back(self) -> None:
        if self._probe:
            self._probe = ""
            self._change(self._level)

    def _settle_on(self, limit: int) -> None:
        """Go to a limit that was not found by a probe, and learn its throughput anew."""
        self._level, self._rate, self._probe = limit, None, ""
        self._change(limit)

    def _change(self, limit: int) -> None:
        self.limit = limit
        self._window = None
        self._settling = set(self._inside)
        self._settled_after = 2 * max(limit, len(self._inside))
