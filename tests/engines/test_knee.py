"""The limit of an upstream, found by measuring: held against servers that are only simulated."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.engines.upstreams.knee import MOST, START, Knee
from tests.upstreams import TABLE, TOKENS, Machine, curve

Limit = Callable[[], int]


@dataclass
class Load:
    """A client that always has more to ask: it keeps the limit used up until `total` answers have come."""

    machine: Machine
    total: int
    knee: Knee | None = None
    fixed: int = 0
    noise: float = 0.0
    lengths: Callable[[random.Random], float] = lambda _chance: 1.0
    told: bool = True
    most: int = 10_000
    at_once: int = 10_000
    changes: dict[int, Callable[[Machine], None]] = field(default_factory=dict)
    seed: int = 0
    limits: list[int] = field(default_factory=list)
    refused: int = 0

    def run(self) -> float:
        """Return the seconds that it took."""
        chance = random.Random(self.seed)
        inside: dict[int, tuple[int, float]] = {}
        numbers, now, done = itertools.count(), 0.0, 0
        while done < self.total:
            while len(inside) < min(self.limit, self.at_once) and done + len(inside) < self.total:
                ticket = self.knee.begun(now) if self.knee else 0
                if len(inside) >= self.most:
                    self.refused += 1
                    assert self.knee is not None
                    self.knee.refused(ticket, now)
                    continue
                job, work = next(numbers), self.lengths(chance)
                inside[job] = ticket, work
                noise = chance.lognormvariate(-(self.noise**2) / 2, self.noise) if self.noise else 1.0
                self.machine.arrive(job, work * noise, now)
            due = self.machine.due()
            assert due is not None
            now = due
            for job in self.machine.finished(now):
                ticket, work = inside.pop(job)
                done += 1
                if self.knee:
                    self.knee.done(ticket, now, max(1, int(work * TOKENS)) if self.told else 0)
                    self.limits.append(self.knee.limit)
                if done in self.changes:
                    self.changes.pop(done)(self.machine)
        return now

    @property
    def limit(self) -> int:
        """Return how many may be in flight."""
        return self.knee.limit if self.knee else self.fixed


def queue(places: int) -> Machine:
    """Make a server that computes so many at once, a second each, and queues the others."""
    return Machine(lambda _batch: 1.0, places)


def best(total: int, **rest: object) -> float:
    """Return the seconds of the best fixed limit on the batching curve."""
    return min(Load(Machine(), total, fixed=limit, **rest).run() for limit in (24, 32, 64))  # type: ignore[arg-type]


def test_the_curve_is_the_published_one() -> None:
    """The simulated server takes the published time at each batch size."""
    for batch, seconds in TABLE:
        assert Load(Machine(), batch, fixed=batch).run() == pytest.approx(seconds)
    assert curve(3) == pytest.approx((1.981 + 2.067) / 2)


@pytest.mark.parametrize(
    ("total", "noise"), [(100, 0.0), (100, 0.6), (300, 0.3), (1000, 0.0), (1000, 0.6), (3000, 0.3)]
)
def test_batching_servers_are_filled(total: int, noise: float) -> None:
    """On the batching curve, whatever the noise, at least 0.95 of the best fixed limit's throughput is reached."""
    for seed in range(2):
        took = Load(Machine(), total, Knee(), noise=noise, seed=seed).run()
        assert best(total, noise=noise, seed=seed) / took >= 0.95


@pytest.mark.parametrize("told", [True, False])
def test_lengths_may_vary(told: bool) -> None:
    """Answers of 5 to 195 tokens are no reason to shrink."""

    def lengths(chance: random.Random) -> float:
        return chance.uniform(0.05, 1.95)

    for seed in range(2):
        took = Load(Machine(), 1000, Knee(), lengths=lengths, told=told, seed=seed).run()
        assert best(1000, lengths=lengths, seed=seed) / took >= 0.9


def test_sorted_lengths_are_no_queue() -> None:
    """A burst whose answers come in order since they grow longer is told from a server that works one by one."""
    numbers = itertools.count(1)
    load = Load(Machine(), 32, Knee(), lengths=lambda _chance: next(numbers) / 32)
    load.run()
    assert min(load.limits) >= START


@pytest.mark.parametrize("places", [1, 4])
@pytest.mark.parametrize("noise", [0.0, 0.2, 0.5])
def test_a_queue_is_left_to_us(places: int, noise: float) -> None:
    """A server with few places keeps few requests: within a hundred answers, and without losing throughput."""
    for seed in range(4):
        load = Load(queue(places), 600, Knee(), noise=noise, seed=seed)
        took = load.run()
        settled = load.limits[100:]
        assert sum(settled) / len(settled) <= places * 4
        assert load.total / places / took >= 0.9


@pytest.mark.parametrize("places", [1, 4])
def test_the_first_burst_shows_a_queue(places: int) -> None:
    """The first few answers are enough, so that the last of the burst is not lost to its timeout."""
    load = Load(queue(places), 12, Knee())
    load.run()
    assert load.limits[-1] <= places * 2


def test_a_steady_queue_is_found_too() -> None:
    """Without a burst to judge by, lower limits are tried and kept as long as throughput is the same."""
    load = Load(queue(16), 4000, Knee())
    took = load.run()
    assert sorted(load.limits[2000:])[1000] <= 32
    assert 4000 / 16 / took >= 0.95


def test_refusals_are_a_ceiling() -> None:
    """A server that takes ten at once is given ten, and asked for more ever more rarely."""
    load = Load(Machine(), 1500, Knee(), most=10)
    took = load.run()
    assert max(load.limits[50:]) <= 16
    assert sorted(load.limits)[len(load.limits) // 2] == 10
    assert load.refused < 60
    assert Load(Machine(), 1500, fixed=10).run() / took >= 0.93


@pytest.mark.parametrize(("before", "after"), [(4, 1), (2, 16), (1, 8)])
def test_capacity_may_change(before: int, after: int) -> None:
    """When the server gets slower or faster the limit follows."""

    def change(machine: Machine) -> None:
        machine.places = after

    load = Load(queue(before), 3000, Knee(), changes={500: change}, noise=0.1)
    load.run()
    settled = sorted(load.limits[-1000:])[500]
    assert after * 0.75 <= settled <= after * 4


def test_a_bigger_server_is_found() -> None:
    """Where throughput grows beyond the start, the limit grows: doubling at first."""
    load = Load(Machine(lambda batch: 1.0 + batch / 1000, 10_000), 6000, Knee())
    load.run()
    assert load.limits[-1] >= 256


def test_low_load_changes_nothing() -> None:
    """A limit that is not used up is neither raised nor lowered."""
    load = Load(Machine(), 500, Knee(), at_once=5)
    load.run()
    assert set(load.limits) == {START}


def test_timeouts_cut_the_limit_once() -> None:
    """Requests that time out together are one sign, later ones another."""
    knee = Knee()
    requests = [knee.begun(0.0) for _ in range(32)]
    for request in requests:
        knee.strained(request, 600.0)
    assert knee.limit == 22
    knee.strained(knee.begun(601.0), 1201.0)
    assert knee.limit == 15


@given(
    moves=st.lists(
        st.tuples(st.sampled_from(["begun", "done", "refused", "strained", "gone"]), st.floats(0.0, 30.0)),
        max_size=300,
    ),
    tokens=st.integers(0, 3000),
)
def test_bounds_hold(moves: list[tuple[str, float]], tokens: int) -> None:
    """Whatever happens, in whatever order, the limit stays within 1 and its bound."""
    knee, inside, now = Knee(), [], 0.0
    for move, wait in moves:
        now += wait
        if move == "begun":
            inside.append(knee.begun(now))
        elif inside and move == "done":
            knee.done(inside.pop(0), now, tokens)
        elif inside:
            getattr(knee, move)(inside.pop(), now)
        assert 1 <= knee.limit <= MOST
