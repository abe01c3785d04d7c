"""What every Celery process of ours does at its start."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

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
