"""Who gets the next free connection of a pool of upstreams, and what an upstream's own words do to it."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.settings import LANES
from tasks.engines.base import Completion, reserved
from tasks.engines.upstreams.answers import Fate, Verdict
from tasks.engines.upstreams.listing import Place
from tasks.engines.upstreams.member import COINCIDENCE, Upstream
from tasks.engines.upstreams.routing import KEPT_FOR, LONG, Need, Router

EVERY = 10.0
GOOD = Verdict(Fate.DONE, outcome=Completion("job", "{}"))


def member(url: str, limit: int | None = 1, *models: str) -> Upstream:
    """Make an upstream that is up."""
    made = Upstream(Place(url, connections=limit), EVERY)
    made.check_passed(0.0, dict.fromkeys(models or ("m",)))
    return made


def pool(*members: Upstream, share: float = 0.0) -> Router[int]:
    """Make a router of these."""
    router: Router[int] = Router(share)
    router.upstreams.update({one.url: one for one in members})
    return router


def line(router: Router[int], *needs: Need, now: float = 0.0) -> None:
    """Queue requests; each one's ticket is its number."""
    for number, need in enumerate(needs):
        router.arrive(need, number, number, now)


def admitted(router: Router[int], now: float = 0.0) -> list[tuple[str, int]]:
    """Let in whoever may enter."""
    found = []
    while entered := router.admit(now):
        found.append((entered[0].url, entered[1]))
    return found


def test_least_connections_first() -> None:
    """The upstream with the fewest connections is next; of equals the one that waited longest."""
    a, b, c = (member(url, 8) for url in "abc")
    router = pool(a, b, c)
    a.in_flight = 2
    line(router, *[Need("bulk", "m")] * 7)
    assert [url for url, _ in admitted(router)] == ["b", "c", "b", "c", "a", "b", "c"]


def test_ones_that_come_one_by_one_are_spread() -> None:
    """Requests that never meet go to every upstream in turn, also to one that was added later."""
    a, b = member("a", 8), member("b", 8)
    router = pool(a, b)
    asked = []
    for number in range(9):
        if number == 4:
            router.upstreams["c"] = member("c", 8)
        router.arrive(Need("bulk", "m"), number, number, 0.0)
        ((url, _),) = admitted(router)
        asked.append(url)
        router.leave("bulk", router.upstreams[url])
    assert "".join(asked) == "ababcabca"


def test_lanes_in_order_and_first_come_first_served() -> None:
    """When all are busy the line is strict: by lane, then by arrival, whatever came in between."""
    one = member("a", 1)
    router = pool(one)
    one.in_flight = 1
    line(router, *(Need(lane, "m") for lane in ("bulk", "standard", "realtime", "bulk", "standard", "realtime")))
    one.in_flight = 0
    order = []
    lanes = ("bulk", "standard", "realtime", "bulk", "standard", "realtime")
    for _ in range(6):
        ((_, ticket),) = admitted(router)
        order.append(ticket)
        router.leave(lanes[ticket], one)
    assert order == [2, 5, 1, 4, 0, 3]


def test_one_model_does_not_hold_up_another() -> None:
    """A request whose model has no free upstream lets those behind it pass, and no others."""
    a, b = member("a", 1, "big"), member("b", 2, "small")
    router = pool(a, b)
    line(router, *(Need("bulk", model) for model in ("big", "big", "small", "small", "small")))
    assert admitted(router) == [("a", 0), ("b", 2), ("b", 3)]
    router.leave("bulk", a)
    assert admitted(router) == [("a", 1)]


def test_who_comes_back_keeps_its_place() -> None:
    """A request that failed on one upstream goes in again before those that came later."""
    a, b = member("a", 1), member("b", 1)
    router = pool(a, b)
    b.in_flight = 1
    line(router, *[Need("bulk", "m")] * 3)
    assert admitted(router) == [("a", 0)]
    router.leave("bulk", a)
    router.arrive(Need("bulk", "m", frozenset("a")), 0, 0, 0.0)
    assert admitted(router) == [("a", 1)]
    b.in_flight = 0
    assert admitted(router) == [("b", 0)]


def test_who_leaves_the_line_is_not_let_in() -> None:
    """A withdrawn request takes no connection."""
    one = member("a", 1)
    router = pool(one)
    one.in_flight = 1
    line(router, *[Need("bulk", "m")] * 3)
    router.withdraw(Need("bulk", "m"), 0)
    router.withdraw(Need("bulk", "m"), 1)
    assert router.waiting() == 1
    one.in_flight = 0
    assert admitted(router) == [("a", 2)]


def test_the_reserve_is_kept_while_there_is_realtime() -> None:
    """For a minute after a realtime request the other lanes leave some connections free, then they use them all."""
    router = pool(member("a", 10), share=0.1)
    line(router, Need("realtime", "m"), *[Need("bulk", "m")] * 12, now=100.0)
    assert len(admitted(router, 100.0)) == 10  # one realtime, nine others: the reserve is in use
    router.leave("realtime", router.upstreams["a"])
    assert admitted(router, 101.0) == []
    assert len(admitted(router, 100.0 + KEPT_FOR)) == 1


@given(
    limits=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    moves=st.lists(st.tuples(st.integers(0, 4), st.sampled_from(LANES), st.sampled_from(["m", "n"])), max_size=60),
    share=st.sampled_from([0.0, 0.3]),
)
def test_whatever_comes_and_goes(limits: list[int], moves: list[tuple[int, str, str]], share: float) -> None:
    """Limits and the reserve hold, nobody overtakes in a lane and model, and no connection idles while one may go."""
    members = [member(str(number), limit, *("mn" if number else "m")) for number, limit in enumerate(limits)]
    router = pool(*members, share=share)
    waiting: dict[tuple[str, str], list[int]] = {(lane, model): [] for lane in LANES for model in "mn"}
    needs: dict[int, Need] = {}
    inside: list[tuple[Upstream, str]] = []
    for number, (move, lane, model) in enumerate(moves):
        if move <= 1:
            needs[number] = Need(lane, model)
            waiting[lane, model].append(number)
            router.arrive(needs[number], number, number, 0.0)
        elif move == 2 and inside:
            upstream, entered = inside.pop(0)
            router.leave(entered, upstream)
        elif move == 3 and waiting[lane, model]:
            router.withdraw(needs[gone := waiting[lane, model].pop()], gone)
        while found := router.admit(0.0):
            upstream, ticket = found
            need = needs[ticket]
            assert waiting[need.lane, need.model].pop(0) == ticket
            assert need.model in upstream.models
            inside.append((upstream, need.lane))
        assert router.inside == len(inside)
        for upstream in members:
            assert upstream.in_flight == sum(one is upstream for one, _ in inside) <= upstream.limit
        others = sum(entered != "realtime" for _, entered in inside)
        for (stays, wanted), queue in waiting.items():
            able = [one for one in members if wanted in one.models and one.in_flight < one.limit]
            if queue and able:
                assert stays != "realtime"
                assert others >= router.slots - reserved(router.slots, share)


def test_no_hope() -> None:
    """Those whose model nobody serves are sent away after a while; those who may hope are not."""
    a, b = member("a", 1, "m"), member("b", 1, "n")
    router = pool(a, b)
    a.in_flight = b.in_flight = 1
    line(router, Need("bulk", "m"), Need("bulk", "n"), Need("bulk", "m", frozenset("a")))
    assert list(router.hopeless(0.0, 5.0)) == []
    a.check_failed(1.0, "gone", silent=False)
    assert list(router.hopeless(4.0, 5.0)) == []
    assert list(router.hopeless(5.0, 5.0)) == [2]
    a.check_passed(6.0, {"m": None})
    assert list(router.hopeless(6.0, 5.0)) == []
    a.check_failed(7.0, "gone", silent=False)
    assert list(router.hopeless(8.0, 5.0)) == []
    assert list(router.hopeless(13.0, 5.0)) == [0]
    assert router.waiting() == 1


def test_a_model_that_nobody_has() -> None:
    """A model is unknown when every upstream is up and none lists it; not while one is down or has lost it."""
    a, b = member("a", 1, "m"), member("b", 1, "n")
    router = pool(a, b)
    assert router.unknown("x")
    assert not router.unknown("n")
    b.judge(Verdict(Fate.MODEL), b.begin(0.0), "n", 0.0)
    assert not router.unknown("n")
    a.check_failed(1.0, "gone", silent=False)
    assert not router.unknown("x")


def test_what_the_engine_serves() -> None:
    """Slots are the limits of those that are up, by model too; a context is the smallest that was told."""
    a, b = member("a", 3), member("b", 5)
    router = pool(a, b)
    a.check_passed(0.0, {"m": 4096, "n": None})
    b.check_passed(0.0, {"m": 2048})
    assert router.slots == 8
    assert [(one.name, one.slots, one.max_model_len) for one in router.models()] == [("m", 8, 2048), ("n", 3, None)]
    b.check_failed(1.0, "gone", silent=False)
    assert router.slots == 3
    a.removed = True
    assert (router.slots, router.models()) == (0, ())


# One upstream


def failing(one: Upstream, now: float, begun: float | None = None) -> None:
    """Let a request fail by the upstream's fault."""
    one.judge(Verdict(Fate.SICK, "it answered 500"), one.begin(now if begun is None else begun), "m", now)


def test_a_failure_takes_it_out_until_a_check() -> None:
    """After a failure nothing is sent until a check succeeds, after a second one then only one request at once."""
    one = member("a", 8)
    failing(one, 1.0)
    assert not one.serves("m")
    assert one.check_at == 1.0
    one.check_passed(1.1, {"m": None})
    one.in_flight = 1
    assert one.serves("m")
    assert one.has_room(1.1)
    failing(one, 2.0)
    one.check_passed(3.0, {"m": None})
    assert not one.has_room(3.0)
    one.judge(GOOD, one.begin(3.1), "m", 4.0)
    assert one.has_room(4.0)
    assert (one.errors, one.latency) == (2, pytest.approx(0.9))


def test_failures_in_a_row_take_it_out_for_longer() -> None:
    """A broken upstream whose checks succeed is tried after 1 s, 2 s, ... up to the interval of the checks."""
    one = member("a", 8)
    pauses, now = [], 0.0
    for _ in range(7):
        now += 1.0
        failing(one, now)
        pauses.append(one.check_at - now)
        one.check_passed(one.check_at, {"m": None})
    assert pauses == [0.0, 1.0, 2.0, 4.0, 8.0, EVERY, EVERY]


def test_failures_of_one_moment_are_one() -> None:
    """Requests that were on their way when it failed do not make its absence longer."""
    one = member("a", 8)
    failing(one, 1.0)
    for _ in range(7):
        failing(one, 1.01, begun=0.5)
    one.check_passed(1.02, {"m": None})
    failing(one, 2.0)
    assert one.check_at == 3.0


def test_a_request_at_fault_is_not_held_against_it() -> None:
    """Absolved it is up at once; but not for ever: several in a row without a good answer are no coincidence."""
    one = member("a", 8)
    for number in range(1, COINCIDENCE + 1):
        failing(one, float(number))
        assert one.plausible
        one.absolve()
        assert one.serves("m")
    failing(one, 9.0)
    assert not one.plausible
    one.judge(GOOD, one.begin(10.0), "m", 11.0)
    assert one.plausible


def test_retry_after_is_obeyed() -> None:
    """One that names a time gets nothing until then and is not down; a short pause is worth waiting for."""
    one = member("a", 8)
    router = pool(one)
    one.judge(Verdict(Fate.BUSY, status=503, retry_after=7.0), one.begin(0.0), "m", 1.0)
    assert one.up
    assert not one.has_room(7.9)
    assert one.has_room(8.0)
    assert router.hope("m", (), 1.0)
    assert router.pause("m", 3.0) == 5.0
    one.judge(Verdict(Fate.BUSY, status=429, retry_after=LONG + 10), one.begin(8.0), "m", 8.0)
    assert not router.hope("m", (), 8.0)


def test_a_refused_key_is_not_tried_again_at_once() -> None:
    """Its /v1/models may need no key: it comes back with the next regular check only."""
    one = member("a", 8)
    one.judge(Verdict(Fate.KEY, "it does not accept the API key (401)"), one.begin(1.0), "m", 1.0)
    assert not one.up
    assert one.check_at == 1.0 + EVERY
    assert "key" in one.why_down


def test_a_denied_model_stays_away_for_longer_each_time() -> None:
    """A model that is listed but denied is lost alone, until a check after 10 s, then 20 s, ..."""
    one = member("a", 8, "m", "n")
    listed = {"m": None, "n": None}
    for now, gone in ((0.0, 10.0), (100.0, 20.0), (200.0, 40.0)):
        one.judge(Verdict(Fate.MODEL), one.begin(now), "m", now)
        assert set(one.models) == {"n"}
        one.check_passed(now + gone - 0.1, listed)
        assert set(one.models) == {"n"}
        one.check_passed(now + gone, listed)
        assert set(one.models) == {"m", "n"}


def test_a_check_without_an_answer_needs_a_second_one() -> None:
    """A wrong answer takes it out at once, silence after the second time."""
    one = member("a", 8)
    assert not one.check_failed(1.0, "silence", silent=True)
    assert one.up
    assert one.check_at == 2.0
    assert one.check_failed(2.0, "silence", silent=True)
    assert not one.up
    assert one.hung
    pauses = [one.check_at - 2.0]
    for now in (4.0, 8.0, 16.0):
        one.check_failed(now, "silence", silent=True)
        pauses.append(one.check_at - now)
    assert pauses == [2.0, 4.0, 8.0, EVERY]
    assert one.check_passed(30.0, {"m": None})
    assert not one.hung


def test_only_the_named_models() -> None:
    """Models that the operator named are served whatever is listed, and no others."""
    one = Upstream(Place("a", models=("m", "x")), EVERY)
    one.check_passed(0.0, {"m": 512, "n": 512})
    assert one.models == {"m": 512, "x": None}


def test_the_operator_changes_an_entry() -> None:
    """A new limit holds at once, and the change is checked at once; measuring begins when the limit is taken away."""
    one = member("a", 8)
    one.move(Place("a", key="k", connections=3))
    assert (one.limit, one.check_at) == (3, 0.0)
    one.move(Place("a"))
    assert one.limit == 32
    assert one.knee is not None


def test_a_long_line_is_cheap() -> None:
    """Letting in does not look through the line."""
    one = member("a", 1)
    router = pool(one)
    line(router, *itertools.repeat(Need("bulk", "m"), 20_000))
    for number in range(20_000):
        assert admitted(router) == [("a", number)]
        router.leave("bulk", one)


def test_one_that_was_admitted_may_still_withdraw() -> None:
    """Somebody who was cancelled while they were let in has left the line already: nobody else is missed for it."""
    one = member("a", 1)
    router = pool(one)
    need = Need("bulk", "m")
    line(router, need, need, need)
    ((_, ticket),) = admitted(router)
    router.leave("bulk", one)
    assert router.admit(0.0) == (one, 1)
    for number in (ticket, 1):
        router.withdraw(need, number)
    assert router.waiting() == router.waiting(one) == 1


@pytest.mark.parametrize("way", ["down", "removed", "shrunk"])
def test_what_still_runs_elsewhere_takes_no_slots(way: str) -> None:
    """Beside the reserve, requests on an upstream that is not there any more, or has less room, hold up nobody."""
    a, b = member("a", 20), member("b", 10)
    router = pool(a, b, share=0.1)
    line(router, Need("realtime", "m"))
    admitted(router)
    b.models = {}
    line(router, *[Need("bulk", "m")] * 20, now=1.0)
    admitted(router, 1.0)
    assert a.others >= 17
    b.check_passed(1.0, {"m": None})
    if way == "removed":
        router.upstreams.pop("a").removed = True
    elif way == "down":
        a.check_failed(1.0, "no", silent=False)
    else:
        a.move(Place("a", connections=1))
    for number in range(100, 120):
        router.arrive(Need("bulk", "m"), number, number, 2.0)
    admitted(router, 2.0)
    assert b.in_flight >= 8


def test_a_model_that_is_denied_for_ever() -> None:
    """However often it is denied, the pause has a bound; an answer for it ends that."""
    one = member("a", 4)
    for number in range(3000):
        one.judge(Verdict(Fate.MODEL), one.begin(0.0), "m", float(number))
    assert one.may_have("m")
    assert not one.serves("m")
    one.judge(GOOD, one.begin(0.0), "m", 3000.0)
    assert not one.may_have("m")
    one.check_passed(3000.0, {"m": None})
    assert one.serves("m")
