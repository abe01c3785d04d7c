"""One HTTP call to one upstream: the body goes out as it is, what comes back is judged.

No proxies, no redirects, no cookies, bounded answers. A call that is cancelled closes its connection, and with it the
upstream's work on it.
"""

from __future__ import annotations

import asyncio
import math
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp
import msgspec
from yarl import URL

from tasks.backoff import retry_after
from tasks.engines.assembly import STREAMED, Assembly
from tasks.engines.base import Completion, Request
from tasks.engines.upstreams import answers
from tasks.engines.upstreams.answers import Fate, Verdict
from tasks.engines.upstreams.events import Events
from tasks.engines.upstreams.listing import Place

MOST = 64_000_000
"""Bytes of an answer."""
MOST_ERROR = 1_000_000
_MOST_MODELS = 8_000_000
_KEEPALIVE = 2.0
"""Seconds that an idle connection is kept: less than servers do (uvicorn 5), or they close it under a request."""


REASONS: tuple[tuple[type[Exception], str], ...] = (
    (aiohttp.ClientConnectorDNSError, "its name cannot be resolved"),
    (aiohttp.ClientConnectorCertificateError, "its certificate is not valid for this name"),
    (aiohttp.ClientSSLError, "the TLS handshake failed"),
    (aiohttp.ServerDisconnectedError, "it cut the connection"),
    (aiohttp.ClientPayloadError, "it cut the connection"),
    (ConnectionError, "it cut the connection"),
    (TimeoutError, "it did not answer in time"),
)
"""What errors mean, the special before the general."""


class TooLong(ValueError):
    """The answer does not end within its bound."""


@dataclass(slots=True, eq=False)
class Call:
    """A request on its way through one upstream; the pool reads `signed` and may `give_up`.

    `signed` is when something last came of it; that it was sent is no sign of life.
    """

    request: Request
    body: bytes = field(repr=False)
    choices: int
    limit: asyncio.Timeout
    progressed: Callable[[], None]
    signed: float = -math.inf
    emitted: int = 0
    given_up: bool = False

    def sign(self) -> None:
        """Note that something came."""
        self.signed = time.monotonic()
        self.progressed()

    def give_up(self) -> None:
        """End the call without an outcome."""
        if not self.given_up and not self.limit.expired():
            self.given_up = True
            self.limit.reschedule(0)


class Caller:
    """The way to all upstreams: one session; open it with `opened`."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def post(self, place: Place, call: Call) -> Verdict:
        """Send a request and return how it ended.

        Nothing is raised but the cancellation by the call's limit.
        """
        try:
            async with self._session.post(
                URL(place.url + call.request.endpoint, encoded=True),
                data=call.body,
                headers=_headers(place.key, call.request),
                allow_redirects=False,
            ) as got:
                call.sign()
                try:
                    return await self._judge(got, call)
                except BaseException:
                    got.close()  # else what is still to come would be read to keep the connection
                    raise
        except (ValueError, RecursionError) as error:
            return _broken(call, Fate.SICK, f"its answer cannot be read: {error}")
        except (aiohttp.ClientError, OSError) as error:
            # The connection's own timeouts are among them. The call's limit is a cancellation in here.
            return _broken(call, Fate.CUT, reason(error))

    async def models(self, place: Place, within: float) -> tuple[int, bytes]:
        """Ask for `/v1/models`; return status and body. Raises OSError (TimeoutError), ClientError, ValueError."""
        async with (
            asyncio.timeout(within),
            self._session.get(
                URL(place.url + "/v1/models", encoded=True), headers=_headers(place.key), allow_redirects=False
            ) as got,
        ):
            return got.status, await _whole(got, _MOST_MODELS, lambda: None)

    async def _judge(self, got: aiohttp.ClientResponse, call: Call) -> Verdict:
        if got.status == answers.OK and got.content_type == "text/event-stream":
            return await self._stream(got, call)
        most = MOST if got.status == answers.OK else MOST_ERROR
        text = await _whole(got, most, call.sign)
        asked = retry_after(got.headers.get("retry-after"), time.time())
        return answers.read(call.request, got.status, text, asked)

    async def _stream(self, got: aiohttp.ClientResponse, call: Call) -> Verdict:
        request = call.request
        if request.endpoint not in STREAMED:
            return Verdict(Fate.SICK, f"its answer is none to {request.endpoint}")
        assembly, events, size = Assembly(request.endpoint, call.choices), Events(), 0
        async for chunk in got.content.iter_any():
            call.sign()
            size += len(chunk)
            if size > MOST * 4:  # each token comes in an envelope
                raise TooLong("it has no end")
            if verdict := _take(call, assembly, events.feed(chunk)):
                return verdict
        return _take(call, assembly, events.end()) or _ended(call, assembly)


def _take(call: Call, assembly: Assembly, found: list[str]) -> Verdict | None:
    """Pass events on; a verdict when the stream ended with them."""
    for data in found:
        if data.strip() == "[DONE]":
            return _ended(call, assembly, done=True)
        if not data.strip():
            continue  # a sign of life
        assembly.add(data)  # first: what is no event of this endpoint is not passed on
        if assembly.error is not None:
            return _error(call, assembly.error)
        if call.request.emit is not None:
            call.request.emit(data)
            call.emitted += 1
    return None


def _ended(call: Call, assembly: Assembly, *, done: bool = False) -> Verdict:
    # A server that says `[DONE]` may have made fewer choices than it was asked for: not all know `n`.
    if not (assembly.complete or (done and assembly.finished)):
        return _broken(call, Fate.CUT, "its stream ended too early")
    outcome = Completion(call.request.id, assembly.body(), assembly.usage)
    return Verdict(Fate.DONE, outcome=outcome, status=answers.OK)


def _error(call: Call, given: Mapping[str, object]) -> Verdict:
    """Judge an error that came inside a stream, whose status was 200."""
    code = given.get("code")
    status = code if isinstance(code, int) and not isinstance(code, bool) and code in range(400, 600) else 500
    if code == "context_length_exceeded" or given.get("type") == "invalid_request_error":
        status = 400
    verdict = answers.read(call.request, status, msgspec.json.encode({"error": given}), None)
    if verdict.fate is Fate.DONE or not call.emitted:
        return verdict
    return Verdict(Fate.HALF, f"its stream broke off with an error ({status})", status=status)


def _broken(call: Call, fate: Fate, why: str) -> Verdict:
    return Verdict(Fate.HALF if call.emitted else fate, why)


def _headers(key: str, request: Request | None = None) -> dict[str, str]:
    streamed = request is not None and request.emit is not None
    headers = {"accept": "text/event-stream" if streamed else "application/json"}
    if request is not None and request.trace:
        headers["traceparent"] = request.trace
    return headers | ({"authorization": f"Bearer {key}"} if key else {})


async def _whole(got: aiohttp.ClientResponse, most: int, sign: Callable[[], None]) -> bytes:
    read = bytearray()
    async for chunk in got.content.iter_any():
        sign()
        read += chunk
        if len(read) > most:
            raise TooLong(f"it has more than {most} bytes")
    return bytes(read)


def reason(error: Exception) -> str:
    """Say why no answer came."""
    if type(error) is aiohttp.ClientConnectorError:
        number = error.os_error.errno
        return f"no connection: {os.strerror(number) if number else type(error.os_error).__name__}"
    return next(
        (why for kind, why in REASONS if isinstance(error, kind)), f"no readable answer: {type(error).__name__}"
    )


def _socket(info: aiohttp.AddrInfoType) -> socket.socket:
    """Make a socket that notices a peer which vanished without a word, also in the middle of a long answer."""
    family, kind, protocol, _, _ = info
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
        if option := getattr(socket, name, None):  # Linux has all three
            made.setsockopt(socket.IPPROTO_TCP, option, value)
    return made


@asynccontextmanager
async def opened(connect_timeout: float) -> AsyncIterator[Caller]:
    """Open the way to the upstreams for a while."""
    connector = aiohttp.TCPConnector(
        limit=0,  # the router limits
        keepalive_timeout=_KEEPALIVE,
        socket_factory=_socket,
    )
    async with aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, connect=2 * connect_timeout, sock_connect=connect_timeout),
        trust_env=False,
        headers={"user-agent": "stoker", "accept-encoding": "identity", "content-type": "application/json"},
    ) as session:
        yield Caller(session)
