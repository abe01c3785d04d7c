"""Who is sent to next: hosts take turns, none has more than its share, and none hides another."""

from __future__ import annotations

from collections import Counter

import pytest
import sqlalchemy as sa
from hypothesis import given as for_all
from hypothesis import strategies as st

from models import deliveries
from models.db import Database, new_id, now
from tasks import lineup
from tasks.lineup import Lineup, in_turns

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


def fill(database: Database, hosts: dict[str, tuple[int, float]]) -> None:
    """Store so many pending deliveries for each host, due in so many seconds."""
    rows = [
        {"id": new_id("msg"), "job_id": new_id("job"), "host": host, "wait": wait, "url": f"http://{host}/"}
        for host, (count, wait) in hosts.items()
        for _ in range(count)
    ]
    known = {"owner": "owner", "event": "job.failed", "include_result": False, "state": "pending", "try": 0}
    due = now() + sa.bindparam("wait", type_=sa.Double)
    columns = {name: sa.bindparam(name) for name in ("id", "job_id", "host", "url")}
    with database.transaction() as tx:
        tx.execute(sa.insert(deliveries.table).values({**columns, **known, "next_at": due, "created_at": now()}), rows)


def test_a_host_with_many_hides_no_other(database: Database) -> None:
    """With more due at one host than a look reads, the others are found at once, and so is the next one's turn."""
    fill(database, {"a": (lineup.MOST_SEEN + 100, -100.0), **{f"b{n}": (3, -1.0) for n in range(20)}})
    line = Lineup(per_host=2)
    with database.reading() as tx:
        line.look(tx, {})
    assert Counter(one.host for one in line.take(42, {})) == {"a": 2, **{f"b{n}": 2 for n in range(20)}}
    with database.reading() as tx:
        line.look(tx, {"a": 2})
    assert {one.host for one in line.take(20, {"a": 2})} == {f"b{n}" for n in range(20)}


def test_one_that_is_due_is_found_behind_many_that_wait(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of hosts wait for their next try, one hangs and has more due than is read: the others' turn comes."""
    monkeypatch.setattr(lineup, "HOSTS_AT_ONCE", 50)
    fill(database, {"a": (lineup.MOST_SEEN, -1.0), **{f"b{n:04}": (1, 500.0) for n in range(2000)}, "c": (1, 0.0)})
    line, busy, looks = Lineup(per_host=8), {"a": 8}, 0
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
    line, busy = Lineup(per_host=8, clock=lambda: 7.0), {"a": 8}
    for _ in range(2):
        with database.reading() as tx:
            line.look(tx, busy)
        assert line.take(8, busy) == []
    assert line.pause > 0.1
    assert not line.wants_look(8, busy, rung=False)
    assert line.wants_look(8, busy, rung=True)
