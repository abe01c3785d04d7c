"""Engines killed from outside while one innocent job runs: how often it is taken for poison. A simulation.

One job at a time on one engine, so every kill that comes while it runs finds it alone: the worst case. The rule of
before (two lonely deaths are proof) beside that of models/cohorts.py: three, with a rest between, forgiven when the
engine is killed while nothing runs on it. Nothing is started; a job's fate takes microseconds.
"""

from __future__ import annotations

import argparse
import math
import random
from collections import Counter
from collections.abc import Callable, Sequence

from benchmarks.report import Report, parser
from models.cohorts import LONE_DEATHS, MOST_REST, REST

EVERY = (5.0, 10.0, 60.0, 120.0)
LENGTHS = (1.0, 30.0, 300.0)
START = 3.0
"""Seconds until a killed engine is open again."""
MOST_LAG = 2.0
"""Seconds until the sweeper has noticed a death: so much longer a job seems to have run."""
MOST_ATTEMPTS = 20

NextKill = Callable[[float], float]


def main(argv: Sequence[str]) -> None:
    """Simulate every kind of killer, and write what became of the jobs."""
    wanted = parser("blame", __doc__)
    wanted.add_argument("--trials", type=int, default=2_000)
    report = Report("blame", wanted.parse_args(argv))
    for kind in ("at random", "steadily", "five in a row"):
        _table(report, kind)
    report.write()


def _table(report: Report, kind: str) -> None:
    rows: list[list[object]] = []
    for every in EVERY:
        for length in LENGTHS:
            before, after = (_fates(report.options, kind, every, length, new=new) for new in (False, True))
            figures = [every, length, before["poison"], after["poison"], before["interrupted"], after["interrupted"]]
            rows.append([f"{figure:.2%}" if at > 1 else figure for at, figure in enumerate(figures)])
    head = ["a kill every (s)", "job runs (s)", "poison, before", "poison, now", "interrupted, before", "now"]
    report.table(f"Innocent jobs that fail, engine killed {kind}", head, rows)


def _fates(options: argparse.Namespace, kind: str, every: float, length: float, *, new: bool) -> dict[str, float]:
    chance = random.Random(f"{kind} {every} {length}")
    ends = Counter(fate(chance, killer(kind, every, chance), length, new=new) for _ in range(options.trials))
    return {end: ends[end] / options.trials for end in ("poison", "interrupted")}


def killer(kind: str, every: float, chance: random.Random) -> NextKill:
    """Return what tells, of any moment, when the next kill comes."""
    phase = chance.uniform(0.0, every)
    if kind == "at random":
        return lambda at: at + chance.expovariate(1.0 / every)

    def steadily(at: float) -> float:
        found = phase + every * (math.floor((at - phase) / every) + 1)
        return found if found > at else found + every  # rounding

    if kind == "steadily":
        return steadily
    return lambda at: found if (found := steadily(at)) < phase + 4.5 * every else math.inf


def fate(chance: random.Random, next_kill: NextKill, length: float, *, new: bool) -> str:
    """Return how one job ends: succeeded, poison or interrupted."""
    at, lonely = 0.0, 0
    for attempt in range(MOST_ATTEMPTS):
        killed = next_kill(at)
        if killed >= at + length:
            return "succeeded"
        seen = killed + chance.uniform(0.0, MOST_LAG)
        lonely += attempt > 0  # the first death is not of a job that ran as a cohort
        if lonely >= (LONE_DEATHS if new else 2):
            return "poison"
        rest = min(MOST_REST, REST * (seen - at)) if new and attempt else 0.0
        at, disturbed = _open_again(next_kill, killed, seen + rest)
        if new and disturbed:
            lonely = 0
    return "interrupted"


def _open_again(next_kill: NextKill, killed: float, rested: float) -> tuple[float, bool]:
    """Return when the engine can run the job again, and whether it was killed meanwhile, with nothing to run."""
    opened, disturbed = killed + START, False
    while (kill := next_kill(killed)) < max(opened, rested):
        killed, disturbed = kill, True
        opened = kill + START
    return max(opened, rested), disturbed
