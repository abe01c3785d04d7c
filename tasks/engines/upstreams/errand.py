"""A request on its way through the upstreams: whom it asked, what they said, and when it is enough. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec

from tasks.engines.base import Deferred, Outcome, Rejection, Request
from tasks.engines.refusals import refuse, unsupported
from tasks.engines.upstreams.answers import Fate, Verdict
from tasks.engines.upstreams.member import Upstream

VISITS, BUSY_VISITS = 2, 4
"""How often one upstream is asked for one request, at most; one that was only full somewhat oftener."""
FAULTS = 2
"""Upstreams that must fail on the same request before it is the request that is at fault."""
AGAIN = frozenset({Fate.CUT, Fate.BUSY})
"""What may go better the second time, on the same upstream."""


@dataclass(slots=True)
class Errand:
    """One request: `number` is its place in line, kept when it comes back from an upstream."""

    request: Request
    model: str
    number: int
    choices: int
    body: bytes = field(repr=False)
    visits: dict[str, int] = field(default_factory=dict)
    faults: dict[str, Upstream] = field(default_factory=dict)
    told: list[Verdict] = field(default_factory=list)

    @classmethod
    def of(cls, request: Request, read: dict[str, Any], number: int) -> Errand:
        """Begin the errand of a request whose body was read as `read`."""
        named = read.get("model")
        model = request.model or (named if isinstance(named, str) else "")
        return cls(request, model, number, _choices(read), _sent(request.body))

    def note(self, upstream: Upstream, verdict: Verdict) -> None:
        """Remember an answer that was no outcome."""
        self.visits[upstream.url] = self.visits.get(upstream.url, 0) + 1
        self.told.append(verdict)
        if verdict.fate is Fate.SICK:
            self.faults[upstream.url] = upstream

    def visited(self, times: int = 1) -> frozenset[str]:
        """Return the upstreams that were asked so often."""
        return frozenset(url for url, count in self.visits.items() if count >= times)

    def used_up(self) -> frozenset[str]:
        """Return the upstreams that were asked often enough."""
        full = bool(self.told) and self.told[-1].fate is Fate.BUSY
        return self.visited(BUSY_VISITS if full else VISITS)

    @property
    def may_repeat(self) -> bool:
        """Tell whether an upstream that was asked once may be asked again."""
        return bool(self.told) and self.told[-1].fate in AGAIN and self.told[-1].retry_after is None

    @property
    def to_blame(self) -> bool:
        """Tell whether it is the request that makes upstreams fail.

        Not when they fail at everything: then each job of a long queue would be rejected in turn.
        """
        return len(self.faults) >= FAULTS and all(upstream.plausible for upstream in self.faults.values())

    def blamed(self) -> Rejection:
        """Build the rejection of a request that several upstreams failed on, who are not to suffer for it."""
        for upstream in self.faults.values():
            upstream.absolve()
        message = f"{len(self.faults)} upstreams failed on this request, the last: {self.told[-1].why}"
        return refuse(self.request, message, code="upstream_error", status=502)

    def given_up(self, pause: float | None = None) -> Outcome:
        """Build the outcome when nobody is left to ask; `pause` is when somebody may be again."""
        if self.told and all(verdict.fate is Fate.UNSUPPORTED for verdict in self.told):
            return unsupported(self.request, known=False)
        asked = [verdict.retry_after for verdict in self.told if verdict.retry_after is not None]
        if pause is not None:
            asked.append(pause)
        # Without its address, which is the operator's business: the reason may reach whoever submitted the job.
        why = f"the last upstream: {self.told[-1].why}" if self.told else f"no upstream serves {self.model} now"
        return Deferred(self.request.id, why, min(asked) if asked else None)


def _sent(body: str) -> bytes:
    """Return what goes out: what came in, byte for byte, but for `background`, which a job is already."""
    raw = body.encode(errors="surrogatepass")  # what is no UTF-8 the upstream refuses
    if b'"background"' not in raw:
        return raw
    try:
        members = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
    except (ValueError, RecursionError):
        return raw
    return raw if members.pop("background", None) is None else msgspec.json.encode(members)


def _choices(body: dict[str, Any]) -> int:
    """Count the choices that a request asks for: `n` of each prompt."""
    wanted, prompt = body.get("n"), body.get("prompt")
    each = wanted if isinstance(wanted, int) and wanted > 0 else 1
    several = isinstance(prompt, list) and bool(prompt) and isinstance(prompt[0], (str, list))
    return each * len(prompt) if isinstance(prompt, list) and several else each
