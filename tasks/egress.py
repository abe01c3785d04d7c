"""Requests to the outside: one POST to a URL that a stranger chose.

Three guards, each enough alone for what it sees: `models.addresses.refusal` before anything else, the resolver below
(one look-up, and every address in the answer must be allowed), and the making of the socket (the very address that is
dialled). No proxies, no redirects, no cookies, and no connection is used twice. TLS is checked against the URL's name.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from io import BytesIO

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from models import addresses

AT_ONCE = 64
_LOOK_UPS = 4
"""Threads for each request at once: a look-up that hangs outlives its try, and must not hold up the next ones."""
_MOST_READ = 65_536

Lookup = Callable[[str, int], Sequence[tuple[socket.AddressFamily, str]]]
"""Resolves a name: blocks, returns (family, address) of each answer, raises OSError when there is none."""


class Refused(Exception):
    """The URL leads where no request may go; nothing was sent. The text says why."""


class Unreachable(Exception):
    """No answer came. The text says why, without the address: what a name means inside is nobody's business."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the receiver answered: at most 64 kB of its body, and its Retry-After header as it came."""

    status: int
    retry_after: str | None
    body: bytes = field(repr=False)


def lookup(host: str, port: int) -> Sequence[tuple[socket.AddressFamily, str]]:
    """Resolve a name with the operating system."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [(family, str(address[0])) for family, _, _, _, address in found]


class _Resolver(AbstractResolver):
    """Resolves once a connection, and refuses the whole answer for one bad address in it."""

    def __init__(self, networks: Sequence[str], look: Lookup, at_once: int) -> None:
        self._networks = networks
        self._look = look
        # Its own threads, made when needed: names that take for ever to resolve must not hold up anything else.
        self._threads = ThreadPoolExecutor(at_once * _LOOK_UPS, thread_name_prefix="dns")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return the addresses of a name. Raises Refused, and OSError when it has none."""
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(self._threads, self._look, host, port)
        if not found:
            raise OSError("no address")
        if not all(addresses.allowed(address, self._networks) for _, address in found):
            raise Refused(f"{host} resolves to an internal address, which webhooks may not reach")
        return [
            ResolveResult(hostname=host, host=address, port=port, family=kind, proto=0, flags=socket.AI_NUMERICHOST)
            for kind, address in found
            if family in (socket.AF_UNSPEC, kind)
        ]

    async def close(self) -> None:
        """Leave look-ups that still hang to themselves."""
        self._threads.shutdown(wait=False, cancel_futures=True)


class Egress:
    """The way out; open it with `opened`."""

    def __init__(self, session: aiohttp.ClientSession, networks: Sequence[str], ports: addresses.Ports) -> None:
        self._session = session
        self._networks = networks
        self._ports = ports

    async def post(self, url: str, headers: Mapping[str, str], body: bytes, within: float) -> Answer:
        """Send one POST and return the answer; look-up, connection and answer take `within` seconds in all.

        The status line decides: a body that is too long, or unfinished when the time is up, is cut there. Raises
        Refused and Unreachable.
        """
        why = addresses.refusal(url, self._networks, self._ports)
        if why is not None:
            raise Refused(f"the URL {why}")
        came: aiohttp.ClientResponse | None = None
        read = bytearray()
        try:
            async with (
                asyncio.timeout(within),
                self._session.post(
                    # Encoded: sent as it was written. As a stream: megabytes go out in pieces, others in between.
                    URL(url, encoded=True),
                    headers=headers,
                    data=BytesIO(body),
                    allow_redirects=False,
                ) as came,
            ):
                await _read(came, read)
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as error:
            # Once the status has come, what is left of the body would change nothing.
            if came is None:
                raise Unreachable(_reason(error, within)) from error
        return Answer(came.status, came.headers.get("retry-after"), bytes(read))


async def _read(got: aiohttp.ClientResponse, into: bytearray) -> None:
    while len(into) < _MOST_READ and (chunk := await got.content.read(_MOST_READ - len(into))):
        into += chunk


def _reason(error: Exception, within: float) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {within:g} s"
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "the name cannot be resolved"
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return "the certificate is not valid for this name"
    if isinstance(error, aiohttp.ClientSSLError):
        return "the TLS handshake failed"
    if isinstance(error, aiohttp.ClientConnectorError):
        # The number only: the text that comes with it holds the address.
        number = error.os_error.errno
        return f"no connection: {os.strerror(number) if number else type(error.os_error).__name__}"
    return f"no readable answer: {type(error).__name__}"


def _socket_maker(networks: Sequence[str]) -> Callable[[aiohttp.AddrInfoType], socket.socket]:
    def make(info: aiohttp.AddrInfoType) -> socket.socket:
        family, kind, proto, _, address = info
        if not addresses.allowed(str(address[0]), networks):
            raise PermissionError("an internal address")
        return socket.socket(family, kind, proto)

    return make


@asynccontextmanager
async def opened(
    networks: Sequence[str],
    look: Lookup = lookup,
    *,
    ports: addresses.Ports = addresses.ALL_PORTS,
    at_once: int = AT_ONCE,
) -> AsyncIterator[Egress]:
    """Open the way out for a while, for about `at_once` requests at once.

    `networks` are the internal ones (CIDR) that may be reached, `ports` the ports, as (first, last).
    """
    resolver = _Resolver(networks, look, at_once)
    connector = aiohttp.TCPConnector(
        resolver=resolver,
        socket_factory=_socket_maker(networks),
        use_dns_cache=False,
        force_close=True,
        limit=0,
    )
    async with aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
        auto_decompress=False,
        trust_env=False,
        headers={"user-agent": "stoker", "accept-encoding": "identity", "content-type": "application/json"},
    ) as session:
        try:
            yield Egress(session, networks, ports)
        finally:
            await resolver.close()
