"""What one client gets of one stream: in order, none lost, none twice, however its pieces come."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from typing import Any, cast

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from models import streams
from models.streams import EventId, Piece
from stoker.settings import load
from tests import servers
from webapi import following
from webapi.following import Follower, Lost, Recorded, Restart, Step, Token
from webapi.waiters import Waiter, Waiters

JOB = "job_1"


class Hub:
    """Stands for the hub: it says how long nothing was heard."""

    deaf = 0.0

    def deaf_for(self) -> float:
        """Return what the test says."""
        return self.deaf


class Record:
    """What Redis has of a job, a page at a time; `away` says that it does not answer."""

    def __init__(self, pieces: Sequence[Piece] = (), page: int = 500) -> None:
        self.pieces = list(pieces)
        self.page = page
        self.away = False

    def after(self, job_id: str, position: EventId) -> tuple[list[Piece], bool]:
        """Return as Redis does."""
        if self.away:
            raise redis.ConnectionError("away")
        assert job_id == JOB
        found = [piece for piece in self.pieces if (piece.attempt, piece.last) > position]
        return found[: self.page], len(found) >= self.page


def follower(record: Record, waiter: Waiter, after: EventId | None = None) -> Follower:
    """Follow a record."""
    return Follower(cast("Waiters", Hub()), cast("Recorded", record), waiter, JOB, after)


def cut(words: Sequence[str], sizes: Sequence[int], attempt: int = 1) -> list[Piece]:
    """Return words in pieces of these sizes, the rest in the last one."""
    pieces, first = [], 1
    for size in [*sizes, len(words)]:
        if events := list(words[first - 1 : first - 1 + size]):
            pieces.append(Piece(JOB, attempt, first, events))
            first += len(events)
    return pieces


def drained(one: Follower, waiter: Waiter, *, look: bool = True) -> list[Step]:
    """Take until nothing more comes."""
    steps = one.take(look=look)
    while more := one.take() or (one.take() if waiter.missed else []):
        steps += more
    return steps


def texts(steps: Sequence[Step]) -> list[str]:
    """Return the events in the steps, which are all tokens."""
    assert all(isinstance(step, Token) for step in steps), steps
    return [step.event for step in steps if isinstance(step, Token)]


WORDS = [f"w{n}" for n in range(40)]


@given(
    sizes=st.lists(st.integers(1, 9), max_size=20),
    heard=st.lists(st.one_of(st.integers(0, 40), st.just("take"), st.just("look")), max_size=60),
    page=st.integers(1, 7),
    known=st.integers(0, 40),
)
def test_every_token_once_and_in_order(sizes: list[int], heard: list[int | str], page: int, known: int) -> None:
    """Pieces in any order, twice or never heard, looked up in pages of any size, by a client that has some of them."""
    pieces = cut([*WORDS, streams.END], sizes)
    record, waiter = Record(pieces, page), Waiter(tokens=True)
    one = follower(record, waiter, EventId(1, known) if known else None)
    steps: list[Step] = []
    for what in heard:
        if isinstance(what, int):
            waiter.hear(pieces[what % len(pieces)])
        else:
            steps += one.take(look=what == "look")
    steps += drained(one, waiter)
    assert texts(steps) == WORDS[known:]
    assert [step.id for step in steps if isinstance(step, Token)] == [
        EventId(1, n) for n in range(known + 1, len(WORDS) + 1)
    ]
    assert one.whole


@given(
    sizes=st.lists(st.integers(1, 9), max_size=20),
    missing=st.sets(st.integers(0, 20)),
    forgotten=st.sets(st.integers(0, 20)),
    away=st.booleans(),
)
def test_what_is_lost_is_said(sizes: list[int], missing: set[int], forgotten: set[int], away: bool) -> None:
    """Where pieces were neither heard nor recorded there is a `Lost`, never a silent gap, and nothing twice."""
    pieces = cut([*WORDS, streams.END], sizes)
    record, waiter = Record(), Waiter(tokens=True)
    record.away = away
    one = follower(record, waiter)
    steps: list[Step] = []
    for n, piece in enumerate(pieces):
        if n not in forgotten:
            record.pieces.append(piece)
        if n not in missing:
            waiter.hear(piece)
            steps += one.take()
    record.away = False
    steps += drained(one, waiter)
    last, lost = 0, False
    for step in steps:
        if isinstance(step, Token):
            assert step.id.seq == last + 1 or (step.id.seq > last and lost), steps
            last, lost = step.id.seq, False
        else:
            assert isinstance(step, Lost)
            lost = True
    # What is heard behind a gap while Redis is away is not kept: it is read there afterwards.
    if not (forgotten if away and missing else missing & forgotten):
        assert not any(isinstance(step, Lost) for step in steps)
        assert texts(steps) == WORDS


@given(
    first=st.integers(0, 20),
    order=st.permutations(range(12)),
    page=st.integers(1, 4),
    seen=st.booleans(),
)
def test_a_later_attempt_begins_anew(first: int, order: list[int], page: int, seen: bool) -> None:
    """Behind `Restart` come all tokens of it, and nothing of an earlier one any more."""
    old = cut(WORDS[:first], [3] * 7)
    new = cut([*WORDS, streams.END], [7] * 5, attempt=2)
    record, waiter = Record([*old, *new], page), Waiter(tokens=True)
    one = follower(record, waiter)
    steps: list[Step] = []
    if seen:
        for piece in old:
            waiter.hear(piece)
        steps += one.take()
    pieces = [*old, *new]
    for n in order:
        waiter.hear(pieces[n % len(pieces)])
    steps += drained(one, waiter)
    restarts = [n for n, step in enumerate(steps) if isinstance(step, Restart)]
    assert len(restarts) <= 1
    rest = steps[restarts[0] + 1 :] if restarts else steps
    assert texts(rest) == WORDS
    if seen and first:
        assert restarts
    assert one.whole


def test_a_late_client_of_a_long_stream_misses_nothing() -> None:
    """Thousands of pieces are read a page at a time, while new ones come in."""
    words = [str(n) for n in range(5000)]
    pieces = cut(words, [1] * 5000)
    record, waiter = Record(pieces), Waiter(tokens=True)
    one = follower(record, waiter)
    steps = one.take(look=True)
    for n in range(5000, 5100):
        record.pieces.append(Piece(JOB, 1, n + 1, [str(n)]))
        waiter.hear(record.pieces[-1])
        steps += one.take()
    assert texts(steps + drained(one, waiter, look=False)) == [str(n) for n in range(5100)]


def test_a_client_that_does_not_read_costs_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is too much to keep is dropped, and read from Redis when the client reads again."""
    monkeypatch.setattr("webapi.waiters.MOST_UNREAD", 1000)
    words = [str(n) * 100 for n in range(100)]
    pieces = cut(words, [1] * 100)
    record, waiter = Record(pieces), Waiter(tokens=True)
    one = follower(record, waiter)
    for piece in pieces:
        waiter.hear(piece)
    assert sum(len(event) for piece in waiter.pieces for event in piece.events) <= 1000
    assert texts(drained(one, waiter, look=False)) == words


def test_redis_may_be_away_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gap waits for it, for a while; then the stream is lost, and says so."""
    record, waiter = Record(cut(WORDS, [5] * 8)), Waiter(tokens=True)
    one = follower(record, waiter)
    waiter.hear(record.pieces[0])
    record.away = True
    assert len(texts(one.take())) == 5
    waiter.hear(record.pieces[3])
    assert one.take() == []
    assert waiter.missed
    record.away = False
    assert texts(one.take()) == WORDS[5:]
    record.away = True
    monkeypatch.setattr(following, "PATIENCE", 0.0)
    one.take(look=True)
    (lost,) = one.take(look=True)
    assert isinstance(lost, Lost)


def test_a_deaf_hub_loses_the_stream() -> None:
    """Only after a while."""
    hub = Hub()
    one = Follower(cast("Waiters", hub), cast("Recorded", Record()), Waiter(tokens=True), JOB)
    assert one.deaf() is None
    hub.deaf = following.PATIENCE + 1
    assert isinstance(one.deaf(), Lost)


def test_a_redis_that_the_hub_knows_to_be_away_is_not_asked() -> None:
    """What was heard is given out; what is missing is lost at once: a thousand who each tried would take minutes."""
    hub, record, waiter = Hub(), Record(cut(WORDS, [2, 3, 1])), Waiter(tokens=True)
    one = Follower(cast("Waiters", hub), cast("Recorded", record), waiter, JOB)
    waiter.hear(record.pieces[0])
    waiter.hear(record.pieces[2])
    hub.deaf = following.PATIENCE + 1
    *heard, lost = one.take()
    assert texts(heard) == WORDS[:2]
    assert isinstance(lost, Lost)


@pytest.fixture
def store(redis_url: str) -> Iterator[Any]:
    """Return a connection to Redis."""
    with redis.Redis.from_url(redis_url) as connection:
        yield connection


def test_the_record_is_read_from_redis(store: Any, redis_url: str) -> None:
    """Behind a position, a page at a time; what others wrote there is passed over."""
    recorded = Recorded(load(engine="fake", redis_url=redis_url))
    assert recorded.after(JOB, streams.START) == ([], False)
    for n in range(1, 700):
        piece = Piece(JOB, 1, n, [str(n)])
        store.xadd(streams.key(JOB), {streams.FIELD: streams.encode_one(piece)}, id=f"1-{n}")
    store.xadd(streams.key(JOB), {"other": "x"}, id="1-700")
    store.xadd(streams.key(JOB), {streams.FIELD: b"\xc1"}, id="1-701")
    pieces, more = recorded.after(JOB, EventId(1, 3))
    assert more
    assert [piece.first for piece in pieces] == list(range(4, 504))
    pieces, more = recorded.after(JOB, EventId(1, 503))
    assert not more
    assert pieces[-1].events == ["699"]
    recorded.close()


def test_reading_goes_on_after_redis_was_started_again() -> None:
    """A connection that died unseen is no error."""
    with servers.redis() as server:
        recorded = Recorded(load(engine="fake", redis_url=server.url))
        assert recorded.after(JOB, streams.START) == ([], False)
        server.stop()
        with pytest.raises((redis.RedisError, OSError)):
            recorded.after(JOB, streams.START)
        server.start()
        assert recorded.after(JOB, streams.START) == ([], False)
        recorded.close()


def test_many_read_at_once_over_few_connections(store: Any, redis_url: str) -> None:
    """They wait for each other."""
    before = store.info("clients")["connected_clients"]  # of other tests too: the server is everybody's
    recorded = Recorded(load(engine="fake", redis_url=redis_url))
    piece = Piece(JOB, 1, 1, ["a"])
    store.xadd(streams.key(JOB), {streams.FIELD: streams.encode_one(piece)}, id="1-1")
    found: list[list[Piece]] = []
    threads = [threading.Thread(target=lambda: found.append(recorded.after(JOB, streams.START)[0])) for _ in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == [[piece]] * 100
    assert store.info("clients")["connected_clients"] <= before + following.MOST_CONNECTIONS
    recorded.close()


def test_whoever_waits_long_for_a_connection_does_not_take_redis_for_away(redis_url: str) -> None:
    """All are in use for longer than Redis itself may take to answer."""
    recorded = Recorded(load(engine="fake", redis_url=redis_url))
    pool = recorded._redis.connection_pool
    taken = [pool.get_connection() for _ in range(following.MOST_CONNECTIONS)]

    def give_back() -> None:
        for one in taken:
            pool.release(one)

    later = threading.Timer(2.5, give_back)
    later.start()
    assert recorded.after(JOB, streams.START) == ([], False)
    later.join()
    recorded.close()
