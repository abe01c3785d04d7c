"""Who goes into the engine next.

A worker claims batches ahead of the engine's room, so requests wait here: strictly by lane, first come first served
within a lane, and some slots kept for realtime while there is any. `Line` is the rule alone; `Gate` lets coroutines
wait by it.
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

from stoker.settings import LANES

KEPT_FOR = 60.0
"""Seconds after the last realtime request in which the reserve is kept: an engine that has none loses no slot to it."""

Ticket = TypeVar("Ticket")


class Line(Generic[Ticket]):
    """The waiting line of one engine with `slots` places, `reserve` of them for realtime only."""

    def __init__(self, slots: int, reserve: int) -> None:
        self.slots = slots
        self.reserve = reserve
        self.inside = 0
        self._others = 0
        self._waiting: dict[str, OrderedDict[Ticket, None]] = {lane: OrderedDict() for lane in LANES}

    def arrive(self, lane: str, ticket: Ticket) -> None:
        """Queue at the end of a lane."""
        self._waiting[lane][ticket] = None

    def admit(self) -> tuple[str, Ticket] | None:
        """Let the next one in and return its lane and ticket; None when nobody waits or nobody may enter."""
        for lane in LANES:
            if self._waiting[lane] and self.has_room(lane):
                ticket, _ = self._waiting[lane].popitem(last=False)
                self._count(lane, 1)
                return lane, ticket
        return None

    def leave(self, lane: str) -> None:
        """Give a place back."""
        self._count(lane, -1)

    def withdraw(self, lane: str, ticket: Ticket) -> None:
        """Leave the line without having been inside."""
        self._waiting[lane].pop(ticket, None)

    def has_room(self, lane: str) -> bool:
        """Tell whether a place is free for this lane."""
        if lane == "realtime":
            return self.inside < self.slots
        # Lower lanes may not use the reserve, whoever sits in the other places.
        return self.inside < self.slots and self._others < self.slots - self.reserve

    def _count(self, lane: str, change: int) -> None:
        self.inside += change
        if lane != "realtime":
            self._others += change


class Gate:
    """Holds coroutines back until the engine has room for them; lives on one event loop."""

    def __init__(self, slots: int, reserve: int) -> None:
        self.line: Line[asyncio.Future[None]] = Line(slots, 0)
        self._reserve = reserve
        self._realtime_at = -math.inf

    @asynccontextmanager
    async def slot(self, lane: str) -> AsyncIterator[None]:
        """Wait for a place, hold it inside the `async with`, give it back however that ends."""
        await self._enter(lane)
        try:
            yield
        finally:
            self.line.leave(lane)
            self._let_in()

    async def _enter(self, lane: str) -> None:
        loop = asyncio.get_running_loop()
        if lane == "realtime":
            self._realtime_at = loop.time()
        self.line.reserve = self._reserve if loop.time() - self._realtime_at < KEPT_FOR else 0
        ticket: asyncio.Future[None] = loop.create_future()
        self.line.arrive(lane, ticket)
        self._let_in()
        try:
            await ticket
        except asyncio.CancelledError:
            if ticket.cancelled():
                self.line.withdraw(lane, ticket)
            else:
                # Let in and cancelled in the same turn of the loop: the place is ours to give back.
                self.line.leave(lane)
                self._let_in()
            raise

    def _let_in(self) -> None:
        while admitted := self.line.admit():
            lane, ticket = admitted
            if ticket.cancelled():
                # Its coroutine was cancelled but had no turn yet to withdraw.
                self.line.leave(lane)
            else:
                ticket.set_result(None)
