"""The way out: what is dialled, what is not, and how much of an answer is read."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator, Sequence

import pytest

from tasks import egress
from tests.receivers import Received, Receiver, Reply, receiver

LOOPBACK = ("127.0.0.0/8",)


@pytest.fixture
def hooks() -> Iterator[Receiver]:
    """Run a receiver."""
    with receiver() as running:
        yield running


def post(
    url: str,
    *,
    networks: Sequence[str] = LOOPBACK,
    look: egress.Lookup = egress.lookup,
    within: float = 5.0,
    times: int = 1,
) -> list[egress.Answer]:
    """Send the same POST some times through one way out."""

    async def run() -> list[egress.Answer]:
        async with egress.opened(networks, look) as way:
            return [await way.post(url, {"x-test": "yes"}, b"{}", within) for _ in range(times)]

    return asyncio.run(run())


def answers(*found: str) -> egress.Lookup:
    """Return a resolver that gives every name these addresses."""
    families = [socket.AF_INET6 if ":" in address else socket.AF_INET for address in found]
    return lambda _host, _port: list(zip(families, found, strict=True))


def test_a_post_arrives_as_it_was_written(hooks: Receiver) -> None:
    """Path, query, body and headers arrive unchanged; the answer comes back."""
    (answer,) = post(f"{hooks.url}/a%2Fb/c?d=%20&e=f+g")
    (got,) = hooks.received
    assert got.path == "/a%2Fb/c?d=%20&e=f+g"
    assert got.body == b"{}"
    assert got.headers["x-test"] == "yes"
    assert got.headers["content-type"] == "application/json"
    assert got.headers["content-length"] == "2"
    assert (answer.status, answer.body) == (200, b"ok")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1", "2130706433", "0x7f.1", "localhost", "[::ffff:127.0.0.1]"])
def test_internal_urls_are_never_dialled(hooks: Receiver, host: str) -> None:
    """Without an opened network a receiver on loopback gets no request, however it is spelled."""
    with pytest.raises(egress.Refused, match=r"the URL (names|must)"):
        post(f"http://{host}:{hooks.port}/", networks=())
    assert hooks.received == []


# Only loopback addresses, opened and not: should a guard ever break, the test still sends nothing to anybody else.
@pytest.mark.parametrize(
    ("found", "networks"),
    [
        (["127.0.0.1"], ()),
        (["::ffff:127.0.0.1"], ()),
        (["::1"], ()),
        (["0.0.0.0"], ()),  # noqa: S104  # an address that is to be refused
        (["127.0.0.1", "::1"], LOOPBACK),
        (["::1", "127.0.0.1"], LOOPBACK),
        (["127.0.0.1", "127.0.0.2"], ("127.0.0.1/32",)),
    ],
)
def test_a_name_that_leads_inside_is_refused(hooks: Receiver, found: list[str], networks: tuple[str, ...]) -> None:
    """One internal address in the answer of DNS refuses all of it; the address is not told."""
    with pytest.raises(egress.Refused, match=r"rebind\.example\.com resolves to an internal address") as refused:
        post(f"http://rebind.example.com:{hooks.port}/", networks=networks, look=answers(*found))
    assert "127.0.0.1" not in str(refused.value)
    assert hooks.received == []


def test_a_second_answer_of_dns_is_not_asked_for(hooks: Receiver) -> None:
    """The name is looked up once for each request, and the address that was checked is the one dialled."""
    asked: list[str] = []

    def look(host: str, _port: int) -> Sequence[tuple[socket.AddressFamily, str]]:
        asked.append(host)
        return [(socket.AF_INET, "127.0.0.1" if len(asked) == 1 else "127.0.0.2")]

    (answer,) = post(f"http://rebind.example.com:{hooks.port}/", networks=("127.0.0.1",), look=look)
    assert answer.status == 200
    assert hooks.received[0].headers["host"] == f"rebind.example.com:{hooks.port}"
    with pytest.raises(egress.Refused):
        post(f"http://rebind.example.com:{hooks.port}/", networks=("127.0.0.1",), look=look)
    assert asked == ["rebind.example.com"] * 2


def test_even_behind_the_resolver_no_internal_address_is_dialled(
    hooks: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the first guard is blind, the one that makes the socket still refuses."""
    monkeypatch.setattr("models.addresses.refusal", lambda _url, _networks, _ports: None)
    with pytest.raises(egress.Unreachable):
        post(f"{hooks.url}/", networks=())
    assert hooks.received == []


def test_tls_asks_for_the_name_of_the_url() -> None:
    """The checked address is dialled, and the handshake names the host of the URL, not the address."""
    hello = bytearray()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def listen() -> None:
            connection, _ = server.accept()
            with connection:
                hello.extend(connection.recv(4096))

        thread = threading.Thread(target=listen)
        thread.start()
        with pytest.raises(egress.Unreachable):
            post(f"https://hooks.example.com:{server.getsockname()[1]}/", look=answers("127.0.0.1"))
        thread.join()
    assert hello.startswith(b"\x16\x03")
    assert b"hooks.example.com" in hello


def test_redirects_are_not_followed(hooks: Receiver) -> None:
    """A 3xx is an answer like any other: where it points gets no request."""
    hooks.answer = lambda _: Reply(307, {"location": f"{hooks.url}/elsewhere"})
    assert post(f"{hooks.url}/first")[0].status == 307
    assert [got.path for got in hooks.received] == ["/first"]


def test_proxies_of_the_environment_are_ignored(hooks: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing goes through a proxy, which would dial for us what we did not check."""
    with receiver() as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        post(f"{hooks.url}/")
        assert proxy.received == []
    assert len(hooks.received) == 1


def test_nothing_is_carried_from_one_request_to_the_next(hooks: Receiver) -> None:
    """No cookies are sent back, and each request has a connection of its own."""
    hooks.answer = lambda _: Reply(headers={"set-cookie": "id=1; Path=/"})
    post(f"{hooks.url}/", times=2)
    assert len(hooks.received) == 2
    assert all("cookie" not in got.headers and got.headers["connection"] == "close" for got in hooks.received)


def test_of_an_endless_answer_only_64_kb_are_read(hooks: Receiver) -> None:
    """The read stops at the bound, long before the time is up."""
    hooks.answer = lambda _: Reply(body=b"x" * 10_000, endless=True)
    started = time.monotonic()
    (answer,) = post(f"{hooks.url}/", within=60)
    assert time.monotonic() - started < 30
    assert len(answer.body) == 65_536


def test_a_body_that_is_not_what_it_says_changes_nothing(hooks: Receiver) -> None:
    """Bodies are not decompressed: no bomb goes off, no garbage fails a delivery."""
    hooks.answer = lambda _: Reply(headers={"content-encoding": "gzip"}, body=b"no gzip")
    assert post(f"{hooks.url}/")[0].body == b"no gzip"


def test_the_status_counts_when_the_body_stalls(hooks: Receiver) -> None:
    """A receiver that said 200 has said it; its body is cut when the time is up."""
    hooks.answer = lambda _: Reply(body=b"part", stalled=True)
    started = time.monotonic()
    (answer,) = post(f"{hooks.url}/", within=3)
    assert time.monotonic() - started < 30
    assert (answer.status, answer.body) == (200, b"part")


def test_a_pause_of_the_loop_costs_no_answer(hooks: Receiver) -> None:
    """Whatever is due at the end of the time comes due at once then: a 200 that has come still counts."""
    hooks.answer = lambda _: Reply(body=b"part", stalled=True)

    async def run() -> egress.Answer:
        async with egress.opened(LOOPBACK) as way:
            asyncio.get_running_loop().call_later(1.9, time.sleep, 0.5)
            return await way.post(f"{hooks.url}/", {}, b"{}", 2.0)

    assert asyncio.run(run()) == egress.Answer(200, None, b"part")


def test_a_receiver_that_hangs_is_left_when_the_time_is_up(hooks: Receiver) -> None:
    """No answer within the time is a failure that says so."""
    hooks.answer = hooks.hang
    with pytest.raises(egress.Unreachable, match=r"no answer within 0.3 s"):
        post(f"{hooks.url}/", within=0.3)


def test_a_name_that_takes_for_ever_to_resolve_costs_its_own_time_only() -> None:
    """The time limit covers the look-up."""
    released = threading.Event()

    def look(_host: str, _port: int) -> Sequence[tuple[socket.AddressFamily, str]]:
        released.wait(60)
        return []

    started = time.monotonic()
    with pytest.raises(egress.Unreachable, match="no answer within"):
        post("http://slow.example.com/", look=look, within=0.3)
    assert time.monotonic() - started < 30
    released.set()


def test_look_ups_that_hang_leave_room_for_others(hooks: Receiver) -> None:
    """They outlive their tries; the next requests do not wait behind them."""
    released = threading.Event()

    def look(host: str, _port: int) -> Sequence[tuple[socket.AddressFamily, str]]:
        if host.startswith("slow"):
            released.wait(60)
        return [(socket.AF_INET, "127.0.0.1")]

    async def run() -> int:
        async with egress.opened(LOOPBACK, look, at_once=2) as way:
            for _ in range(3):
                slow = [way.post("http://slow.example.com/", {}, b"", 0.1) for _ in range(2)]
                found = await asyncio.gather(*slow, return_exceptions=True)
                assert all(isinstance(error, egress.Unreachable) for error in found)
            return (await way.post(f"http://quick.example.com:{hooks.port}/", {}, b"", 10)).status

    started = time.monotonic()
    assert asyncio.run(run()) == 200
    assert time.monotonic() - started < 30
    released.set()


def test_ports_are_judged_before_anything_is_sent(hooks: Receiver) -> None:
    """A port that is not on the list is refused, in an opened network too."""

    async def run() -> None:
        async with egress.opened(LOOPBACK, ports=((1, hooks.port - 1), (hooks.port + 1, 65_535))) as way:
            await way.post(f"{hooks.url}/", {}, b"", 5)

    with pytest.raises(egress.Refused, match=f"names port {hooks.port}; webhooks may reach"):
        asyncio.run(run())
    assert hooks.received == []


def test_failures_say_why_in_words(hooks: Receiver) -> None:
    """No name, no server, no answer: each is told apart, without the address behind the name."""

    def nothing(_host: str, _port: int) -> Sequence[tuple[socket.AddressFamily, str]]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    for look in (nothing, answers()):
        with pytest.raises(egress.Unreachable, match="the name cannot be resolved"):
            post("http://nowhere.example.com/", look=look)
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))  # nobody else is given the port meanwhile
        with pytest.raises(egress.Unreachable, match="no connection: Connection refused") as refused:
            post(f"http://closed.example.com:{deaf.getsockname()[1]}/", look=answers("127.0.0.1"))
    assert "127.0.0.1" not in str(refused.value)

    def cut(_received: Received) -> Reply:
        return Reply(cut=True)

    hooks.answer = cut
    with pytest.raises(egress.Unreachable, match="no readable answer: ServerDisconnectedError"):
        post(f"{hooks.url}/")
    assert len(hooks.received) == 1
