"""The tasks' doorbell: what waits for a broker that hangs is bounded."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from stoker.settings import Settings
from tasks import doorbell
from tasks.app import make_app
from tasks.doorbell import Doorbell
from tests.tasks.inprocess import until


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.sqlite
def test_only_so_many_rings_wait(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many bulks are rung for while the broker hangs; and so many ids of ended jobs."""
    monkeypatch.setattr(doorbell, "_MOST_PENDING", 100)
    monkeypatch.setattr(doorbell, "_MOST_IDS", 100)
    hangs, sent = threading.Event(), []
    app = make_app(settings)

    def send_task(*_: object, **options: Any) -> None:
        sent.append(options["args"])
        hangs.wait(60)

    monkeypatch.setattr(app, "send_task", send_task)
    bell = Doorbell(app, settings)
    bell.collector("fake")
    until(lambda: sent)
    for nth in range(500):
        bell.bulk(f"bulk_{nth}")
        bell.ended([f"job_{nth}"])
    assert (len(bell._pending), len(bell._ended)) == (100, 100)
    hangs.set()
    until(lambda: len(sent) == 101)
