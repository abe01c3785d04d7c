"""The demo, with the fake engine: every step is shown, nothing is left, and what goes wrong is told."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from stoker import local
from stoker.processes import Ledger

pytestmark = [pytest.mark.journey, pytest.mark.timeout(600)]


def demo(data: Path) -> subprocess.CompletedProcess[str]:
    """Run the demo as `make demo` does."""
    command = [sys.executable, "-m", "stoker.demo", "--engine", "fake", "--data", str(data)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_demo_shows_every_step(tmp_path: Path) -> None:
    """An answer, 32 jobs with their batches, a verified webhook, the time of each step; status 0."""
    ran = demo(tmp_path / "demo")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert re.search(r"and answered: echo: What is the capital of France\?", ran.stdout)
    sizes = re.search(r"the collector formed (\d+) batches of ([\d, ]+) jobs", ran.stdout)
    assert sizes is not None
    assert sum(int(size) for size in sizes[2].split(", ")) == 32
    assert re.search(r"\d+ tokens/s", ran.stdout)
    assert "received job.succeeded, signature verified" in ran.stdout
    for step in ("start", "one job", "32 jobs", "webhook", "stop", "in all"):
        assert re.search(rf"^  {step} +\d+\.\d s$", ran.stdout, re.MULTILINE)
    assert Ledger(tmp_path / "demo/run/processes.json").read() == []


def test_a_demo_that_fails_says_why(tmp_path: Path) -> None:
    """Its data folder is in use: status 1, and the reason that `stoker up` gave."""
    with local._alone(tmp_path):
        ran = demo(tmp_path)
    assert ran.returncode == 1
    assert ran.stderr.startswith("stoker demo failed: ")
    assert "another `stoker up` uses" in ran.stderr
