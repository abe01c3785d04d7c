"""What engines emit, on its way through a real Redis: in order, none lost, none twice, and only under a lease."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from models import streams
from stoker.settings import load
from tasks import tokens as tokens_module
from tasks.tokens import Tokens
from tests import servers
from tests.tasks.inprocess import until

JOB = "job_1"


def always() -> bool:
    """Hold the lease."""
    return True


@pytest.fixture
def opened() -> Iterator[Callable[[str], Tokens]]:
    """Return a function that opens the streams of a process; at the end their threads end."""
    made: list[Tokens] = []

    def open_(redis_url: str) -> Tokens:
        made.append(Tokens(load(engine="fake", redis_url=redis_url)))
        return made[-1]

    yield open_
    for tokens in made:
        tokens.stop(5.0)
        assert tokens._thread is None or not tokens._thread.is_alive()


@pytest.fixture
def tokens(opened: Callable[[str], Tokens], redis_url: str) -> Tokens:
    """Return the streams of a process."""
    return opened(redis_url)


@pytest.fixture
def store(redis_url: str) -> Iterator[Any]:
    """Return a connection to Redis."""
    with redis.Redis.from_url(redis_url) as connection:
        yield connection


class Heard:
    """Listens for pieces as a web server does."""

    def __init__(self, url: str) -> None:
        self.pieces: list[streams.Piece] = []
        self.messages = 0
        self._redis = redis.Redis.from_url(url)
        self._channel: Any = self._redis.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
        self._channel.subscribe(streams.TOKENS)
        assert self._channel.get_message(timeout=30) is None

    def events(self) -> list[tuple[int, int, str]]:
        """Return (attempt, number, event) of all that was published up to now."""
        while (message := self._channel.get_message(timeout=0.5)) is not None:
            self.messages += 1
            self.pieces += streams.decode(message["data"])
        return [
            (piece.attempt, number, event)
            for piece in self.pieces
            for number, event in enumerate(piece.events, piece.first)
        ]

    def close(self) -> None:
        """Close the connections."""
        self._channel.close()
        self._redis.close()


@pytest.fixture
def heard(redis_url: str) -> Iterator[Heard]:
    """Return one that listens."""
    made = Heard(redis_url)
    yield made
    made.close()


def recorded(store: Any, job: str = JOB) -> list[tuple[int, int, str]]:
    """Return (attempt, number, event) of a job's stream, each number once."""
    found = {}
    for _, fields in store.xrange(streams.key(job)):
        piece = streams.decode_one(fields[streams.FIELD])
        assert piece is not None
        found.update({(piece.attempt, n): event for n, event in enumerate(piece.events, piece.first)})
    return [(attempt, n, event) for (attempt, n), event in sorted(found.items())]


def whole(store: Any, job: str = JOB) -> bool:
    """Tell whether the end of a job's stream was written."""
    return bool(recorded(store, job)) and recorded(store, job)[-1][2] == streams.END


def numbered(words: list[str], attempt: int = 1) -> list[tuple[int, int, str]]:
    """Return words as the events of an attempt."""
    return [(attempt, n, word) for n, word in enumerate(words, 1)]


def test_events_arrive_in_order(tokens: Tokens, store: Any, heard: Heard) -> None:
    """Published and recorded alike, the end last, and the stream is kept for a while."""
    words = [f"word {n} ☃" for n in range(500)]
    stream = tokens.open(JOB, 1, always)
    for word in words:
        stream.emit(word)
    stream.end()
    until(lambda: whole(store))
    assert recorded(store) == numbered([*words, ""])
    until(lambda: len(heard.events()) > len(words))  # published behind the record
    assert heard.events() == numbered([*words, ""])
    assert 0 < store.ttl(streams.key(JOB)) <= 600


def test_events_travel_together(tokens: Tokens, store: Any, heard: Heard) -> None:
    """A thousand events of ten streams, emitted at once, are far fewer messages; each stream keeps its own order."""
    opened = {f"job_{n}": tokens.open(f"job_{n}", 1, always) for n in range(10)}
    for n in range(100):
        for stream in opened.values():
            stream.emit(str(n))
    for stream in opened.values():
        stream.end()
    until(lambda: all(whole(store, job) for job in opened))
    for job in opened:
        assert recorded(store, job) == numbered([*map(str, range(100)), ""])
    until(lambda: len(heard.events()) == 1010)
    assert heard.messages < 200


def test_the_first_event_does_not_wait(tokens: Tokens, heard: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does the end: only what is between waits for company."""
    monkeypatch.setattr(tokens_module, "EVERY", 3600.0)
    first, second = (tokens.open(f"job_{n}", 1, always) for n in range(2))
    first.emit("a")
    until(lambda: len(heard.events()) == 1)
    second.emit("a")
    until(lambda: len(heard.events()) == 2)
    first.emit("b")
    assert len(heard.events()) == 2
    first.end()
    until(lambda: len(heard.events()) == 4)


def test_an_old_attempt_is_refused(tokens: Tokens, store: Any, redis_url: str) -> None:
    """Once a later attempt has written, an earlier one that wakes up adds nothing, and holds nobody up."""
    old, new = tokens.open(JOB, 1, always), tokens.open(JOB, 2, always)
    old.emit("old")
    until(lambda: recorded(store))
    new.emit("new")
    until(lambda: len(recorded(store)) == 2)
    old.emit("older")
    old.end()
    other = tokens.open("job_2", 1, always)
    other.emit("other")
    other.end()
    until(lambda: whole(store, "job_2"))
    new.end()
    until(lambda: whole(store))
    assert recorded(store) == [(1, 1, "old"), (2, 1, "new"), (2, 2, "")]
    until(lambda: not tokens._waiting)  # Redis has it before its answer is here


@pytest.mark.parametrize("forgets", [False, True])
def test_redis_goes_away_and_comes_back(opened: Callable[[str], Tokens], forgets: bool) -> None:
    """What was emitted meanwhile is published afterwards: nothing is lost, and nothing twice in the record."""
    with servers.redis(options=("--appendonly", "no" if forgets else "yes")) as server:
        tokens = opened(server.url)
        stream = tokens.open(JOB, 1, always)
        for n in range(10):
            stream.emit(f"before {n}")
        until(lambda: stream.written == 10)
        server.stop()
        for n in range(10):
            stream.emit(f"between {n}")
        until(lambda: not tokens._flush([(stream, tokens._due()[0][1])]))
        server.start()
        with redis.Redis.from_url(server.url) as store:
            stream.end()
            until(lambda: whole(store))
            before = [] if forgets else [(1, 1 + n, f"before {n}") for n in range(10)]
            between = [(1, 11 + n, f"between {n}") for n in range(10)]
            assert recorded(store) == [*before, *between, (1, 21, "")]
            assert 0 < int(store.ttl(streams.key(JOB))) <= 600
        until(lambda: not tokens._bytes)


def test_a_stream_that_redis_forgot_is_not_kept_for_ever(
    tokens: Tokens, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes on in an empty Redis, and even if its worker dies now the rest of it goes in time."""
    monkeypatch.setattr(tokens_module, "KEEP_AGAIN", 0.05)
    stream = tokens.open(JOB, 1, always)
    stream.emit("a")
    until(lambda: recorded(store))
    store.flushall()

    def kept() -> bool:
        stream.emit("more")
        return bool(store.ttl(streams.key(JOB)) > 0)

    until(kept)
    stream.end()
    until(lambda: not tokens._waiting)


def test_nothing_is_published_without_a_lease(tokens: Tokens, store: Any) -> None:
    """What an attempt emits while its lease is in doubt waits, and the streams of others do not."""
    holds = threading.Event()
    doubtful, sure = tokens.open(JOB, 1, holds.is_set), tokens.open("job_2", 1, always)
    doubtful.emit("a")
    for _ in range(3):
        sure.emit("a")
    sure.end()
    until(lambda: whole(store, "job_2"))
    assert recorded(store) == []
    holds.set()
    until(lambda: recorded(store) == numbered(["a"]))


def test_a_lost_lease_leaves_nothing_behind(tokens: Tokens, store: Any) -> None:
    """A stream that had its end when its batch was lost is forgotten, instead of being tried for ever."""
    stream = tokens.open(JOB, 1, lambda: False)
    stream.emit("a")
    stream.end()
    stream.close()
    until(lambda: not tokens._waiting)
    assert tokens._bytes == 0
    assert recorded(store) == []


def test_closing_drops_what_is_not_ended(tokens: Tokens, store: Any) -> None:
    """An attempt that was aborted says no more; one that came to its end still goes out."""
    holds = threading.Event()
    aborted, done = tokens.open(JOB, 1, holds.is_set), tokens.open("job_2", 1, holds.is_set)
    for stream in (aborted, done):
        stream.emit("a")
    done.end()
    holds.set()
    done.close()
    aborted.close()
    aborted.emit("too late")
    aborted.end()
    until(lambda: whole(store, "job_2"))
    until(lambda: not tokens._waiting)
    assert streams.END not in [event for *_, event in recorded(store)]
    assert "too late" not in [event for *_, event in recorded(store)]
    assert tokens._bytes == 0


def test_too_much_is_given_up(
    opened: Callable[[str], Tokens], redis_url: str, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While Redis is away memory is bounded: streams are given up, later ones are published again."""
    monkeypatch.setattr(tokens_module, "MOST_BYTES", 10_000)
    tokens = opened(redis_url)
    given_up, holds = tokens.open(JOB, 1, lambda: False), tokens.open("job_2", 1, lambda: False)
    for _ in range(30):
        given_up.emit("x" * 400)
    assert tokens._bytes <= 10_000
    assert given_up.ended
    given_up.end()
    holds.emit("x" * 20_000)
    assert holds.ended
    later = tokens.open("job_3", 1, always)
    later.emit("a")
    later.end()
    until(lambda: whole(store, "job_3"))
    assert recorded(store) == []


def test_a_backlog_is_written_bit_by_bit(tokens: Tokens, store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an outage no message is larger than what Redis surely takes in time, and the order stays."""
    monkeypatch.setattr(tokens_module, "MOST_AT_ONCE", 1000)
    holds = threading.Event()
    opened = [tokens.open(f"job_{n}", 1, holds.is_set) for n in range(3)]
    words = [f"{n:0100d}" for n in range(50)]
    for stream in opened:
        for word in words:
            stream.emit(word)
        stream.emit("y" * 3000)
        stream.end()
    holds.set()
    for n in range(3):
        until(lambda n=n: whole(store, f"job_{n}"))  # type: ignore[misc]  # binds the loop's variable
        assert recorded(store, f"job_{n}") == numbered([*words, "y" * 3000, ""])
        assert store.xlen(streams.key(f"job_{n}")) > 5


@pytest.mark.parametrize("event", ["", "half a character: \ud800", "\x00", '{"a":\n1}'])
def test_no_event_ends_the_thread(tokens: Tokens, store: Any, event: str) -> None:
    """Whatever an engine emits, the streams go on; an empty event is none."""
    stream = tokens.open(JOB, 1, always)
    stream.emit(event)
    stream.emit("next")
    stream.end()
    until(lambda: whole(store))
    assert [text for *_, text in recorded(store)][-2:] == ["next", ""]
    assert len(recorded(store)) == (2 if event == "" else 3)


def test_emitting_never_waits(opened: Callable[[str], Tokens]) -> None:
    """A Redis that is not there costs the engine nothing."""
    tokens = opened(f"redis://127.0.0.1:{servers.free_port()}/0")
    stream = tokens.open(JOB, 1, always)
    emit: Callable[[str], None] = stream.emit
    done = threading.Event()

    def work() -> None:
        for n in range(1000):
            emit(str(n))
        done.set()

    threading.Thread(target=work, daemon=True).start()
    assert done.wait(30)
