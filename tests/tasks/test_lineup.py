"""Who is sent to next: hosts take turns, none has more than its share, and none hides another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import sqlalchemy as sa
from hypothesis import given as for_all
from hypothesis import strategies as st

from models import deliveries
from models.db import Database, new_id, now
from tasks import lineup
from tasks.lineup import Busy, Lineup, in_turns

HOSTS = st.sampled_from([f"h{number}" for number in range(8)])


@for_all(
    waiting=st.dictionaries(HOSTS, st.lists(st.integers(), max_size=6)),
    free=st.dictionaries(HOSTS, st.integers(0, 4)),
    room=st.integers(0, 40),
    after=st.none() | HOSTS,
)
def test_hosts_take_turns(waiting: dict[str, list[int]], free: dict[str, int], room: int, after: str | None) -> None:
    """Never more than there is room for, nor than a host has free; in order; and no host is two ahead of another."""
    named = {host: [(host, nth) for nth in range(len(some))] for host, some in waiting.items()}
    chosen = in_turns(named, free, room, after)
    most = {host: min(len(some), free.get(host, 0)) for host, some in named.items()}
    assert len(chosen) == min(room, sum(most.values()))
    got = Counter(host for host, _ in chosen)
    for host, count in got.items():
        assert count <= most[host]
        assert [nth for name, nth in chosen if name == host] == list(range(count))
    unsated = [got[host] for host in named if got[host] < most[host]]
    assert all(count <= least + 1 for count in got.values() for least in unsated)


@for_all(hosts=st.lists(HOSTS, unique=True, min_size=1))
def test_nobody_is_passed_over(hosts: list[str]) -> None:
    """With room for one at a time, as many choices as there are hosts serve each of them once."""
    served: list[str] = []
    for _ in hosts:
        served += in_turns({host: [host] for host in hosts}, dict.fromkeys(hosts, 1), 1, served[-1] if served else None)
    assert sorted(served) == sorted(hosts)


@for_all(
    waiting=st.dictionaries(HOSTS, st.lists(st.sampled_from("ABC"), max_size=6)),
    free=st.dictionaries(HOSTS, st.integers(0, 4)),
    places=st.fixed_dictionaries({owner: st.integers(0, 6) for owner in "ABC"}),
    room=st.integers(0, 40),
)
def test_one_who_may_not_is_passed_over(
    waiting: dict[str, list[str]], free: dict[str, int], places: dict[str, int], room: int
) -> None:
    """No owner has more than its places, in order; a place is left empty only if none who may is there for it."""
    named = {host: [(host, nth, owner) for nth, owner in enumerate(some)] for host, some in waiting.items()}
    left = Counter(places)

    def may(one: tuple[str, int, str]) -> bool:
        left[one[2]] -= 1
        return left[one[2]] >= 0

    chosen = in_turns(named, free, room, None, may)
    by_host, by_owner = Counter(host for host, _, _ in chosen), Counter(owner for _, _, owner in chosen)
    assert all(by_owner[owner] <= count for owner, count in places.items())
    assert all(by_host[host] <= free.get(host, 0) for host in named)
    if len(chosen) < room:
        rest = {one for some in named.values() for one in some} - set(chosen)
        assert not [one for one in rest if by_host[one[0]] < free.get(one[0], 0) and by_owner[one[2]] < places[one[2]]]
    for host, some in named.items():
        assert [one for one in chosen if one[0] == host] == [one for one in some if one in chosen]


def fill(
    database: Database, hosts: dict[str, tuple[int, float]], owner: Callable[[str], str] = lambda host: host
) -> None:
    """Store so many pending deliveries for each host, due in so many seconds; each host has its owner, or `owner`'s."""
    rows = [
        {
            "id": new_id("msg"),
            "job_id": new_id("job"),
            "host": host,
            "wait": wait,
            "url": f"http://{host}/",
            "owner": owner(host),
        }
        for host, (count, wait) in hosts.items()
        for _ in range(count)
    ]
    known = {"event": "job.failed", "include_result": False, "state": "pending", "try": 0}
    due = now() + sa.bindparam("wait", type_=sa.Double)
    columns = {name: sa.bindparam(name) for name in ("id", "job_id", "host", "url", "owner")}
    with database.transaction() as tx:
        tx.execute(sa.insert(deliveries.table).values({**columns, **known, "next_at": due, "created_at": now()}), rows)


def test_a_host_with_many_hides_no_other(database: Database) -> None:
    """With more due at one host than a look reads, the others are found at once, and so is the next one's turn."""
    fill(database, {"a": (lineup.MOST_SEEN + 100, -100.0), **{f"b{n}": (3, -1.0) for n in range(20)}})
    line = Lineup(per_host=2, at_once=64)
    with database.reading() as tx:
        line.look(tx, Busy())
    assert Counter(one.host for one in line.take(42, Busy())) == {"a": 2, **{f"b{n}": 2 for n in range(20)}}
    with database.reading() as tx:
        line.look(tx, Busy({"a": 2}))
    assert {one.host for one in line.take(20, Busy({"a": 2}))} == {f"b{n}" for n in range(20)}


def test_one_that_is_due_is_found_behind_many_that_wait(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of hosts wait for their next try, one hangs and has more due than is read: the others' turn comes."""
    monkeypatch.setattr(lineup, "HOSTS_AT_ONCE", 50)
    fill(database, {"a": (lineup.MOST_SEEN, -1.0), **{f"b{n:04}": (1, 500.0) for n in range(2000)}, "c": (1, 0.0)})
    line, busy, looks = Lineup(per_host=8, at_once=16), Busy({"a": 8}), 0
    found: list[str] = []
    while not found and looks < 10:
        looks += 1
        with database.reading() as tx:
            line.look(tx, busy)
        assert line.pause < 0.1
        found = [one.host for one in line.take(8, busy)]
    assert found == ["c"]
    assert looks <= 2000 / (50 * lineup.HOPS) + 1


def test_looks_become_rare_when_only_the_busy_have_more(database: Database) -> None:
    """Once all hosts were gone through in vain, it waits longer; a ring makes it look at once."""
    fill(database, {"a": (lineup.MOST_SEEN, -1.0)})
    line, busy = Lineup(per_host=8, at_once=16, clock=lambda: 7.0), Busy({"a": 8})
    for _ in range(2):
        with database.reading() as tx:
            line.look(tx, busy)
        assert line.take(8, busy) == []
    assert line.pause > 0.1
    assert not line.wants_look(8, busy, rung=False)
    assert line.wants_look(8, busy, rung=True)


def looked(database: Database, line: Lineup, busy: Busy, room: int) -> list[str]:
    """Look once, and return the owners of what is taken."""
    with database.reading() as tx:
        line.look(tx, busy)
    return [one.owner for one in line.take(room, busy)]


def test_no_owner_has_more_than_half(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """One who has any number of hosts fills half of the places; the others are found behind, soon."""
    monkeypatch.setattr(lineup, "HOSTS_AT_ONCE", 20)
    fill(database, {f"b{n:04}": (1, -100.0) for n in range(600)}, owner=lambda _: "mallory")
    fill(database, {"z": (5, -1.0)})
    line = Lineup(per_host=8, at_once=16)
    assert Counter(looked(database, line, Busy(), 16)) == {"mallory": 8}
    busy = Busy({f"x{n}": 1 for n in range(8)}, {"mallory": 8})
    found: list[str] = []
    for _ in range(6):
        found += looked(database, line, busy, 8)
    assert found
    assert set(found) == {"z"}


def test_one_owner_alone_has_its_half(database: Database) -> None:
    """Few or many due: it is never all places, and at least one."""
    fill(database, {f"b{n}": (3, -1.0) for n in range(20)}, owner=lambda _: "alice")
    assert len(looked(database, Lineup(per_host=8, at_once=16), Busy(), 16)) == 8
    assert len(looked(database, Lineup(per_host=8, at_once=1), Busy(), 1)) == 1


def test_an_owner_at_its_limit_hides_nobody_at_a_shared_host(database: Database) -> None:
    """What others have due at the same host is sent, though it came later."""
    fill(database, {"h": (200, -100.0), "g": (400, -100.0)}, owner=lambda _: "mallory")
    fill(database, {"h": (2, -1.0)}, owner=lambda _: "alice")
    taken = looked(database, Lineup(per_host=8, at_once=16), Busy({"x": 8}, {"mallory": 8}), 8)
    assert taken == ["alice"] * 2


def test_looks_become_rare_when_only_owners_at_their_limit_have_more(database: Database) -> None:
    """Once all hosts were gone through in vain; as soon as one of their requests has ended they are often again."""
    fill(database, {f"b{n}": (lineup.MOST_SEEN // 8, -1.0) for n in range(8)}, owner=lambda _: "mallory")
    line, busy = Lineup(per_host=8, at_once=16, clock=lambda: 7.0), Busy({"x": 8}, {"mallory": 8})
    for _ in range(2):
        assert looked(database, line, busy, 8) == []
    assert line.saw_all
    assert line.pause > 0.1
    assert looked(database, line, Busy({"x": 7}, {"mallory": 7}), 9) == ["mallory"]
    assert not line.saw_all
    assert line.pause < 0.1


def test_with_more_hosts_than_a_look_sees_all_have_their_turn(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An owner who cannot fill the places with what is due at many hosts: none waits for ever for its turn."""
    monkeypatch.setattr(lineup, "MOST_SEEN", 50)
    monkeypatch.setattr(lineup, "HOSTS_AT_ONCE", 5)
    # Two looks are a round, so that both begin at the same hosts each time.
    hosts = {f"b{n:04}": (1, -100.0) for n in range(2 * 5 * lineup.HOPS - 2)}
    fill(database, hosts, owner=lambda _: "alice")
    line = Lineup(per_host=8, at_once=16)
    served: set[str] = set()
    for _ in range(300):
        with database.reading() as tx:
            line.look(tx, Busy())
        served |= {one.host for one in line.take(16, Busy())}
    assert served == set(hosts)
