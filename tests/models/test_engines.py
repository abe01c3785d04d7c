"""Engines: a name, its incarnations, the models it serves, and the models that are known."""

from __future__ import annotations

from models import engines
from models.db import Database
from tests.models import given


def test_an_engine_takes_work_once_it_is_live(database: Database) -> None:
    """Registered is not enough; draining and gone end it."""
    mine = given.engine(database, models=["a", "b"])
    with database.transaction() as tx:
        assert [row.id for row in engines.live(tx, 15.0)] == ["engine"]
        assert [(row.slots, row.reserve) for row in engines.live(tx, 15.0, "a")] == [(256, 1)]
        assert engines.live(tx, 15.0, "c") == []
        assert sorted(engines.names(tx, "engine")) == ["a", "b"]
        engines.leave(tx, mine, "draining")
        assert engines.live(tx, 15.0) == []
        engines.register(tx, mine)
        assert engines.live(tx, 15.0) == []


def test_a_silent_engine_is_not_live(database: Database) -> None:
    """It counts again with its next sign of life."""
    mine = given.engine(database)
    given.change(database, engines.table, seen_at=1.0)
    with database.transaction() as tx:
        assert engines.live(tx, 15.0) == []
        assert engines.seen(tx, mine)
        assert len(engines.live(tx, 15.0)) == 1


def test_an_old_incarnation_has_no_say(database: Database) -> None:
    """Once a newer process has taken the name, the older one can neither open, renew nor close it."""
    old, new = given.engine(database), given.engine(database)
    with database.transaction() as tx:
        assert engines.predecessor(tx, "engine") == new
        assert engines.predecessor(tx, "other") is None
        assert not engines.seen(tx, old)
        assert not engines.go_live(tx, old, 1, 0, {"stolen": None})
        engines.leave(tx, old, "gone")
        assert len(engines.live(tx, 15.0, "fake")) == 1
        assert engines.names(tx, "engine") == ["fake"]


def test_a_model_may_have_slots_of_its_own(database: Database) -> None:
    """Its engine then counts with those, and with their part of the reserve; other models share the engine's."""
    mine = given.engine(database)
    with database.transaction() as tx:
        served = {"shared": None, "few": 20, "one": 1, "none": 0}
        assert engines.go_live(tx, mine, 100, 10, served)
        found = {model: engines.live(tx, 15.0, model) for model in served}
        assert found["shared"] == engines.live(tx, 15.0) == [engines.Live("engine", 100, 10)]
        assert found["few"] == [engines.Live("engine", 20, 2, apart=True)]
        assert found["one"] == [engines.Live("engine", 1, 0, apart=True)]
        assert found["none"] == [engines.Live("engine", 0, 0, apart=True)]


def test_a_live_engine_may_change_what_it_offers(database: Database) -> None:
    """Slots, reserve and models at any time; not once its name is taken, and a change opens no closed engine."""
    mine = given.engine(database, models=["a"])
    with database.transaction() as tx:
        assert engines.change(tx, mine, 8, 1, {"b": 4, "c": None})
        assert engines.live(tx, 15.0, "a") == []
        assert [engine.slots for model in "bc" for engine in engines.live(tx, 15.0, model)] == [4, 8]
        engines.leave(tx, mine, "draining")
        assert engines.change(tx, mine, 16, 1, {"b": None})
        assert engines.live(tx, 15.0) == []
    given.engine(database, models=["a"])
    with database.transaction() as tx:
        assert not engines.change(tx, mine, 1, 0, {"stolen": None})
        assert engines.names(tx, "engine") == ["a"]


def test_an_engine_that_restarts_serves_what_it_says_now(database: Database) -> None:
    """Its former models are dropped, also when it serves none at all."""
    given.engine(database, models=["old"])
    given.engine(database, models=["new"])
    with database.reading() as tx:
        assert engines.names(tx, "engine") == ["new"]
    given.engine(database, models=[])
    with database.reading() as tx:
        assert engines.names(tx, "engine") == []


def test_a_model_stays_known_until_it_is_forgotten(database: Database) -> None:
    """Whether or not anything serves it; remembering it again brings it back, with what is known now."""
    with database.transaction() as tx:
        engines.remember(tx, "m", None, None)
        engines.remember(tx, "m", 4096, "folder")
        engines.remember(tx, "n", 1, None)
        assert (engines.known(tx)["m"].max_model_len, engines.known(tx)["m"].tokenizer) == (4096, "folder")
        engines.forget(tx, ["m"])
        assert list(engines.known(tx)) == ["n"]
        engines.remember(tx, "m", 8, None)
        assert engines.known(tx)["m"].max_model_len == 8
