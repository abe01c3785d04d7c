"""Chaos, and its controls: with a safety taken out the same checks must find what it was for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos import faults
from tests.chaos.checks import Findings
from tests.chaos.disk import disk
from tests.chaos.run import FAILPOINTS, Run, armed
from tests.chaos.service import SECOND, service

pytestmark = [pytest.mark.journey, pytest.mark.timeout(900)]

SABOTAGE = Path(__file__).parent / "sabotage"


@pytest.mark.parametrize(
    ("seed", "sqlite"),
    [
        pytest.param(1, False, marks=pytest.mark.postgres),
        pytest.param(2, True, marks=pytest.mark.sqlite),
    ],
)
def test_nothing_is_lost(seed: int, record_property: Callable[[str, str], None], *, sqlite: bool) -> None:
    """Thirty seconds of whatever a seed brings, then quiet: every promise is kept. `make chaos` runs longer ones."""
    with disk() as small, service(sqlite=sqlite, environment={"STOKER_FAILPOINTS": armed(seed)}, disk=small) as found:
        run = Run(found, seed)
        findings = run.go(30.0)
        record_property("chaos", run.headline(findings))
    assert findings.broken() == {}, run.summary(findings)
    assert findings.accepted
    assert run.injected


@pytest.mark.vllm
@pytest.mark.sqlite
def test_real_vllm_loses_nothing(record_property: Callable[[str, str], None]) -> None:
    """Its worker killed whole, then its parent alone, then vLLM's own process: every promise is kept."""
    chosen = ("kill -9 engine", "kill -9 engine, its parent only", "kill -9 vLLM's own process")
    with service(sqlite=True, engine="vllm") as found:
        run = Run(found, 4, quiet_within=420.0)  # each start of the engine takes a minute on a slow machine
        findings = run.go_through([fault for fault in faults.FAULTS if fault.name in chosen])
        record_property("chaos", run.headline(findings))
    assert findings.broken() == {}, run.summary(findings)
    assert set(run.counts) == set(chosen)


@pytest.mark.sqlite
def test_a_crash_between_any_two_lines(record_property: Callable[[str, str], None]) -> None:
    """Each failpoint kills its process, some twice (one lets a heartbeat come too late): every promise is kept."""
    places = [rule.partition("=")[0] for rule in FAILPOINTS]
    rules = [f"{place}={'pause:17x1' if place == 'lease.renewing' else 'killx2'}" for place in places]
    with service(sqlite=True, environment={"STOKER_FAILPOINTS": ",".join(rules)}) as found:
        run = Run(found, 3)
        findings = run.go_until(lambda: set(run.hits()) == set(places), 240.0)
        record_property("chaos", run.headline(findings))
        hits = run.hits()
    assert findings.broken() == {}, run.summary(findings)
    assert set(hits) == set(places), f"never reached: {set(places) - set(hits)}"


# A little longer than the control's short lease and its sweeper take, and so more of them in its time.
FREEZES = [faults.freeze(name, 6.0, 7.0) for name in ("engine", SECOND)]


def control(name: str, *kinds: str, seconds: float = 30.0) -> Findings:
    """Run with a safety taken out, under the faults that it is for."""
    chosen = [fault for fault in (*FREEZES, *faults.FAULTS) if fault.name in kinds][: len(kinds)]
    assert len(chosen) == len(kinds)
    quick = {"STOKER_LEASE": "4", "STOKER_HEARTBEAT": "1", "STOKER_SWEEP_EVERY": "1"}
    with service(environment={**quick, "PYTHONPATH": str(SABOTAGE / name)}) as found:
        return Run(found, 1, quiet_within=10.0).go(seconds, chosen, threads=10, most_rest=2.0)


@pytest.mark.postgres
@pytest.mark.parametrize(
    ("name", "kinds", "finds"),
    [
        ("fencing", ("freeze engine", f"freeze {SECOND}"), lambda found: found.doubled),
        ("sweeper", ("redis: FLUSHALL", "kill -9 second engine"), lambda found: found.stuck),
        ("outbox", ("kill -9 engine", "kill -9 second engine"), lambda found: found.webhooks_missing),
    ],
)
def test_without_a_safety_the_checks_find_what_it_was_for(
    name: str,
    kinds: tuple[str, ...],
    finds: Callable[[Findings], list[str]],
    record_property: Callable[[str, str], None],
) -> None:
    """Fencing off: doubled results. The sweeper off: stuck jobs. The outbox off: missing webhooks."""
    findings = control(name, *kinds)
    told = ", ".join(f"{what} {len(which)}" for what, which in findings.broken().items())
    record_property("chaos", f"chaos: control, {name} off, accepted {findings.accepted}: {told}")
    assert finds(findings), f"the checks are blind: {findings.broken()}"
