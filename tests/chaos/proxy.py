"""A fault proxy: a TCP relay that can be told to hold, lose, delay or cut what passes, in both directions.

One stands on each network edge of a service under test. It runs in a thread of its own; every method may be called
from any thread.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal, Self

Mode = Literal["pass", "hold", "half_open", "drop_answers", "refuse", "delay"]
"""`hold`: bytes wait, and come when it passes again. `half_open`: what is connected never hears of the other side
again, not even its end. `drop_answers`: a request goes through, its answer cuts the connection. `refuse`: cut at
once."""

_RESET = struct.pack("ii", 1, 0)
_BLOCK = 65_536


@dataclass(eq=False)
class _Connection:
    near: asyncio.StreamWriter
    far: asyncio.StreamWriter | None = None
    dead: bool = False
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def reset(self) -> None:
        """Cut it with RST, as a machine does that knows nothing of it."""
        for writer in (self.near, self.far):
            if writer is not None:
                link = writer.get_extra_info("socket")
                with suppress(OSError):
                    link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                writer.transport.abort()


class Proxy:
    """Relays to one port of loopback."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.port = 0
        self.mode: Mode = "pass"
        self.seconds = 0.0
        self._connections: set[_Connection] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=f"proxy-{target}", daemon=True)
        self._started = threading.Event()

    def __enter__(self) -> Self:
        """Start to relay; `port` is where."""
        self._thread.start()
        assert self._started.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        """Cut everything and end."""
        self._call(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def be(self, mode: Mode, seconds: float = 0.0) -> None:
        """Behave so from now on; `seconds` is how long each block waits when the mode is `delay`."""
        self._call(self._be(mode, seconds))

    def reset(self) -> None:
        """Cut every connection there is; new ones are relayed as the mode says."""
        self._call(self._reset())

    def heal(self) -> None:
        """Relay faithfully again: what was held comes through, what is half-open stays so."""
        self.be("pass")

    def connections(self) -> int:
        """Return how many connections there are."""
        return len(self._connections)

    def _call(self, work: object) -> None:
        assert asyncio.iscoroutine(work)
        asyncio.run_coroutine_threadsafe(work, self._loop).result(10)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._change = asyncio.Event()
        self._server = self._loop.run_until_complete(asyncio.start_server(self._accept, "127.0.0.1", 0, backlog=512))
        self.port = self._server.sockets[0].getsockname()[1]
        self._started.set()
        self._loop.run_forever()

    async def _be(self, mode: Mode, seconds: float) -> None:
        self.mode, self.seconds = mode, seconds
        if mode == "half_open":
            for connection in self._connections:
                connection.dead = True
        if mode == "refuse":
            await self._reset()
        changed, self._change = self._change, asyncio.Event()
        changed.set()

    async def _reset(self) -> None:
        for connection in list(self._connections):
            connection.reset()

    async def _end(self) -> None:
        self._server.close()
        tasks = [task for connection in self._connections for task in connection.tasks]
        await self._reset()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = _Connection(writer, dead=self.mode == "half_open")
        if self.mode == "refuse":
            connection.reset()
            return
        self._connections.add(connection)
        task = asyncio.current_task()
        assert task is not None
        connection.tasks.append(task)
        try:
            await self._relay(connection, reader)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            connection.reset()
            self._connections.discard(connection)

    async def _relay(self, connection: _Connection, reader: asyncio.StreamReader) -> None:
        far_reader, connection.far = await asyncio.open_connection("127.0.0.1", self.target)
        ways = [
            asyncio.create_task(self._pump(connection, reader, connection.far, answers=False)),
            asyncio.create_task(self._pump(connection, far_reader, connection.near, answers=True)),
        ]
        connection.tasks += ways
        await asyncio.gather(*ways)

    async def _pump(
        self, connection: _Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, answers: bool
    ) -> None:
        while True:
            data = await reader.read(_BLOCK)
            while self.mode == "hold" and not connection.dead:
                await self._change.wait()
            if connection.dead:
                if not data:
                    # The other side is gone, and this one is not to learn it.
                    await asyncio.Event().wait()
                continue
            if answers and data and self.mode == "drop_answers":
                connection.reset()
                return
            if self.mode == "delay":
                await asyncio.sleep(self.seconds)
            if not data:
                with suppress(OSError):
                    writer.write_eof()
                return
            writer.write(data)
            await writer.drain()
