"""`/v1/overview`: the queue, the engines and what was measured, to whom it may be told."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from flask.testing import FlaskClient

from models import engines, keys, samples
from models.bulks import PAUSED
from models.db import Database
from models.engines import Incarnation
from models.errors import DatabaseUnavailable
from models.measures import Measures
from tests.models import given
from tests.webapi.test_auth import bearer, expire_memory
from webapi.context import Context

BEGIN = 1_800_000_000
"""Seconds since 1970 at which a stretch of every width begins."""


def overview(client: FlaskClient, headers: dict[str, str] | None = None, **query: Any) -> Any:
    """Return the document."""
    answer = client.get("/v1/overview", query_string=query, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json


def measured(database: Database, mine: Incarnation, ago: float = 0.0, **values: Any) -> None:
    """Store what an engine measured so many seconds ago."""
    counters = {name: Counter(value) if isinstance(value, dict) else value for name, value in values.items()}
    with database.transaction() as tx:
        for width in samples.WIDTHS:
            at = samples.start(width, samples.clock(tx) - ago)
            samples.write(tx, mine, width, at, {("fake", "bulk"): Measures(**counters)})


def test_an_idle_service(client: FlaskClient) -> None:
    """Nothing queued, no engine, nothing measured: empty lists, and a series of nothing."""
    told = overview(client)
    assert (told["object"], told["minutes"]) == ("overview", 60)
    assert told["queue"] == told["owners"] == told["engines"] == told["batches"] == told["errors"] == []
    none = {"p50": None, "p95": None}
    nothing = dict.fromkeys(("jobs", "failed", "prompt_tokens", "completion_tokens"), 0)
    assert told["rates"] == nothing | {"wait": none, "latency": none, "busy": None}
    series = told["series"]
    assert len(series["at"]) == len(series["jobs"]) == len(series["wait"]["p95"]) == 359
    assert set(series["jobs"]) == {0}
    assert set(series["wait"]["p95"]) == {None}
    assert series["at"][-1] + 10 <= told["at"]


def test_the_queue_is_told_by_model_lane_and_owner(client: FlaskClient, database: Database) -> None:
    """How many wait and run, how long the first in line has waited, and whose they are, the most first."""
    mine = given.engine(database)
    batch = given.running(database, mine, 2)
    given.submitted(database, 3, owner="bob", lane="bulk")
    given.submitted(database, 1, lane="bulk")
    told = overview(client)
    bulk, standard = told["queue"]
    assert (bulk["lane"], bulk["queued"], bulk["running"]) == ("bulk", 4, 0)
    assert bulk["oldest_seconds"] >= 0
    assert (standard["lane"], standard["queued"], standard["running"], standard["oldest_seconds"]) == (
        "standard",
        0,
        2,
        None,
    )
    assert told["owners"] == [
        {"owner": "bob", "waiting": 3, "running": 0},
        {"owner": "alice", "waiting": 1, "running": 2},
    ]
    assert told["batches_running"] == 1
    assert [(one["id"], one["engine"], one["jobs"]) for one in told["batches"]] == [(batch.id, "engine", 2)]


def test_engines_are_told_with_their_state(client: FlaskClient, database: Database) -> None:
    """Also one that gives no sign of life; one that has gone for good is forgotten after an hour."""
    mine, _, _ = (given.engine(database, name) for name in ("a", "silent", "old"))
    upstream = {"url": "http://gpu1:8000", "healthy": True, "in_flight": 1, "limit": 8, "waiting": 0}
    with database.transaction() as tx:
        engines.tell(tx, mine, json.dumps({"upstreams": [upstream]}))
        row = engines.table.c
        tx.execute(sa.update(engines.table).where(row.id == "silent").values(seen_at=row.seen_at - 600))
        tx.execute(sa.update(engines.table).where(row.id == "old").values(seen_at=row.seen_at - 7200, state="gone"))
    measured(database, mine, busy=30.0, open=60.0)
    found = {one["name"]: one for one in overview(client)["engines"]}
    assert found.keys() == {"a", "silent"}
    assert (found["a"]["state"], found["a"]["busy"], found["a"]["models"]) == ("live", 0.5, ["fake"])
    assert found["a"]["upstreams"] == [upstream]
    assert found["silent"]["state"] == "silent"
    assert found["silent"]["silent_seconds"] > 500


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Set the clock of samples to so many seconds behind the beginning of a stretch of any width."""

    def _set(seconds: float) -> None:
        monkeypatch.setattr(samples, "clock", lambda _tx: BEGIN + seconds)

    _set(5.0)
    return _set


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("minutes", [15, 60, 360, 1440, 10080])
def test_what_was_measured_becomes_series(client: FlaskClient, database: Database, minutes: int) -> None:
    """Rates, percentiles, batch sizes, padding and errors, over each window; what is older is not in it."""
    mine = given.engine(database)
    values = {"ended": {"succeeded": 30, "failed": 10}, "tokens": {"completion": 600}, "latency": {0: 40}}
    measured(database, mine, 10.0, **values, errors={"timeout": 10}, sizes={8: 5}, padding=1.0, batches=5)
    measured(database, mine, minutes * 60 + 700, ended={"succeeded": 1000}, sizes={9: 9})
    told = overview(client, minutes=minutes)
    series = told["series"]
    assert sum(series["jobs"]) * series["step"] == pytest.approx(40, rel=0.01)
    assert sum(series["completion_tokens"]) * series["step"] == pytest.approx(600, rel=0.01)
    assert [one for one in series["latency"]["p95"] if one is not None] == [pytest.approx(1.09, abs=0.1)]
    assert told["sizes"] == [{"jobs": 8, "batches": 5}]
    assert (told["padding"], told["errors"]) == (0.2, [{"code": "timeout", "jobs": 10}])
    assert told["rates"]["jobs"] == pytest.approx(40 / 65)
    assert told["rates"]["latency"] == {key: series["latency"][key][-1] for key in ("p50", "p95")}


@pytest.mark.parametrize(
    ("minutes", "step", "lasted", "shown"),
    [(15, 10, 9.9, False), (360, 300, 59.0, False), (360, 300, 120.0, True), (10080, 1800, 90.0, True)],
)
def test_a_stretch_that_has_only_begun_is_no_dip(
    client: FlaskClient,
    database: Database,
    clock: Callable[[float], None],
    minutes: int,
    step: int,
    lasted: float,
    shown: bool,
) -> None:
    """A steady rate stays steady to the end of the series: the newest stretch is divided by what it has lasted."""
    mine = given.engine(database)
    width = min(step, 300)
    for ago in range(width, 3 * step + 1, width):
        clock(0.0)
        measured(database, mine, ago, ended={"succeeded": 2 * width}, sizes={1: 1})
    clock(lasted)
    measured(database, mine, ended={"succeeded": round(2 * lasted)}, sizes={2: 1})
    told = overview(client, minutes=minutes)
    series = told["series"]
    assert series["jobs"][-3:] == pytest.approx([2.0] * 3, rel=0.02)
    assert series["at"][-1] == (BEGIN if shown else BEGIN - step)
    assert told["sizes"][-1] == {"jobs": 2, "batches": 1}


@pytest.mark.usefixtures("clock")
def test_what_comes_later_is_added(client: FlaskClient, context: Context, database: Database) -> None:
    """A stretch that grows is read again, one that is past is not: the sum stays right, of several engines too."""
    mine, other = given.engine(database), given.engine(database, "other")
    measured(database, mine, 300, ended={"succeeded": 7})
    measured(database, mine, 10, ended={"succeeded": 1})
    measured(database, other, 10, ended={"succeeded": 5})
    series = overview(client)["series"]
    assert sum(series["jobs"]) * series["step"] == pytest.approx(13, rel=0.01)
    measured(database, mine, 10, ended={"succeeded": 3})
    measured(database, mine, 300, ended={"succeeded": 1000})  # nobody writes there: it shows what is read again
    context.counts.past[60].until = 0.0
    series = overview(client)["series"]
    assert sum(series["jobs"]) * series["step"] == pytest.approx(15, rel=0.01)


@pytest.mark.usefixtures("clock")
def test_a_longer_window_that_could_not_be_read_is_read_the_next_time(
    client: FlaskClient, context: Context, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a shorter window knows does not stand for what is older."""
    measured(database, given.engine(database), 5 * 86400, ended={"succeeded": 7}, sizes={7: 1})
    assert overview(client, minutes=360)["sizes"] == []
    with monkeypatch.context() as patch:

        def away(*_: object) -> None:
            raise DatabaseUnavailable

        patch.setattr(samples, "read", away)
        assert client.get("/v1/overview", query_string={"minutes": 10080}).status_code == 503
    context.counts.past[10080].until = 0.0
    assert overview(client, minutes=10080)["sizes"] == [{"jobs": 7, "batches": 1}]


def test_what_is_paused_has_no_age(client: FlaskClient, database: Database) -> None:
    """A bulk that its owner has paused for days is no queue that is late."""
    given.submitted(database, lane=PAUSED)
    (row,) = overview(client)["queue"]
    assert (row["lane"], row["queued"], row["oldest_seconds"]) == ("paused", 1, None)


def test_others_see_what_is_theirs(client: FlaskClient, context: Context, database: Database) -> None:
    """Without the scope admin: only one's own jobs, nothing of engines and other owners."""
    with database.transaction() as tx:
        admin, ada = (keys.create(tx, "ada", scopes=[scope]).secret for scope in ("admin", "read"))
    expire_memory(context)
    given.engine(database)
    given.submitted(database, 2, owner="ada")
    given.submitted(database, 3, owner="bob")
    told = overview(client, bearer(ada))
    assert [(row["lane"], row["queued"]) for row in told["queue"]] == [("standard", 2)]
    assert [name for name, value in told.items() if value is None] == [
        name for name in told if name not in {"object", "at", "minutes", "queue"}
    ]
    assert overview(client, bearer(admin))["owners"][0]["owner"] == "bob"


def test_a_window_that_is_not_offered_is_refused(client: FlaskClient) -> None:
    """The error names those that are."""
    answer = client.get("/v1/overview?minutes=7")
    assert answer.status_code == 422
    assert "10080" in answer.text
