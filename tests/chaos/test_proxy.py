"""The fault proxy does what it says: otherwise a run of chaos shows nothing."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.chaos.proxy import Proxy
from tests.tasks.inprocess import until


@pytest.fixture
def echo() -> Iterator[int]:
    """Return the port of a server that sends back what it gets."""
    server = socket.create_server(("127.0.0.1", 0))
    heard: list[bytes] = []

    def serve(link: socket.socket) -> None:
        with link, suppress(ConnectionError):
            while data := link.recv(100):
                heard.append(data)
                link.sendall(data)

    def accept() -> None:
        while True:
            try:
                link, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(link,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    yield server.getsockname()[1]
    server.close()


@pytest.fixture
def proxy(echo: int) -> Iterator[Proxy]:
    """Return a proxy before it."""
    with Proxy(echo) as made:
        yield made


def connected(proxy: Proxy) -> socket.socket:
    """Return a connection through the proxy that has been used."""
    link = socket.create_connection(("127.0.0.1", proxy.port), timeout=10)
    try:
        link.sendall(b"first")
        assert link.recv(100) == b"first"
    except OSError:
        link.close()
        raise
    return link


def silent(link: socket.socket, seconds: float = 0.3) -> bool:
    """Tell whether nothing comes, not even the end."""
    link.settimeout(seconds)
    try:
        link.recv(100)
    except TimeoutError:
        return True
    return False


def test_it_relays(proxy: Proxy) -> None:
    """What goes in comes out, both ways, and so does the end."""
    with connected(proxy) as link:
        link.shutdown(socket.SHUT_WR)
        assert link.recv(100) == b""


def test_what_is_held_comes_later(proxy: Proxy) -> None:
    """A frozen network loses nothing."""
    with connected(proxy) as link:
        proxy.be("hold")
        link.sendall(b"second")
        assert silent(link)
        proxy.heal()
        link.settimeout(10)
        assert link.recv(100) == b"second"


def test_what_is_half_open_stays_so(proxy: Proxy) -> None:
    """A connection whose other side forgot it hears nothing for ever; a new one works once it is over."""
    with connected(proxy) as link:
        proxy.be("half_open")
        link.sendall(b"second")
        assert silent(link)
        proxy.heal()
        link.sendall(b"third")
        assert silent(link)
        connected(proxy).close()


def test_an_answer_is_lost(proxy: Proxy) -> None:
    """The request goes through, and the connection is cut where its answer would come."""
    with connected(proxy) as link:
        proxy.be("drop_answers")
        link.sendall(b"second")
        with pytest.raises(ConnectionResetError):
            link.recv(100)


def test_connections_are_cut(proxy: Proxy) -> None:
    """A reset reaches whoever is connected, and nobody later; refused are new ones as well."""
    with connected(proxy) as link:
        proxy.reset()
        with pytest.raises(ConnectionResetError):
            link.recv(100)
    connected(proxy).close()
    proxy.be("refuse")
    with pytest.raises(OSError, match=r"reset|refused"):
        connected(proxy)
    until(lambda: proxy.connections() == 0)


def test_it_is_slow(proxy: Proxy) -> None:
    """Every block takes its time."""
    with connected(proxy) as link:
        proxy.be("delay", 0.3)
        started = time.monotonic()
        link.sendall(b"second")
        link.settimeout(30)
        assert link.recv(100) == b"second"
        assert time.monotonic() - started >= 0.3
