"""kill -9 of the engine's worker in the middle of a batch: how long until its jobs are claimed again, and answered.

200 slow jobs on the fake engine under `stoker up`, five kills; then every job must have ended well with one result, the
engine's own log of starts must agree with the database, and no process may be left. With --real the same once with
vLLM, whose core outlives the killed worker and must be ended by its successor. With --two there are two engines, one of
which is killed each time: how long until what it left runs on the other.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
    report = Report("recovery_real" if options.real else "recovery_two" if options.two else "recovery", options)
    if options.real:
        _real(report)
    elif options.two:
        _two(report)
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


def _two(report: Report) -> None:
    options = report.options
    # Batches small enough that both engines get some.
    settings = {"engine": "fake", "fake_slots": options.slots, "log_level": "warning", "standard_batch": 4}
    log = report.folder / "recovery-starts.log"
    log.unlink(missing_ok=True)
    with service.running(settings | {"fake_log": log.absolute()}) as up, _second(up):
        report.machine["postgresql"] = up.value("SHOW server_version")
        found, ids = [], []
        for number in range(options.kills):
            # The killed one is back, and both have work: jobs that outlast the search for a survivor.
            wait_until(lambda: up.value("SELECT count(*) FROM engines WHERE state = 'live'") == 2, 120, "both engines")
            jobs = [
                {"model": up.model, "prompt": f"[[slow:{options.slow:.2f}]] {at}"} for at in range(2 * options.slots)
            ]
            ids += load.post(up.url, jobs, 8).ids
            wait_until(lambda: _both_run(up), 60, "both engines to run something", every=0.02)
            found.append(_kill_one_of_two(report, up, number))
            up.drain(within=600)
        _tell_two(report, found)
        _check(report, up, ids, log)
    report.say("no process is left")
    log.unlink()


@contextmanager
def _second(up: Service) -> Iterator[None]:
    command = [sys.executable, "-m", "stoker.cli", "engine", "second"]
    with service.child(command, up.environment):
        yield


def _both_run(up: Service) -> bool:
    return bool(up.value("SELECT count(DISTINCT engine_id) FROM batches WHERE state = 'running'") == 2)


def _kill_one_of_two(report: Report, up: Service, number: int) -> dict[str, float]:
    """Kill the whole group of the first engine; return when its jobs were given back, and when all ran on the other."""
    group = int(up.value("SELECT process_group FROM engines WHERE id = 'engine'"))
    left = (
        "SELECT jobs.id FROM jobs JOIN batches ON batches.id = batch_id "
        "WHERE jobs.state = 'running' AND engine_id = 'engine'"
    )
    os.killpg(group, signal.SIGSTOP)  # so that what it had is known
    ids = [row[0] for row in up.rows(left)]
    killed = float(up.value("SELECT extract(epoch FROM clock_timestamp())"))
    os.killpg(group, signal.SIGKILL)
    on = (
        "SELECT min(claimed_at), max(claimed_at), count(*) FROM jobs JOIN batches ON batches.id = batch_id "
        "WHERE jobs.id = ANY(:ids) AND claimed_at > :at"
    )
    wait_until(lambda: up.rows(on, ids=ids, at=killed)[0][2] == len(ids), 120, "its jobs to run again", every=0.05)
    first, last, _ = up.rows(on, ids=ids, at=killed)[0]
    given = float(
        up.value("SELECT min(finished_at) FROM batches WHERE state = 'crashed' AND finished_at > :at", at=killed)
    )
    times = {"jobs": len(ids), "given back": given - killed, "first runs": first - killed, "all run": last - killed}
    report.say(f"kill {number + 1} with {len(ids)} jobs: {times}")
    return times


def _tell_two(report: Report, found: list[dict[str, float]]) -> None:
    rows = [[at + 1, *one.values()] for at, one in enumerate(found)]
    head = ["kill", "jobs", "given back (s)", "first runs again (s)", "all run again (s)"]
    report.table("Seconds after kill -9 of one of two engines", head, rows)
    steps = ("given back", "first runs", "all run")
    report.figures["kills"] = found
    report.figures["recovery"] = {step: spread([one[step] for one in found]) for step in steps}


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
    wanted.add_argument("--two", action="store_true", help="two engines of the fake kind, one of which is killed")
    wanted.add_argument("--real", action="store_true", help="one kill with the real vLLM")
    wanted.add_argument("--real-jobs", type=int, default=48)
    service.engine_options(wanted)
    return wanted.parse_args(argv)
