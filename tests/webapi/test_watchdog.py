"""The watchdog: ends reads that take too long altogether."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from webapi.watchdog import Watchdog

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """Return two ends of a connection."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def test_a_read_ends_at_its_time(pair: Pair) -> None:
    """A blocked read gets an end of file; what is written still arrives."""
    ours, theirs = pair
    started = time.monotonic()
    with Watchdog().watching(ours, 0.2):
        assert ours.recv(10) == b""
    assert time.monotonic() - started >= 0.2
    ours.sendall(b"408")
    assert theirs.recv(10) == b"408"


def test_who_is_in_time_is_left_alone(pair: Pair) -> None:
    """After the watched read the connection can be read as long as it likes, and nothing is kept of it."""
    ours, theirs = pair
    watchdog = Watchdog()
    theirs.sendall(b"a")
    with watchdog.watching(ours, 0.1):
        assert ours.recv(10) == b"a"
    assert watchdog._due == {}
    time.sleep(1.2)
    theirs.sendall(b"b")
    assert ours.recv(10) == b"b"


def watchdogs() -> int:
    """Return how many threads are watchdogs: those of other tests end when they like."""
    return sum(thread.name == "watchdog" for thread in threading.enumerate())


def test_one_thread_watches_all(pair: Pair) -> None:
    """It is started with the first connection and stays; a closed connection does it no harm."""
    ours, theirs = pair
    watchdog = Watchdog()
    threads = watchdogs()
    gone = socket.socket()
    with watchdog.watching(gone, 0), watchdog.watching(ours, 0.5), watchdog.watching(theirs, 60):
        gone.close()
        assert watchdogs() == threads + 1
        assert ours.recv(10) == b""


def test_it_works_in_a_child_process(pair: Pair) -> None:
    """After a fork the child has a thread of its own."""
    ours, _ = pair
    watchdog = Watchdog()
    with watchdog.watching(ours, 60):
        child = os.fork()
        if child == 0:
            mine, _other = socket.socketpair()
            mine.settimeout(60)
            with watchdog.watching(mine, 0.1):
                os._exit(0 if mine.recv(10) == b"" else 1)
        assert os.waitpid(child, 0)[1] == 0


def test_no_thread_to_be_had_is_no_error(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bodies are read without a watchdog then, and the next one tries again."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    ours, theirs = pair
    watchdog = Watchdog()
    theirs.sendall(b"a")
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        with watchdog.watching(ours, 0.1):
            assert ours.recv(10) == b"a"
    with watchdog.watching(ours, 0.1):
        assert ours.recv(10) == b""
