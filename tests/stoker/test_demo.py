"""The demo ends what it began, however it ends, and keeps away from what else the person runs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from queue import SimpleQueue

import pytest

from stoker import demo
from stoker.processes import Ledger, Recorded
from stoker.unwinding import unwinding_at_signals
from tasks.proc import look
from tests.journeys.running import left_of

STUBBORN = "import signal, time; signal.signal(2, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"


def test_another_service_of_the_person_is_left_alone() -> None:
    """Where that one is does not reach the demo's own; what is said about engine and model does."""
    other = {
        "STOKER_DATABASE_URL": "postgresql://db/jobs",
        "STOKER_REDIS_URL": "redis://db",
        "STOKER_WEBHOOK_SECRET": "whsec_x",
        "STOKER_HOST": "0.0.0.0",  # noqa: S104  # not listened on
    }
    told = demo.environment({"PATH": "/bin", "STOKER_DTYPE": "float32", **other})
    assert told == {"PATH": "/bin", "STOKER_DTYPE": "float32", "STOKER_WEBHOOK_ALLOW_CIDRS": "127.0.0.1/32"}


def test_a_service_that_does_not_stop_is_killed_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A `stoker up` that has to be killed leaves its processes: the demo ends them as well."""
    monkeypatch.setattr(demo, "STOP_WITHIN", 0.2)
    command = [sys.executable, "-c", STUBBORN]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as main,
        subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) as engine,
    ):
        assert main.stdout is not None
        assert main.stdout.readline() == "up\n"
        (tmp_path / "run").mkdir()
        found = look(engine.pid)
        assert found is not None
        Ledger(tmp_path / "run/processes.json").write([Recorded("engine", engine.pid, found.start)])
        up = demo.Up.__new__(demo.Up)
        up.data, up.url, up._process, up._said = tmp_path, "", main, SimpleQueue()
        with pytest.raises(demo.DemoFailed, match="did not stop"):
            up.stop()
        assert engine.wait(60) == -signal.SIGKILL
    assert main.returncode == -signal.SIGKILL


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_unwinds_once(number: signal.Signals) -> None:
    """It ends the program with the status that shells expect, and does not break off the unwinding."""
    before = signal.getsignal(number)
    unwound = []

    def work() -> None:
        with unwinding_at_signals():
            try:
                os.kill(os.getpid(), number)
            finally:
                os.kill(os.getpid(), number)
                unwound.append(number)

    with pytest.raises(SystemExit) as ended:
        work()
    assert unwound == [number]
    assert ended.value.code == 128 + number
    assert signal.getsignal(number) == before


@pytest.mark.journey
@pytest.mark.timeout(300)
def test_a_demo_that_is_terminated_leaves_nothing(tmp_path: Path) -> None:
    """SIGTERM after its terminal is gone: the service is stopped all the same."""
    command = [sys.executable, "-m", "stoker.demo", "--engine", "fake", "--data", str(tmp_path / "demo")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert process.stdout is not None
        assert any("started:" in line for line in process.stdout)
        assert left_of(tmp_path / "demo")
        process.stdout.close()
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) != 0
    assert left_of(tmp_path / "demo") == []
