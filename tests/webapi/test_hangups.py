"""Clients that hang up while they wait, on real sockets."""

from __future__ import annotations

import select
import socket
import struct
import threading
from collections.abc import Iterator

import pytest

from tests.tasks.inprocess import until
from webapi.hangups import Hangups, can_write

Pair = tuple[socket.socket, socket.socket]


def connect() -> Pair:
    """Return both ends of a connection: the server's and the client's."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    return server, client


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Return a connection."""
    server, client = connect()
    yield server, client
    server.close()
    client.close()


@pytest.mark.parametrize("how", ["close", "half", "reset"])
def test_a_client_that_leaves_is_noticed(pair: Pair, how: str) -> None:
    """Whether it closes, closes its side only, or resets the connection."""
    server, client = pair
    gone = threading.Event()
    with Hangups().watching(server, gone.set):
        assert not gone.wait(0.1)
        if how == "half":
            client.shutdown(socket.SHUT_WR)
        else:
            if how == "reset":
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
        assert gone.wait(60)


def test_one_that_had_left_before_is_noticed(pair: Pair) -> None:
    """It may go while its request is read."""
    server, client = pair
    client.close()
    gone = threading.Event()
    with Hangups().watching(server, gone.set):
        assert gone.wait(60)


def test_one_that_only_sends_more_is_not_gone(pair: Pair) -> None:
    """The next request of a kept-alive connection may come early."""
    server, client = pair
    gone = threading.Event()
    with Hangups().watching(server, gone.set):
        client.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert not gone.wait(0.3)


def test_nobody_is_told_afterwards(pair: Pair) -> None:
    """A request that has its answer is of no interest any more; the next on the connection is watched again."""
    server, client = pair
    hangups = Hangups()
    first, second = threading.Event(), threading.Event()
    with hangups.watching(server, first.set):
        pass
    with hangups.watching(server, second.set):
        client.close()
        assert second.wait(60)
    assert not first.is_set()
    assert hangups._watched == {}


def test_a_late_sign_is_not_taken_for_another_clients(pair: Pair) -> None:
    """A number that was one connection's belongs to the next a moment later: that one is not gone."""
    server, client = pair
    hangups = Hangups()
    gone = threading.Event()
    with hangups.watching(server, gone.set):
        # What the thread does with a sign of the connection that had this number before.
        assert hangups._gone(server.fileno()) is None
        assert not gone.is_set()
        client.close()
        assert gone.wait(60)


def test_a_late_sign_of_a_connection_that_is_closed_is_nobodys(pair: Pair) -> None:
    """Its request has ended between the sign and the look."""
    server, _ = pair
    hangups = Hangups()
    number = server.fileno()
    with hangups.watching(server, lambda: None):
        server.close()
        assert hangups._gone(number) is None
    assert hangups._gone(number) is None


def test_a_thousand_leave_at_once() -> None:
    """Each is noticed once, and nothing is left of them."""
    hangups = Hangups()
    pairs = [connect() for _ in range(300)]
    counts = [0] * len(pairs)
    watched = []
    for n, (server, _) in enumerate(pairs):

        def note(n: int = n) -> None:
            counts[n] += 1

        one = hangups.watching(server, note)
        one.__enter__()
        watched.append(one)
    for _, client in pairs[:200]:
        client.close()
    until(lambda: counts == [1] * 200 + [0] * 100, 60)
    for one, (server, client) in zip(watched, pairs, strict=True):
        one.__exit__(None, None, None)
        server.close()
        client.close()
    assert hangups._watched == {}


def test_without_a_connection_nothing_is_watched() -> None:
    """As in tests, or behind another server."""
    with Hangups().watching(None, lambda: None):
        pass
    assert can_write(None, 0.0)


def test_without_a_thread_requests_go_on(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """They only run to their end when nobody reads it; the next tries again."""
    hangups = Hangups()
    real = threading.Thread.start

    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with hangups.watching(pair[0], lambda: None):
        pass
    monkeypatch.setattr(threading.Thread, "start", real)
    gone = threading.Event()
    with hangups.watching(pair[0], gone.set):
        pair[1].close()
        assert gone.wait(60)


def fill(server: socket.socket) -> None:
    """Write until the connection takes no more."""
    server.setblocking(False)
    while select.select([], [server], [], 0.2)[1]:
        server.send(b"x" * 65536)


def test_who_reads_can_be_written_to(pair: Pair) -> None:
    """Also one who reads only after a while."""
    server, client = pair
    assert can_write(server, 0.1)
    fill(server)
    assert not can_write(server, 0.1)
    while not can_write(server, 0.05):
        client.recv(1_000_000)


def test_who_is_gone_cannot_be_written_to(pair: Pair) -> None:
    """Though the connection would still take it."""
    server, client = pair
    client.close()
    until(lambda: not can_write(server, 1.0))  # the end may still be on its way
