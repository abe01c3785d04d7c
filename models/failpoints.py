"""Failpoints: named places between two lines where a crash matters; nothing happens there unless it is asked for.

STOKER_FAILPOINTS=`settle.committed=kill@0.1x3,lease.renew=pause:20` kills the process at one in ten of its visits to
the first place, three times in all, and lets each visit to the second take 20 s longer. Actions: `kill` (SIGKILL to
this process), `stop` (SIGSTOP: until somebody continues it), `pause:SECONDS`, `fail` (an OSError, as a broken disk
would raise). Each act is a line `place pid seconds` in the file STOKER_FAILPOINTS_LOG, which is also what `x` counts,
so that a process that is started again does not begin anew. Where there is a file of that name with `.off` behind it,
every place is passed.

For tests alone, hence read here rather than in the settings: no operator is to find it among those.
"""

from __future__ import annotations

import os
import random
import re
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

OFF = ".off"
_RULE = re.compile(r"([a-z._]+)=(kill|stop|fail|pause)(?::([0-9.]+))?(?:@([0-9.]+))?(?:x([0-9]+))?")


class FailpointError(ValueError):
    """STOKER_FAILPOINTS cannot be read."""


@dataclass(frozen=True, slots=True)
class Rule:
    """What to do at a place: `chance` at each visit, `most` times in all (0: no limit), `seconds` for a pause."""

    action: str
    seconds: float = 0.0
    chance: float = 1.0
    most: int = 0


def parse(text: str) -> dict[str, Rule]:
    """Return the rule of each place. Raises FailpointError."""
    rules = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        found = _RULE.fullmatch(part)
        if found is None:
            raise FailpointError(f"STOKER_FAILPOINTS: {part!r} is not PLACE=ACTION[:SECONDS][@CHANCE][xTIMES]")
        place, action, seconds, chance, most = found.groups()
        rules[place] = Rule(action, float(seconds or 0), float(chance or 1), int(most or 0))
    return rules


class Failpoints:
    """The rules of a process, and the log that it shares with others."""

    def __init__(self, rules: Mapping[str, Rule], log: Path | None = None) -> None:
        if log is None and any(rule.most for rule in rules.values()):
            raise FailpointError("STOKER_FAILPOINTS: xTIMES needs STOKER_FAILPOINTS_LOG, which has the count")
        self._rules = dict(rules)
        self._log = log
        # Without a state of its own: with the draws of the parent all children of one web server die at the same visit.
        self._chance = random.SystemRandom()

    def visit(self, place: str) -> None:
        """Do what the rules say for a place."""
        rule = self._rules.get(place)
        if rule is None or self._chance.random() >= rule.chance or self._is_off() or self._is_used_up(place, rule):
            return
        if self._log is not None:
            with self._log.open("a") as log:
                log.write(f"{place} {os.getpid()} {time.time()}\n")
        if rule.action == "pause":
            time.sleep(rule.seconds)
        elif rule.action == "fail":
            raise OSError(f"the failpoint {place} was asked to fail")
        else:
            os.kill(os.getpid(), signal.SIGKILL if rule.action == "kill" else signal.SIGSTOP)

    def _is_off(self) -> bool:
        return self._log is not None and Path(f"{self._log}{OFF}").exists()

    def _is_used_up(self, place: str, rule: Rule) -> bool:
        if not rule.most or self._log is None or not self._log.exists():
            return False
        return sum(line.split()[:1] == [place] for line in self._log.read_text().splitlines()) >= rule.most


def _of_environment() -> Failpoints | None:
    rules = parse(os.environ.get("STOKER_FAILPOINTS", ""))
    log = os.environ.get("STOKER_FAILPOINTS_LOG")
    return Failpoints(rules, Path(log) if log else None) if rules else None


_armed = _of_environment()


def failpoint(place: str) -> None:
    """Mark a place where a test may let this process die, stop, wait or fail."""
    if _armed is not None:
        _armed.visit(place)
