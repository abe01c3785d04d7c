"""The collector: cuts the queue into batches, one model at a time.

Any number of collectors at once is correct: the model's turn is locked in the database while a batch is decided on. A
collector that finds jobs waiting for company promises to look again, sleeps outside any transaction, and does; one
that finds such a promise for the same moment or sooner leaves it at that.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import sqlalchemy as sa
import structlog

from models import batches, cohorts, engines, loads, queue
from models.db import Database, new_id
from models.failpoints import failpoint
from stoker.setting_types import LaneRules
from stoker.settings import LANES, Settings
from tasks import batching, metrics, policies, sizes
from tasks.app import app, context
from tasks.doorbell import doorbell

log = structlog.get_logger(__name__)

_REALTIME = LANES.index("realtime")


@app.task(name="tasks.collector.collect")
def collect(model: str, lane: str | None = None) -> None:
    """Cut what is due of a model's queue, until nothing is."""
    here = context()
    collect_model(here.database, here.settings, model, lane)


def collect_model(database: Database, settings: Settings, model: str, lane: str | None = None) -> None:
    """Cut what is due; with a lane, leave it to another collector that will look before this lane's wait is over."""
    if lane in settings.lanes and settings.lanes[lane].wait > 0:
        with database.reading() as tx:
            if queue.promised(tx, model, settings.lanes[lane].wait):
                return
    me = new_id("collector")
    while True:
        seconds = cut_all(database, settings, model)
        with database.transaction() as tx:
            if seconds is None:
                queue.fulfil(tx, model, me)
                return
            if not queue.promise(tx, model, me, seconds):
                return
        time.sleep(seconds)


def cut_all(database: Database, settings: Settings, model: str) -> float | None:
    """Cut until nothing is due; return the seconds until something will be, None when a doorbell will say."""
    while True:
        started = time.perf_counter()
        step = database.retrying(lambda tx: cut_one(tx, settings, model))
        metrics.cut_seconds.observe(time.perf_counter() - started)
        if isinstance(step, batching.Wait):
            return step.seconds
        metrics.batches_cut.labels(model, step.lane, step.reason).inc()
        metrics.batch_size.labels(model, step.lane).observe(len(step.ids))
        failpoint("collector.cut")
        for engine in _engines_to_ring(database, settings, model, step):
            doorbell().engine(engine)


def _engines_to_ring(database: Database, settings: Settings, model: str, cut: batches.Cut) -> Sequence[str]:
    if cut.engine is not None:
        return [cut.engine]
    with database.reading() as tx:
        return [engine.id for engine in engines.live(tx, settings.engine_gone_after, model)]


def cut_one(tx: sa.Connection, settings: Settings, model: str) -> batches.Cut | batching.Wait:
    """Cut one batch of a model's queue, or say how long to wait."""
    turns = queue.lock(tx, model)
    alive = engines.live(tx, settings.engine_gone_after, model)
    running = loads.running(tx, [engine.id for engine in alive])
    cohort = _cut_cohort(tx, model, alive, running)
    if cohort is not None:
        return cohort
    return _cut_lanes(tx, settings, model, turns, _loads(tx, model, alive, running), running)


def cut_realtime(
    tx: sa.Connection, settings: Settings, model: str, room: int, waiting: Sequence[str]
) -> tuple[str, batches.Cut] | None:
    """Cut a realtime batch for the engine that asks, which knows its room; None when nothing is due.

    A person waits: so nothing is asked that the engine knows itself, as the lanes in which jobs are `waiting`. Nor does
    anything wait for company here unless the lane's own setting says so; a busy engine's few milliseconds are for the
    collector, which is rung for many.
    """
    turns = queue.lock(tx, model)
    rules = settings.lanes["realtime"]
    quick = rules.model_copy(update={"wait_busy": rules.wait})
    step = _plan(tx, model, turns["realtime"], batching.Room(room, idle=True), quick)
    if not isinstance(step, batching.Batch):
        return None
    cut = batches.Cut(model, "realtime", _REALTIME, step.reason, step.ids, step.tokens)
    batch_id = batches.gather(tx, cut)
    if batch_id is None:
        return None
    _pay(tx, settings, model, turns, waiting, cut, step.last_owner)
    return batch_id, cut


def _loads(
    tx: sa.Connection, model: str, alive: Sequence[engines.Live], running: Sequence[loads.Running]
) -> list[batching.Load]:
    """Return what the engines have for a model and are doing; without those that a cohort has to itself."""
    if not alive:
        return []
    taken = cohorts.busy_engines(tx)
    found = []
    for engine in alive:
        if engine.id not in taken:
            counted = [one for one in running if one.engine == engine.id and (one.model == model or not engine.apart)]
            realtime = sum(one.jobs for one in counted if one.rank == _REALTIME)
            found.append(
                batching.Load(engine.slots, engine.reserve, sum(one.jobs for one in counted), realtime=realtime)
            )
    return found


def _cut_lanes(  # a decision has these facts
    tx: sa.Connection,
    settings: Settings,
    model: str,
    turns: Mapping[str, queue.Turn],
    engine_loads: Sequence[batching.Load],
    running: Sequence[loads.Running],
) -> batches.Cut | batching.Wait:
    """Cut one of the lanes, or say how long to wait."""
    waiting = queue.waiting(tx, model) if engine_loads else []
    ready = loads.ready(tx, model) if waiting else {}
    share = batching.below([*waiting, *ready, *(LANES[one.rank] for one in running)], settings.lanes)
    deficits = {lane: turn.deficit for lane, turn in turns.items()}
    soonest: float | None = None
    for lane in batching.order(waiting, deficits, settings.lanes):
        space = batching.room(engine_loads, ready, lane, settings.ready_backlog, share)
        if space.jobs < 1:
            continue
        step = _plan(tx, model, turns[lane], space, settings.lanes[lane])
        if isinstance(step, batching.Batch):
            cut = batches.Cut(model, lane, LANES.index(lane), step.reason, step.ids, step.tokens)
            if batches.gather(tx, cut) is not None:
                _pay(tx, settings, model, turns, waiting, cut, step.last_owner)
                return cut
        elif step.seconds is not None:
            soonest = step.seconds if soonest is None else min(soonest, step.seconds)
    return batching.Wait(soonest)


def _plan(
    tx: sa.Connection, model: str, turn: queue.Turn, space: batching.Room, rules: LaneRules
) -> batching.Batch | batching.Wait:
    adaptive = rules.policy == "adaptive"
    learned = sizes.learned(tx, model, turn.lane, rules.largest) if adaptive else rules.largest
    limits = policies.limits(rules.policy, rules.largest, space.jobs, learned)
    # One more than is chosen among: whether there is more decides on waiting.
    found = queue.candidates(tx, model, turn.lane, turn.last_owner, limits.window + 1)
    step = batching.plan(found, space, rules, limits, now=turn.clock, cut_at=turn.cut_at)
    if adaptive and isinstance(step, batching.Batch):
        sizes.used(tx, model, turn.lane)
    return step


def _pay(  # a decision has these facts
    tx: sa.Connection,
    settings: Settings,
    model: str,
    turns: Mapping[str, queue.Turn],
    waiting: Sequence[str],
    cut: batches.Cut,
    last_owner: str,
) -> None:
    """Store whose turn it is next in the lane that got the batch, and what the lanes are owed now."""
    deficits = {lane: turn.deficit for lane, turn in turns.items()}
    owed = batching.owe(cut.lane, len(cut.ids), waiting, deficits, settings.lanes)
    for lane, turn in turns.items():
        after = replace(turn, deficit=owed[lane], last_owner=last_owner if lane == cut.lane else turn.last_owner)
        if after != turn or lane == cut.lane:
            queue.advance(tx, model, after, cut=lane == cut.lane)


def _cut_cohort(
    tx: sa.Connection, model: str, alive: Sequence[engines.Live], running: Sequence[loads.Running]
) -> batches.Cut | None:
    """Cut the oldest waiting cohort for the least busy engine, which then takes nothing else.

    A job alone goes to the engine that has stood longest: what is sick and dies of anything started a moment ago.
    """
    found = cohorts.next_waiting(tx, model) if alive else None
    if found is None:
        return None
    cohort, members = found
    by_load = {free.id: sum(one.jobs for one in running if one.engine == free.id) for free in alive}
    engine = min(alive, key=lambda free: (free.started_at if len(members) == 1 else 0.0, by_load[free.id]))
    lane = min((member.lane for member in members), key=LANES.index)
    ids, tokens = [member.id for member in members], sum(member.tokens for member in members)
    cut = batches.Cut(model, lane, LANES.index(lane), "cohort", ids, tokens, cohort, engine.id)
    return cut if batches.gather(tx, cut) is not None else None
