"""Room in the queue: what is let in, what it costs to know, and that nothing goes beyond the limits."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from models import jobs, room, waiting
from models.db import Database, new_id
from models.errors import DatabaseUnavailable, QueueFull
from models.room import FOR_BULKS, Room
from tests.models import given
from tests.tasks.inprocess import until


class Counted:
    """A room whose counts are seen, and go when they are let go."""

    def __init__(self, database: Database, of_owner: int = 1000, of_all: int = 10_000) -> None:
        self.room = Room(database, of_owner, of_all)
        self.counts: list[str] = []
        self.go = threading.Event()
        self.go.set()
        self.fails = False

    def note(self, name: str, count: Callable[..., int]) -> Callable[..., int]:
        """Return a count that is noted."""

        def counted(*given: object) -> int:
            self.counts.append(name)
            self.go.wait(30)
            if self.fails:
                raise DatabaseUnavailable("gone")
            return count(*given)

        return counted


@pytest.fixture
def counted(database: Database, monkeypatch: pytest.MonkeyPatch) -> Iterator[Counted]:
    """Return a room for 1000 jobs of an owner and 10,000 of all, on an empty queue."""
    made = Counted(database)
    monkeypatch.setattr(waiting, "of_owner", made.note("owner", waiting.of_owner))
    monkeypatch.setattr(waiting, "of_all", made.note("all", waiting.of_all))
    yield made
    made.go.set()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a count be due as soon as there is a reason for it."""
    monkeypatch.setattr(room, "LEAST_PAUSE", 0.0)
    monkeypatch.setattr(room, "MOST_SHARE", 1e9)


def submit(database: Database, where: Room, owner: str = "alice", count: int = 1) -> None:
    """Store jobs for which there is room."""
    with where.place(owner, count):
        given.submitted(database, count, owner=owner)


def test_waiting_jobs_are_counted_by_owner(database: Database) -> None:
    """Queued, delayed, paused and set apart after a crash, of every model and lane; neither others' nor begun ones."""
    ids = [
        *given.submitted(database, 3),
        *given.submitted(database, 2, lane="realtime"),
        *given.submitted(database, 1, lane="paused"),
        *given.submitted(database, 4, model="other"),
    ]
    given.submitted(database, 5, owner="bob")
    given.change(database, jobs.table, jobs.table.c.id == ids[0], cohort_id=new_id("cohort"))
    given.change(database, jobs.table, jobs.table.c.id == ids[1], state="delayed", run_at=5e9)
    given.cut(database, ids[2:3])
    with database.reading() as tx:
        assert waiting.of_owner(tx, "alice", 100) == 9
        assert waiting.of_owner(tx, "bob", 100) == 5
        assert waiting.of_owner(tx, "nobody", 100) == 0
        assert waiting.of_all(tx, 100) == 14


def test_a_count_is_bounded(database: Database) -> None:
    """More than was asked for is not counted through."""
    given.submitted(database, 50)
    with database.reading() as tx:
        assert waiting.of_owner(tx, "alice", 10) == 10
        assert waiting.of_all(tx, 10) == 10


def test_an_empty_database_has_none(database: Database) -> None:
    """Nothing waits where nothing is."""
    with database.reading() as tx:
        assert (waiting.of_owner(tx, "alice", 10), waiting.of_all(tx, 10)) == (0, 0)


def test_an_owner_is_refused_at_its_limit(database: Database) -> None:
    """As many as the limit are let in, the next is not; another owner is."""
    where = Room(database, 5, 100)
    for _ in range(5):
        submit(database, where)
    with pytest.raises(QueueFull, match=r"5 jobs of this owner.*STOKER_MAX_QUEUED_PER_OWNER"):
        submit(database, where)
    with pytest.raises(QueueFull):
        where.check("alice")
    where.check("bob")
    submit(database, where, "bob")


def test_all_are_refused_at_the_total(database: Database) -> None:
    """When the whole queue is full, whoever comes is refused, and nothing is taken from his own room."""
    where = Room(database, 5, 8)
    submit(database, where, "alice", 5)
    submit(database, where, "bob", 3)
    for owner in ("bob", "carol"):
        with pytest.raises(QueueFull, match=r"8 jobs of all.*STOKER_MAX_QUEUED\)"):
            submit(database, where, owner)
    assert where._lines["carol", "jobs"].waiting == 0


def test_an_owner_with_next_to_nothing_is_let_in_though_others_fill_the_queue(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Below the floor the total does not count, so that nobody can lock the others out."""
    monkeypatch.setattr(room, "FLOOR", 4)
    where = Room(database, 100, 8)
    submit(database, where, "alice", 8)
    submit(database, where, "bob")
    submit(database, where, "bob")
    with pytest.raises(QueueFull):
        submit(database, where, "bob")


@pytest.mark.usefixtures("impatient")
def test_what_begins_to_run_makes_room(database: Database) -> None:
    """A job that is in a batch waits no more."""
    where = Room(database, 3, 100)
    with where.place("alice", 3):
        ids = given.submitted(database, 3)
    with pytest.raises(QueueFull):
        submit(database, where)
    given.cut(database, ids[:1])
    submit(database, where)


def test_what_is_not_stored_takes_no_room(database: Database) -> None:
    """A block that fails gives its room back."""
    where = Room(database, 1, 100)
    with pytest.raises(DatabaseUnavailable), where.place("alice"):
        raise DatabaseUnavailable("gone")
    submit(database, where)


def test_many_at_once_never_go_beyond(database: Database) -> None:
    """However many come at the same moment, and however often it is counted, one process never goes over."""
    where = Room(database, 20, 100)

    def one() -> bool:
        try:
            submit(database, where)
        except QueueFull:
            return False
        return True

    assert sum(given.together([one] * 50)) == 20


@pytest.mark.usefixtures("impatient")
def test_jobs_under_way_are_counted_too(database: Database) -> None:
    """A count while jobs are being stored does not forget them."""
    where = Room(database, 2, 100)
    with where.place("alice"), where.place("alice"), pytest.raises(QueueFull):
        submit(database, where)


def test_the_queue_is_counted_seldom(counted: Counted, database: Database) -> None:
    """Thirty jobs after the first cost no count, with room for a thousand."""
    for _ in range(31):
        submit(database, counted.room)
    assert counted.counts == ["owner", "all"]


@pytest.mark.usefixtures("impatient")
def test_the_queue_is_counted_when_a_part_of_the_room_is_used(counted: Counted, database: Database) -> None:
    """A sixteenth of the room later what others let in meanwhile is seen."""
    submit(database, counted.room)
    given.submitted(database, 900)  # by another process
    submit(database, counted.room, count=62)
    with pytest.raises(QueueFull):
        submit(database, counted.room, count=38)
    assert counted.counts == ["owner", "all", "owner"]


def test_a_full_queue_is_not_counted_for_each_who_is_refused(counted: Counted, database: Database) -> None:
    """A crowd that is refused costs a count now and then."""
    submit(database, counted.room, count=1000)
    for _ in range(200):
        with pytest.raises(QueueFull):
            submit(database, counted.room)
    assert len(counted.counts) < 100


def test_one_counts_for_all(counted: Counted, database: Database) -> None:
    """Those who come during the first count wait for it, and do not count as well."""
    counted.go.clear()
    threads = [threading.Thread(target=submit, args=(database, counted.room)) for _ in range(10)]
    for thread in threads:
        thread.start()
    until(lambda: counted.counts == ["owner"])
    counted.go.set()
    for thread in threads:
        thread.join(30)
    assert counted.counts == ["owner", "all"]


@pytest.mark.usefixtures("impatient")
def test_a_slow_count_holds_nobody_else_up(counted: Counted, database: Database) -> None:
    """While one counts anew the others go by what is known."""
    submit(database, counted.room, count=100)
    counted.go.clear()
    slow = threading.Thread(target=counted.room.check, args=("alice",))
    slow.start()
    until(lambda: counted.counts == ["owner", "all", "owner"])
    submit(database, counted.room)
    counted.go.set()
    slow.join(30)


@pytest.mark.usefixtures("impatient")
def test_a_count_that_fails_is_no_refusal(counted: Counted, database: Database) -> None:
    """What was known goes on to count; only where nothing is known the database is said to be away."""
    submit(database, counted.room, count=100)
    counted.fails = True
    submit(database, counted.room)
    with pytest.raises(DatabaseUnavailable):
        counted.room.check("bob")


def test_the_lines_of_bulks_leave_room_for_others(database: Database) -> None:
    """They fill nine tenths of a limit, so that single jobs of the same owner still get in."""
    where = Room(database, 100, 1000)
    assert where.left("alice", FOR_BULKS) == 90
    with where.place("alice", 90, FOR_BULKS):
        given.submitted(database, 90)
    assert where.left("alice", FOR_BULKS) == 0
    with pytest.raises(QueueFull), where.place("alice", 1, FOR_BULKS):
        pass
    submit(database, where)


def test_no_lines_need_no_room(database: Database) -> None:
    """Nothing is refused for nothing."""
    where = Room(database, 1, 1)
    submit(database, where)
    with where.place("alice", 0, FOR_BULKS):
        pass


@pytest.mark.usefixtures("impatient")
def test_lines_that_wait_go_on_when_it_is_worth_while(database: Database) -> None:
    """Not for one place, but for a sixteenth of the limit."""
    where = Room(database, 160, 1000)
    ids = given.submitted(database, 140)
    assert not where.enough("alice", FOR_BULKS)
    given.cut(database, ids[:5])
    assert not where.enough("alice", FOR_BULKS)
    given.cut(database, ids[5:6])
    assert where.enough("alice", FOR_BULKS)


@pytest.mark.usefixtures("impatient")
def test_who_is_refused_comes_back_by_the_pace(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing ends, after ten seconds; where jobs end fast, after one; where they end slowly, after a minute."""
    where = Room(database, 100, 1000)
    with where.place("alice", 100):
        ids = given.submitted(database, 100)

    def refused() -> int:
        with pytest.raises(QueueFull) as caught:
            where.check("alice")
        return caught.value.retry_after

    assert refused() == room.UNKNOWN_PACE
    given.cut(database, ids[:10])
    given.submitted(database, 9)
    monkeypatch.setattr(room, "LEAST_PAUSE", 1e-9)
    where.check("alice")
    submit(database, where)
    assert refused() == 1
    where._lines["alice", "jobs"]._pace = 1e-6
    assert where._lines["alice", "jobs"]._come_back(1000) == room.LONGEST_PAUSE


def test_owners_are_forgotten(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process remembers the counts of so many owners."""
    monkeypatch.setattr(room, "MOST_REMEMBERED", 3)
    where = Room(database, 5, 100)
    for nth in range(20):
        where.check(f"owner{nth}")
    assert len(where._lines) <= 3
