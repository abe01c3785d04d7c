"""What every Celery process of ours does at its start."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from stoker.settings import load
from tasks.app import make_app
from tests import servers

ROOT = Path(__file__).parents[2]
ASK = """
import sys, httpx
from tasks import app, metrics
metrics.batches_ended.labels("finished").inc()
app._show_metrics()
try:
    print(httpx.get(sys.argv[1]).text)
except httpx.ConnectError:
    print("nobody")
"""


@pytest.mark.parametrize("shared", [False, True])
def test_a_worker_shows_its_own_metrics_where_nobody_else_does(shared: bool, tmp_path: Path) -> None:
    """On the port that the settings name; not when the web server's page adds all processes up."""
    port = servers.free_port()
    more = {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)} if shared else {}
    said = subprocess.run(
        [sys.executable, "-c", ASK, f"http://127.0.0.1:{port}/metrics"],
        cwd=ROOT,
        env=os.environ | {"STOKER_METRICS_PORT": str(port), "STOKER_DATA": str(tmp_path), **more},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert said.strip() == "nobody" if shared else 'stoker_batches_ended_total{state="finished"} 1.0' in said


def test_sweeps_bear_clocks_that_differ() -> None:
    """A collector whose clock is minutes ahead of beat's still takes them: without sweeps nothing lost is found."""
    app = make_app(load())
    options = app.conf.beat_schedule["sweep"]["options"]
    told = app.amqp.as_task_v2("id", "tasks.sweeper.sweep", **options).headers["expires"]
    assert datetime.fromisoformat(told) > datetime.now(UTC) + timedelta(minutes=4)
