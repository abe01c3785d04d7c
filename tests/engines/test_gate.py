"""Who goes into the engine next."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.settings import LANES
from tasks.engines import gate as gate_module
from tasks.engines.base import reserved
from tasks.engines.gate import Gate, Line

LANE = st.sampled_from(LANES)


@given(slots=st.integers(1, 10_000), share=st.floats(0, 0.9))
def test_reserve(slots: int, share: float) -> None:
    """Realtime has at least one slot of its own, the others keep at least one, and no share is no reserve."""
    kept = reserved(slots, share)
    assert 0 <= kept < slots
    assert (kept == 0) == (slots == 1 or share == 0)
    if kept:
        assert kept == 1 or kept - 1 < slots * share


@pytest.mark.parametrize(
    ("slots", "share", "kept"), [(1, 0.1, 0), (2, 0.9, 1), (10, 0.1, 1), (30, 0.1, 3), (256, 0.1, 26)]
)
def test_reserve_is_what_the_design_says(slots: int, share: float, kept: int) -> None:
    """A tenth of the slots, rounded up, is kept."""
    assert reserved(slots, share) == kept


@given(
    slots=st.integers(1, 6), share=st.sampled_from([0, 0.1, 0.5]), moves=st.lists(st.tuples(st.integers(0, 3), LANE))
)
def test_line(slots: int, share: float, moves: list[tuple[int, str]]) -> None:
    """Whatever comes and goes: bounds hold, lanes go in order, first come is first served, no free slot is wasted."""
    reserve = reserved(slots, share)
    line: Line[int] = Line(slots, reserve)
    waiting: dict[str, list[int]] = {lane: [] for lane in LANES}
    inside: list[str] = []
    for number, (move, lane) in enumerate(moves):
        if move <= 1:
            line.arrive(lane, number)
            waiting[lane].append(number)
        elif move == 2 and lane in inside:
            inside.remove(lane)
            line.leave(lane)
        elif move == 3 and waiting[lane]:
            line.withdraw(lane, waiting[lane].pop())
        while admitted := line.admit():
            entered, ticket = admitted
            above = LANES[: LANES.index(entered)]
            assert waiting[entered].pop(0) == ticket
            assert not any(waiting[higher] for higher in above)
            inside.append(entered)
        others = Counter(inside)["standard"] + Counter(inside)["bulk"]
        assert line.inside == len(inside) <= slots
        assert others <= slots - reserve
        if waiting["realtime"]:
            assert len(inside) == slots
        if waiting["standard"] or waiting["bulk"]:
            assert len(inside) == slots or others == slots - reserve


@given(
    slots=st.integers(1, 4),
    lanes=st.lists(LANE, max_size=30),
    cancelled=st.sets(st.integers(0, 29)),
    turns=st.lists(st.integers(0, 3), min_size=1, max_size=10),
)
def test_cancelling_leaks_no_slot(slots: int, lanes: list[str], cancelled: set[int], turns: list[int]) -> None:
    """Coroutines cancelled at any moment, waiting or inside, leave the gate as empty as the others do."""

    async def stay(gate: Gate, lane: str) -> None:
        async with gate.slot(lane):
            await asyncio.sleep(0)

    async def run() -> None:
        gate = Gate(slots, reserved(slots, 0.1))
        tasks = [asyncio.create_task(stay(gate, lane)) for lane in lanes]
        for number, task in enumerate(tasks):
            for _ in range(turns[number % len(turns)]):
                await asyncio.sleep(0)
            if number in cancelled:
                task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(results[n], asyncio.CancelledError | None) for n in range(len(tasks)))
        assert gate.line.inside == 0
        for lane in LANES:
            async with asyncio.timeout(1), gate.slot(lane):
                pass

    asyncio.run(run())


def test_realtime_overtakes() -> None:
    """With one slot, a realtime request that comes last is the next one in."""

    async def run() -> list[str]:
        gate = Gate(1, 0)
        order: list[str] = []

        async def stay(name: str, lane: str) -> None:
            async with gate.slot(lane):
                order.append(name)
                await asyncio.sleep(0.001)

        await asyncio.gather(
            stay("first", "bulk"),
            stay("bulk", "bulk"),
            stay("standard", "standard"),
            stay("realtime", "realtime"),
        )
        return order

    assert asyncio.run(run()) == ["first", "realtime", "standard", "bulk"]


def test_the_reserve_is_kept_while_there_is_realtime(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without realtime requests the others fill the engine; after one, its reserve stays free of them for a while."""

    async def run() -> list[int]:
        gate = Gate(4, 2)
        go = asyncio.Event()

        async def stay(lane: str) -> None:
            async with gate.slot(lane):
                await go.wait()

        async def inside(*lanes: str) -> int:
            go.clear()
            tasks = [asyncio.create_task(stay(lane)) for lane in lanes]
            await asyncio.sleep(0.01)
            found = gate.line.inside
            go.set()
            await asyncio.gather(*tasks)
            return found

        counts = [await inside(*["bulk"] * 6), await inside("realtime"), await inside(*["bulk"] * 6)]
        monkeypatch.setattr(gate_module, "KEPT_FOR", 0.0)
        return [*counts, await inside(*["bulk"] * 6)]

    assert asyncio.run(run()) == [4, 1, 2, 4]
