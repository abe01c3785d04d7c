"""Webhooks that are to lead inside: traps on loopback that nothing may touch, and the way out with real TLS.

Nothing here leaves the machine: what is not loopback is refused by the socket itself, before the first packet.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from models import addresses
from tasks import egress
from tests import spellings
from tests.receivers import Receiver, Reply, receiver

PORTS = ((80, 80), (443, 443), (1024, 65535))
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
ALL_LOOPBACK = ("127.0.0.0/8", "::1/128", "0.0.0.0/8", "::/128")


class Traps:
    """Servers on several addresses of loopback, all on one port, which count who comes."""

    def __init__(self) -> None:
        self.port = 0
        self.hits: list[str] = []

    @contextmanager
    def open(self) -> Iterator[Traps]:
        """Listen until the end of the block."""
        with ExitStack() as stack:
            for host in ("127.0.0.1", "127.0.0.2", "127.0.0.4", "::1"):
                family = socket.AF_INET6 if ":" in host else socket.AF_INET
                server = stack.enter_context(socket.create_server((host, self.port), family=family))
                self.port = server.getsockname()[1]
                stack.callback(_end, self._listen(server, host), server)
            yield self

    def _listen(self, server: socket.socket, host: str) -> threading.Thread:
        def listen() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    self.hits.append(host)
                    with connection, suppress(OSError):
                        connection.recv(65_536)
                        connection.sendall(OK)

        thread = threading.Thread(target=listen, daemon=True)
        thread.start()
        return thread


def _end(thread: threading.Thread, server: socket.socket) -> None:
    with suppress(OSError):
        server.shutdown(socket.SHUT_RDWR)
    thread.join(5)


@pytest.fixture(scope="module")
def listening() -> Iterator[Traps]:
    """Set the traps once."""
    with Traps().open() as traps:
        yield traps


@pytest.fixture
def traps(listening: Traps) -> Traps:
    """Return the traps, nobody caught yet."""
    listening.hits.clear()
    return listening


@pytest.fixture(autouse=True)
def dialled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Keep every connection on this machine; return what was dialled, or would have been."""
    tried: list[str] = []

    class Watched(socket.socket):
        def connect(self, address: Any) -> None:
            tried.append(str(address[0]))
            inside = ipaddress.ip_address(str(address[0]).partition("%")[0])
            mapped = getattr(inside, "ipv4_mapped", None) or inside
            if not (mapped.is_loopback or mapped.is_unspecified):
                raise ConnectionRefusedError(111, "the test lets nothing out")
            super().connect(address)

    monkeypatch.setattr(socket, "socket", Watched)
    return tried


def send(
    url: str,
    *,
    networks: Sequence[str] = (),
    look: egress.Lookup = spellings.willing,
    within: float = 5.0,
    headers: Mapping[str, str] | None = None,
) -> egress.Answer:
    """Send one POST by the way out."""

    async def run() -> egress.Answer:
        async with egress.opened(networks, look, ports=PORTS) as way:
            return await way.post(url, headers or {}, b"{}", within)

    return asyncio.run(run())


# Spellings


@pytest.mark.parametrize("url", spellings.urls())
def test_no_spelling_reaches_the_inside(traps: Traps, dialled: list[str], url: str) -> None:
    """Whatever a URL is made to look like: it is refused before anything is resolved or dialled."""

    def look(_host: str, _port: int) -> Sequence[tuple[socket.AddressFamily, str]]:
        raise AssertionError("a refused URL was resolved")

    with pytest.raises(egress.Refused):
        send(url.format(port=traps.port), look=look)
    assert (traps.hits, dialled) == ([], [])


def test_the_traps_work(traps: Traps, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the guard the same URLs fall into the traps by the dozen: the battery tests something."""
    monkeypatch.setattr(addresses, "refusal", lambda _url, _networks, _ports: None)
    caught = 0
    for url in [*spellings.urls(), *(f"http://{name}:{{port}}/" for name, _ in spellings.DNS_TRICKS)]:
        before = len(traps.hits)
        with suppress(egress.Refused, egress.Unreachable, ValueError, TypeError):
            send(url.format(port=traps.port), networks=("0.0.0.0/0", "::/0"))
        caught += len(traps.hits) > before
    assert caught >= 60


@pytest.mark.parametrize("url", spellings.urls())
def test_no_spelling_is_accepted_by_the_resolver_and_the_socket_either(
    traps: Traps, dialled: list[str], monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    """Behind a blind first guard the next two hold alone: nothing inside is dialled."""
    monkeypatch.setattr(addresses, "refusal", lambda _url, _networks, _ports: None)
    with suppress(egress.Refused, egress.Unreachable):
        send(url.format(port=traps.port))
    assert traps.hits == []
    assert all(addresses.allowed(address, ()) for address in dialled)


@pytest.mark.parametrize("url", [url for url in spellings.urls() if url])
def test_an_opened_network_opens_nothing_else(traps: Traps, dialled: list[str], url: str) -> None:
    """With one address opened, all spellings of the others are refused as before."""
    with suppress(egress.Unreachable), pytest.raises(egress.Refused):
        send(url.format(port=traps.port), networks=("127.0.0.3/32", "10.99.0.0/16"))
    assert (traps.hits, dialled) == ([], [])


# Names


@pytest.mark.parametrize(("name", "found"), spellings.DNS_TRICKS)
def test_no_answer_of_dns_leads_inside(traps: Traps, dialled: list[str], name: str, found: tuple[str, ...]) -> None:
    """One address in the answer that may not be reached, and none is dialled; no answer is no address."""
    with pytest.raises((egress.Refused, egress.Unreachable)) as refused:
        send(f"http://{name}:{traps.port}/", networks=("127.0.0.3/32",))
    assert (traps.hits, dialled) == ([], [])
    told = str(refused.value).replace(name, "")
    assert not any(address and address in told for address in found)


def test_a_name_that_changes_its_mind_is_asked_once(traps: Traps, dialled: list[str]) -> None:
    """Rebinding: what was checked is what is dialled, and the next request checks anew."""
    asked: list[str] = []

    def look(host: str, _port: int) -> Sequence[tuple[socket.AddressFamily, str]]:
        asked.append(host)
        return [(socket.AF_INET, "127.0.0.4" if len(asked) == 1 else "127.0.0.1")]

    url = f"http://rebind.example.com:{traps.port}/"
    assert send(url, networks=("127.0.0.4/32",), look=look).status == 200
    assert (traps.hits, dialled, asked) == (["127.0.0.4"], ["127.0.0.4"], ["rebind.example.com"])
    with pytest.raises(egress.Refused):
        send(url, networks=("127.0.0.4/32",), look=look)
    assert traps.hits == ["127.0.0.4"]


def test_names_with_public_addresses_are_dialled(dialled: list[str]) -> None:
    """Nothing is refused that is on the internet; the address is dialled that was looked up."""
    for address in ("8.8.8.8", "93.184.216.34", "2606:4700::1111", "2a00:1450:4001:831::200e"):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        dialled.clear()
        with pytest.raises(egress.Unreachable, match="no connection"):
            send("http://hooks.example.com/", look=lambda _h, _p, a=address, f=family: [(f, a)])
        assert set(dialled) == {address}


@pytest.mark.parametrize(
    ("host", "networks"),
    [
        ("127.0.0.1", ("127.0.0.0/8",)),
        ("127.0.0.2", ("127.0.0.2",)),
        ("127.0.0.1", ("::ffff:127.0.0.0/104",)),
        ("127.0.0.1", ("::ffff:7f00:1",)),
        ("[::ffff:127.0.0.1]", ("127.0.0.0/8",)),
        ("[::ffff:7f00:1]", ("::ffff:127.0.0.1/128",)),
        ("[::1]", ("::1",)),
        ("[0:0:0:0:0:0:0:1]", ("::/127",)),
        ("localhost", ("127.0.0.1/32",)),
        ("LOCALHOST.", ("127.0.0.1/32",)),
        ("inside.example.com", ("10.0.0.0/8", "127.0.0.1/32")),
        ("receiver", ("127.0.0.1/32",)),
        ("receiver.svc.cluster.local", ("127.0.0.1/32",)),
    ],
)
def test_what_the_operator_opened_is_reached(traps: Traps, host: str, networks: tuple[str, ...]) -> None:
    """The control: the same traps, opened by the operator in any spelling, get the request."""
    assert send(f"http://{host}:{traps.port}/", networks=networks).body == b"ok"
    assert len(traps.hits) == 1


@pytest.mark.parametrize("port", [1, 22, 25, 81, 444, 1023])
def test_ports_of_other_services_are_not_dialled(dialled: list[str], port: int) -> None:
    """Neither in an opened network nor outside."""
    for host in ("127.0.0.1", "hooks.example.com"):
        with pytest.raises(egress.Refused, match=f"names port {port}; webhooks may reach 80, 443, 1024-65535"):
            send(f"http://{host}:{port}/", networks=ALL_LOOPBACK)
    assert dialled == []


# What a receiver may answer


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_redirect_leads_inside(traps: Traps, status: int) -> None:
    """A 3xx is the answer: where it points, in whatever spelling, nothing is sent."""
    with receiver() as hooks:
        for target in (f"http://127.0.0.2:{traps.port}/", f"//localhost:{traps.port}/", f"http://[::1]:{traps.port}/"):
            hooks.answer = lambda _, target=target: Reply(status, {"location": target, "refresh": f"0; url={target}"})
            assert send(f"{hooks.url}/", networks=("127.0.0.1/32",)).status == status
        assert [got.path for got in hooks.received] == ["/"] * 3
    assert traps.hits == []


def test_no_proxy_of_the_environment_is_asked(
    traps: Traps, dialled: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Neither for http nor for https, however it is written; nor are passwords taken from a netrc file."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "ws_proxy", "ftp_proxy"):
        for spelled in (name, name.upper()):
            monkeypatch.setenv(spelled, f"http://127.0.0.2:{traps.port}")
    netrc = tmp_path / "netrc"
    netrc.write_text("default login somebody password something\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    with receiver() as hooks:
        assert send(f"{hooks.url}/", networks=("127.0.0.1/32",)).status == 200
        assert "authorization" not in hooks.received[0].headers
    with pytest.raises(egress.Unreachable):
        send("https://hooks.example.com/", look=lambda _h, _p: [(socket.AF_INET, "8.8.8.8")])
    assert traps.hits == []
    assert set(dialled) == {"127.0.0.1", "8.8.8.8"}


@contextmanager
def answering(parts: Callable[[], Iterator[bytes]]) -> Iterator[str]:
    """Run a server that answers with raw bytes, part by part; yields its URL."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with suppress(OSError):
                connection, _ = server.accept()
                with connection, suppress(OSError):
                    connection.recv(65_536)
                    for part in parts():
                        connection.sendall(part)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}/"
    thread.join(10)


def drip() -> Iterator[bytes]:
    """Yield the status line, byte by byte and never to its end."""
    while True:
        yield b"H"
        time.sleep(0.05)


def slow_headers() -> Iterator[bytes]:
    """Yield headers, slowly and for ever."""
    yield b"HTTP/1.1 200 OK\r\n"
    while True:
        yield b"x: y\r\n"
        time.sleep(0.05)


def endless_headers() -> Iterator[bytes]:
    """Yield headers as fast as they are taken."""
    yield b"HTTP/1.1 200 OK\r\n"
    while True:
        yield b"x: y\r\n" * 1000


def endless_line() -> Iterator[bytes]:
    """Yield one header without an end."""
    yield b"HTTP/1.1 200 OK\r\nx: "
    while True:
        yield b"y" * 10_000


def endless_reason() -> Iterator[bytes]:
    """Yield a status line without an end."""
    yield b"HTTP/1.1 200 "
    while True:
        yield b"y" * 10_000


def endless_informing() -> Iterator[bytes]:
    """Yield one 103 after the other."""
    while True:
        yield b"HTTP/1.1 103 Early Hints\r\nx: y\r\n\r\n" * 100


def endless_chunk() -> Iterator[bytes]:
    """Yield a chunk's extension without an end."""
    yield b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5;"
    while True:
        yield b"y" * 10_000


@pytest.mark.parametrize(
    "parts", [drip, slow_headers, endless_headers, endless_line, endless_reason, endless_informing, endless_chunk]
)
def test_an_answer_without_an_end_is_cut(parts: Callable[[], Iterator[bytes]]) -> None:
    """Within the time of a try, and without filling the memory."""
    started = time.monotonic()
    grown = _resident()
    with answering(parts) as url, suppress(egress.Unreachable):
        assert len(send(url, networks=("127.0.0.1/32",), within=1.0).body) <= 65_536
    assert time.monotonic() - started < 20
    assert _resident() - grown < 200_000_000


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def test_a_bomb_is_not_unpacked() -> None:
    """A compressed body is taken as it is, and counted as it is."""

    def parts() -> Iterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 20\r\n\r\n" + b"\x1f\x8b" + b"\0" * 18

    with answering(parts) as url:
        assert len(send(url, networks=("127.0.0.1/32",)).body) == 20


# TLS


class Authority:
    """A certificate authority that nobody knows, and what it signs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "nobody's authority")])
        self.certificate = self._signed(self._name, self._key, x509.BasicConstraints(ca=True, path_length=None))

    def _signed(
        self, name: x509.Name, key: ec.EllipticCurvePrivateKey, *extensions: x509.ExtensionType
    ) -> x509.Certificate:
        now = dt.datetime.now(dt.UTC)
        made = x509.CertificateBuilder().subject_name(name).issuer_name(self._name).public_key(key.public_key())
        made = made.serial_number(x509.random_serial_number())
        made = made.not_valid_before(now - dt.timedelta(hours=1))
        made = made.not_valid_after(now + dt.timedelta(hours=1))
        for extension in extensions:
            made = made.add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
        return made.sign(self._key, hashes.SHA256())

    def trusting(self) -> ssl.SSLContext:
        """Return a client's context that knows this authority."""
        context = ssl.create_default_context()
        context.load_verify_locations(cadata=self.certificate.public_bytes(serialization.Encoding.PEM).decode())
        return context

    def serving(self, *names: str) -> ssl.SSLContext:
        """Return a server's context with a certificate for these names or addresses."""
        key = ec.generate_private_key(ec.SECP256R1())
        found = [_general(name) for name in names]
        made = self._signed(x509.Name([]), key, x509.SubjectAlternativeName(found))
        path = self._folder / f"{len(list(self._folder.iterdir()))}.pem"
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        path.write_bytes(made.public_bytes(serialization.Encoding.PEM) + private)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path)
        return context


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


@pytest.fixture
def authority(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Authority:
    """Return an authority that the way out trusts."""
    made = Authority(tmp_path)
    monkeypatch.setattr("aiohttp.connector._SSL_CONTEXT_VERIFIED", made.trusting())
    return made


@contextmanager
def secure(context: ssl.SSLContext) -> Iterator[tuple[int, list[str]]]:
    """Run a receiver behind TLS; yields its port and the names that clients asked for."""
    asked: list[str] = []
    context.sni_callback = lambda _socket, name, _context: asked.append(str(name))
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    with suppress(OSError), context.wrap_socket(connection, server_side=True) as wrapped:
                        wrapped.recv(65_536)
                        wrapped.sendall(OK)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1], asked
        _end(thread, server)


def loopback(_host: str, _port: int) -> Sequence[tuple[socket.AddressFamily, str]]:
    """Resolve every name to this machine."""
    return [(socket.AF_INET, "127.0.0.1")]


def test_tls_is_with_the_name_and_the_checked_address(authority: Authority, dialled: list[str]) -> None:
    """The address that was checked is dialled; the handshake and the certificate are the name's."""
    with secure(authority.serving("hooks.example.com")) as (port, asked):
        answer = send(f"https://hooks.example.com:{port}/", networks=("127.0.0.1/32",), look=loopback)
    assert (answer.status, asked, dialled) == (200, ["hooks.example.com"], ["127.0.0.1"])


@pytest.mark.parametrize(
    ("names", "host"),
    [
        (("other.example.com",), "hooks.example.com"),
        (("127.0.0.1",), "hooks.example.com"),
        (("*.example.com",), "a.hooks.example.com"),
        (("hooks.example.com",), "127.0.0.1"),
    ],
)
def test_a_certificate_of_another_name_is_refused(authority: Authority, names: tuple[str, ...], host: str) -> None:
    """Also one for the very address that is dialled: the URL's name decides."""
    with secure(authority.serving(*names)) as (port, _), pytest.raises(egress.Unreachable, match="certificate"):
        send(f"https://{host}:{port}/", networks=("127.0.0.1/32",), look=loopback)


def test_an_authority_that_nobody_knows_is_refused(tmp_path: Path) -> None:
    """A certificate that the system does not trust delivers nothing."""
    context = Authority(tmp_path).serving("hooks.example.com")
    with secure(context) as (port, _), pytest.raises(egress.Unreachable, match="certificate"):
        send(f"https://hooks.example.com:{port}/", networks=("127.0.0.1/32",), look=loopback)


@pytest.fixture
def hooks() -> Iterator[Receiver]:
    """Run a receiver."""
    with receiver() as running:
        yield running


def test_what_python_and_the_sender_read_in_a_url_is_the_same(hooks: Receiver) -> None:
    """The Host header that arrives names the host that was judged."""
    for host in ("A.Example.COM", "a.example.com.", "xn--bcher-kva.example", "under_score.example.com"):
        send(f"http://{host}:{hooks.port}/", networks=("127.0.0.1/32",), look=loopback)
        assert hooks.received[-1].headers["host"].lower() == f"{host.lower().removesuffix('.')}:{hooks.port}"
