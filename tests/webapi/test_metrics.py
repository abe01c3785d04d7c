"""The page of metrics over several processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from webapi import metrics


def test_gauges_of_processes_that_have_ended_are_forgotten(tmp_path: Path) -> None:
    """Also of one that was killed; what it counted stays, and so does what living ones say."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    dead = [f"gauge_livemostrecent_{ended.pid}.db", f"gauge_liveall_{ended.pid}.db"]
    kept = [
        f"counter_{ended.pid}.db",
        f"histogram_{ended.pid}.db",
        f"gauge_livemostrecent_{os.getpid()}.db",
        "gauge_livesum_x.db",
    ]
    for name in [*dead, *kept]:
        (tmp_path / name).touch()
    metrics.forget_dead(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(kept)
