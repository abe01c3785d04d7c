"""kill -9 of the engine's worker in the middle of a batch: how long until its jobs are claimed again, and answered.

200 slow jobs on the fake engine under `stoker up`, five kills; then every job must have ended well with one result, the
engine's own log of starts must agree with the database, and no process may be left. With --real the same once with
vLLM, whose core outlives the killed worker and must be ended by its successor.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import load, service
from benchmarks.report import Report, parser, spread
from benchmarks.service import BenchmarkError, Service, wait_until

SEED = 20
STEPS = ("given back", "claimed again", "next result")


def main(argv: Sequence[str]) -> None:
    """Kill the worker, again and again, and write what it cost."""
    options = _options(argv)
    # Files of their own: the one kill with vLLM does not take the place of the five without.
    report = Report("recovery_real" if options.real else "recovery", options)
    if options.real:
        _real(report)
    else:
        _fake(report)
    report.write()


def _fake(report: Report) -> None:
    options = report.options
    chance = random.Random(SEED)
    settings = {"engine": "fake", "fake_slots": options.slots, "log_level": "warning"}
    log = report.folder / "recovery-starts.log"
    log.unlink(missing_ok=True)
    with service.running(settings | {"fake_log": log.absolute()}) as up:
        report.machine["postgresql"] = up.value("SHOW server_version")
        jobs = [
            {"model": up.model, "prompt": f"[[slow:{chance.uniform(0.2, options.slow):.2f}]] {number}"}
            for number in range(options.jobs)
        ]
        posted = load.post(up.url, jobs, 8)
        _kill_in_mid_batch(report, up, options.kills)
        up.drain(within=600)
        _check(report, up, posted.ids, log)
    report.say("no process is left")
    log.unlink()


def _real(report: Report) -> None:
    options = report.options
    settings = service.engine_settings(options) | {"log_level": "warning"}
    with service.running(settings) as up:
        report.machine["postgresql"] = up.value("SHOW server_version")
        posted = load.post(up.url, load.chats(options.real_jobs, SEED, up.model, 60, 120), 8)
        _kill_in_mid_batch(report, up, 1)
        up.drain(within=1800)
        _check(report, up, posted.ids, None)
    report.say("no process is left")


def _kill_in_mid_batch(report: Report, up: Service, kills: int) -> None:
    """Kill the engine's worker so many times, each time while a batch that has had a result still runs."""
    found: list[dict[str, float]] = []
    for number in range(kills):
        wait_until(lambda: _in_mid_batch(up), 120, "a batch to be half done", every=0.01)
        running = int(up.value("SELECT count(*) FROM jobs WHERE state = 'running'"))
        killed = time.time()
        os.kill(up.pids()["engine"], signal.SIGKILL)
        wait_until(lambda at=killed: _since(up, at)["next result"], 900, "a result after the kill", every=0.02)
        times = {step: float(at) - killed for step, at in _since(up, killed).items()}
        found.append(times | {"running": running})
        told = ", ".join(f"{step} after {times[step]:.2f} s" for step in STEPS)
        report.say(f"kill {number + 1} with {running} jobs running: {told}")
    rows = [[at + 1, int(one["running"]), *(one[step] for step in STEPS)] for at, one in enumerate(found)]
    head = ["kill", "jobs running", *(f"{step} (s)" for step in STEPS)]
    report.table("Seconds after kill -9 of the engine's worker", head, rows)
    report.figures["kills"] = found
    report.figures["recovery"] = {step: spread([one[step] for one in found]) for step in STEPS}


def _in_mid_batch(up: Service) -> bool:
    """Tell whether a running batch has results, and jobs without."""
    return bool(
        up.value(
            "SELECT EXISTS (SELECT 1 FROM batches WHERE state = 'running' "
            "AND EXISTS (SELECT 1 FROM results WHERE batch_id = batches.id) "
            "AND EXISTS (SELECT 1 FROM jobs WHERE batch_id = batches.id AND state = 'running'))"
        )
    )


def _since(up: Service, killed: float) -> dict[str, float | None]:
    """Return when, after the kill, batches were given back, jobs claimed again, and the next result stored."""
    found = up.rows(
        "SELECT (SELECT min(finished_at) FROM batches WHERE state IN ('crashed', 'lost') AND finished_at > :at), "
        "(SELECT min(claimed_at) FROM batches WHERE claimed_at > :at), "
        "(SELECT min(results.created_at) FROM results JOIN batches ON batches.id = batch_id WHERE claimed_at > :at)",
        at=killed,
    )
    return dict(zip(STEPS, found[0], strict=True))


def _check(report: Report, up: Service, ids: Sequence[str], log: Path | None) -> None:
    """Compare what the client was promised, what the database has, and what the engine says it started."""
    states = Counter({row[0]: row[1] for row in up.rows("SELECT state, count(*) FROM jobs GROUP BY state")})
    results = {row[0]: row[1] for row in up.rows("SELECT job_id, count(*) FROM results GROUP BY job_id")}
    attempts = {row[0]: row[1] for row in up.rows("SELECT id, attempts FROM jobs")}
    figures: dict[str, Any] = {
        "accepted": len(ids),
        "states": dict(states),
        "lost": len(set(ids) - results.keys()),
        "doubled": sum(1 for number in results.values() if number > 1),
        "executions_charged": sum(attempts.values()),
    }
    if log is not None:
        starts = Counter(line.split()[0] for line in log.read_text().splitlines())
        figures["starts"] = starts.total()
        figures["extra_starts"] = starts.total() - len(starts)
        figures["more_starts_than_attempts"] = sum(1 for job in ids if starts[job] > attempts[job])
    report.table("What became of the jobs", list(figures), [list(figures.values())])
    report.figures |= figures
    if states != {"succeeded": len(ids)} or figures["lost"] or figures["doubled"]:
        raise BenchmarkError(f"the promise is broken: {figures}")
    if figures.get("more_starts_than_attempts") or set(results) != set(ids):
        raise BenchmarkError(f"the engine ran what the database does not know: {figures}")


def _options(argv: Sequence[str]) -> argparse.Namespace:
    wanted = parser("recovery", __doc__)
    wanted.add_argument("--kills", type=int, default=5)
    wanted.add_argument("--jobs", type=int, default=200)
    wanted.add_argument("--slow", type=float, default=1.5, help="most seconds that a job of the fake engine takes")
    wanted.add_argument("--slots", type=int, default=32, help="slots of the fake engine")
    wanted.add_argument("--real", action="store_true", help="one kill with the real vLLM")
    wanted.add_argument("--real-jobs", type=int, default=48)
    service.engine_options(wanted)
    return wanted.parse_args(argv)
