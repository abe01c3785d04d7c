"""A webhook receiver for benchmarks: answers at once, fails or hangs by the path, and remembers when what came.

`python -m benchmarks.webhook_receiver HOSTS` listens on one port of so many loopback addresses and prints it.
GET /report answers what came since the last report: of each [host, path, webhook-id, time, status, events].
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time

_chance = random.Random(7)
_came: list[tuple[str, str, str, float, int, int]] = []


class _Connection(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._got = bytearray()

    def data_received(self, data: bytes) -> None:
        self._got += data
        head, found, body = bytes(self._got).partition(b"\r\n\r\n")
        if not found:
            return
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        chunked = headers.get("transfer-encoding") == "chunked"
        if not (body.endswith(b"0\r\n\r\n") if chunked else len(body) >= int(headers.get("content-length", 0))):
            return
        method, path, _ = first.split(" ")
        if method == "GET":
            self._answer(200, json.dumps(_came).encode())
            _came.clear()
            return
        status = 500 if path.startswith("/fail") and _chance.random() < float(path[5:]) else 200
        events = body.count(b'"object":"event"')
        host = headers.get("host", "").partition(":")[0]
        _came.append((host, path, headers.get("webhook-id", ""), time.time(), status, events))
        if path != "/hang":
            self._answer(status, b"ok")

    def _answer(self, status: int, body: bytes) -> None:
        head = f"HTTP/1.1 {status} Said\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
        assert isinstance(self._transport, asyncio.Transport)
        self._transport.write(head.encode() + body)
        self._transport.close()


async def _main(hosts: int) -> None:
    loop = asyncio.get_running_loop()
    names = [f"127.0.0.{number}" for number in range(1, hosts + 1)]
    first = await loop.create_server(_Connection, names[0], 0, backlog=1024)
    port = first.sockets[0].getsockname()[1]
    for name in names[1:]:
        await loop.create_server(_Connection, name, port, backlog=1024)
    print(port, flush=True)
    # Until whoever started it closes its end.
    await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(_main(int(sys.argv[1])))
