"""The start of an engine's process: what it does about another one under its name, and about whatever goes wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest
import sqlalchemy as sa

from models import engines
from models.db import Database, now
from stoker.settings import Settings
from tasks import engine_process, reaper
from tasks.engines.base import EngineFailure


@pytest.fixture
def other() -> Iterator[engines.Incarnation]:
    """Return a living process as an incarnation of the engine."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    mine = reaper.Incarnation("engine", "run_1", "fake", "", process.pid, process.pid, "")
    yield replace(mine, host=reaper.socket.gethostname(), process_start=reaper.process_start(process.pid))
    process.kill()
    process.wait()


@pytest.fixture
def quick(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Return settings by which an engine is silent after a moment."""
    monkeypatch.setattr(engine_process, "_PATIENCE", 0.2)
    return settings.model_copy(update={"engine_gone_after": 0.3})


def note(database: Database, incarnation: engines.Incarnation, **values: object) -> None:
    """Store an incarnation as it would have, then change it."""
    with database.transaction() as tx:
        engines.register(tx, incarnation)
        engines.go_live(tx, incarnation, 8, 1, {"fake": None})
        tx.execute(sa.update(engines.table).values(seen_at=now() + 60, **values))


def test_an_engine_that_is_well_is_not_taken_over(
    database: Database, quick: Settings, other: engines.Incarnation
) -> None:
    """A second process under its name gives up in one line; the first one and its jobs are left alone."""
    note(database, other)
    with pytest.raises(EngineFailure, match=f"already runs as process {other.pid} on"):
        engine_process.take_over(database, quick)
    assert reaper.may_live(other)


@pytest.mark.parametrize("how", ["frozen", "left", "dead", "elsewhere"])
def test_a_leftover_is_taken_over(database: Database, quick: Settings, other: engines.Incarnation, how: str) -> None:
    """One that is silent, has left, is dead, or is silent on another machine, holds nothing up."""
    if how == "dead":
        os.kill(other.pid, 9)
        os.waitpid(other.pid, 0)
    if how == "elsewhere":
        other = replace(other, host="elsewhere")
    note(database, other, **({"state": "gone"} if how == "left" else {}))
    if how in {"frozen", "elsewhere"}:
        with database.transaction() as tx:
            tx.execute(sa.update(engines.table).values(seen_at=now() - 1))
    mine, models = engine_process.take_over(database, quick)
    assert models == set()
    with database.reading() as tx:
        found = engines.predecessor(tx, "engine")
    assert found == mine
    assert (how == "elsewhere") == reaper.may_live(other)
