"""The supervisor: whatever dies is started again, whatever is stopped is gone, whoever is left behind is known."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from stoker.processes import Ledger, Recorded, sessions
from stoker.services import Service
from stoker.supervisor import Exit, Signals, Supervisor
from tasks.proc import look


@pytest.fixture
def signals() -> Iterator[Signals]:
    """Return this process's signals, taken over for the test."""
    with Signals() as taken:
        yield taken


@pytest.fixture
def supervisor(tmp_path: Path, signals: Signals) -> Iterator[Supervisor]:
    """Return a supervisor whose processes all end with the test."""
    made = Supervisor(Ledger(tmp_path / "processes.json"), tmp_path, signals, print)
    yield made
    made.stop(made.names(), 0)


def python(tmp_path: Path, script: str, name: str = "one") -> Service:
    """Return a service that runs a few lines of Python."""
    return Service(name, (sys.executable, "-c", script), tmp_path, dict(os.environ))


def tend_until(supervisor: Supervisor, reached: Callable[[], bool], seconds: float = 60) -> list[Exit]:
    """Look after the processes until something is reached; return what ended meanwhile."""
    exits: list[Exit] = []
    until = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < until
        exits += supervisor.tend(0.05)
    return exits


def test_what_dies_is_started_again_within_a_second(tmp_path: Path, supervisor: Supervisor) -> None:
    """A killed process wakes its supervisor, which starts it again after a fifth of a second, its log going on."""
    supervisor.start(python(tmp_path, "import os, time; print(os.getpid(), flush=True); time.sleep(60)"))
    first = supervisor.pid("one")
    assert first is not None
    tend_until(supervisor, lambda: str(first) in supervisor.said("one"))
    os.kill(first, signal.SIGKILL)
    killed = time.monotonic()
    exits: list[Exit] = []
    while supervisor.pid("one") in {None, first}:
        exits += supervisor.tend(600)
    assert time.monotonic() - killed < 60, "nothing woke it"
    assert [(gone.name, gone.how, gone.delay) for gone in exits] == [("one", "signal SIGKILL", 0.2)]
    tend_until(supervisor, lambda: str(supervisor.pid("one")) in supervisor.said("one"))
    assert str(first) not in supervisor.said("one")
    assert str(first) in (tmp_path / "one.log").read_text()


def test_an_engine_that_had_opened_is_started_again_without_a_growing_pause(tmp_path: Path, signals: Signals) -> None:
    """The pause is for what cannot start: a search for the prompt that kills engines is not held up by it."""
    opened: list[int] = []

    def ask(pid: int) -> bool:
        opened.append(pid)
        return True

    made = Supervisor(Ledger(tmp_path / "processes.json"), tmp_path, signals, print, ask)
    for name in ("engine", "other"):
        made.start(python(tmp_path, "import sys; sys.exit(1)", name))
    exits: list[Exit] = []
    try:
        exits += tend_until(made, lambda: len(opened) >= 3)
    finally:
        made.stop(made.names(), 0)
    assert {gone.delay for gone in exits if gone.name == "engine"} == {0.2}
    assert len(set(opened)) == len(opened)


def test_a_process_that_cannot_live_is_started_ever_more_slowly(tmp_path: Path, supervisor: Supervisor) -> None:
    """The pause doubles with each quick death, and the status and the last words are told."""
    supervisor.start(python(tmp_path, "import sys; sys.exit('no luck')"))
    exits: list[Exit] = []
    until = time.monotonic() + 60
    while len(exits) < 4 and time.monotonic() < until:
        exits += supervisor.tend(0.1)
    assert [gone.delay for gone in exits] == [0.2, 0.4, 0.8, 1.6]
    assert {gone.how for gone in exits} == {"status 1"}
    assert exits[-1].said == "no luck\n"


def test_children_of_a_dead_process_do_not_live_on(tmp_path: Path, supervisor: Supervisor) -> None:
    """Before a process is started again, everything that its predecessor started is gone."""
    script = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print('child', child.pid, flush=True)\n"
        "time.sleep(60)"
    )
    supervisor.start(python(tmp_path, script))
    tend_until(supervisor, lambda: "child" in supervisor.said("one"))
    leader, child = supervisor.pid("one"), int(supervisor.said("one").split()[1])
    assert leader is not None
    os.kill(leader, signal.SIGKILL)
    tend_until(supervisor, lambda: supervisor.pid("one") != leader)
    assert look(child) is None


def test_who_does_not_stop_is_killed(tmp_path: Path, supervisor: Supervisor) -> None:
    """A process that ignores SIGTERM gets its grace and is then ended, named."""
    stubborn = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    supervisor.start(python(tmp_path, stubborn, "stubborn"))
    supervisor.start(python(tmp_path, "import time; print('up', flush=True); time.sleep(60)", "obedient"))
    pids = [supervisor.pid(name) for name in supervisor.names()]
    tend_until(supervisor, lambda: all("up" in supervisor.said(name) for name in supervisor.names()))
    began = time.monotonic()
    assert supervisor.stop(["stubborn", "obedient", "unknown"], 3) == ["stubborn"]
    assert 3 <= time.monotonic() - began < 30
    assert all(look(pid) is None for pid in pids if pid is not None)
    assert supervisor.names() == []


def test_asking_again_cuts_the_grace_short(tmp_path: Path, supervisor: Supervisor, signals: Signals) -> None:
    """A second Ctrl-C does not wait for what will not end."""
    stubborn = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    supervisor.start(python(tmp_path, stubborn))
    tend_until(supervisor, lambda: "up" in supervisor.said("one"))
    os.kill(os.getpid(), signal.SIGINT)
    assert signals.asked == 1
    began = time.monotonic()
    assert supervisor.stop(["one"], 600) == ["one"]
    assert time.monotonic() - began < 30


def test_every_process_is_written_down_with_who_is_in_its_session(tmp_path: Path, supervisor: Supervisor) -> None:
    """The ledger names each leader, and after a while the others of its session; once stopped, nobody."""
    ledger = Ledger(tmp_path / "processes.json")
    script = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    supervisor.start(python(tmp_path, script))
    (written,) = ledger.read()
    assert (written.name, written.pid, written.alive) == ("one", supervisor.pid("one"), True)
    tend_until(supervisor, lambda: bool(ledger.read()[0].members))
    inside = {process.pid for process in sessions([written.pid])[written.pid]}
    assert {pid for pid, _ in ledger.read()[0].members} == inside - {written.pid}
    supervisor.stop(["one"], 1)
    assert ledger.read() == []


def test_a_full_disk_stops_nothing(tmp_path: Path, signals: Signals) -> None:
    """What cannot be written down is told once, written when there is room again, and hinders no start and no end."""

    class Full(Ledger):
        full = True

        def write(self, processes: Sequence[Recorded]) -> None:
            if self.full:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            super().write(processes)

    ledger = Full(tmp_path / "processes.json")
    said: list[str] = []
    supervisor = Supervisor(ledger, tmp_path, signals, said.append)
    supervisor.start(python(tmp_path, "import time; time.sleep(60)"))
    first = supervisor.pid("one")
    assert first is not None
    os.kill(first, signal.SIGKILL)
    tend_until(supervisor, lambda: supervisor.pid("one") not in {None, first})
    second = supervisor.pid("one")
    assert said == ["the list of processes cannot be written: No space left on device; going on"]
    ledger.full = False
    tend_until(supervisor, lambda: [it.pid for it in ledger.read()] == [second])
    ledger.full = True
    supervisor.stop(["one"], 1)
    assert second is not None
    assert look(second) is None
    assert len(said) == 2


def test_nothing_starts_that_is_not_written_down(tmp_path: Path) -> None:
    """A supervisor that is killed right after it made a process leaves none: it waits for a word that never comes."""
    script = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from stoker.processes import Ledger\n"
        "from stoker.services import Service\n"
        "from stoker.supervisor import Signals, Supervisor\n"
        "class Dying(Ledger):\n"
        "    def write(self, processes):\n"
        "        print(processes[0].pid, flush=True)\n"
        "        os._exit(9)\n"
        "folder = Path(sys.argv[1])\n"
        "with Signals() as signals:\n"
        "    supervisor = Supervisor(Dying(folder / 'x'), folder, signals, print)\n"
        "    supervisor.start(Service('one', ('touch', 'started'), folder, dict(os.environ)))\n"
    )
    root = Path(__file__).parents[2]
    died = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], cwd=root, capture_output=True, text=True, check=False
    )
    assert died.returncode == 9
    until = time.monotonic() + 30
    while look(int(died.stdout)) is not None and time.monotonic() < until:
        time.sleep(0.01)
    assert look(int(died.stdout)) is None
    assert not (tmp_path / "started").exists()


def test_a_process_gets_its_environment_and_nothing_of_the_terminal(tmp_path: Path, supervisor: Supervisor) -> None:
    """It leads its own session, reads nothing from the terminal, and sees exactly the environment it was given."""
    script = (
        "import json, os, sys, time\n"
        "seen = [os.getsid(0) == os.getpid(), sys.stdin.read(), os.environ.get('MARK'), os.getcwd()]\n"
        "print(json.dumps(seen), flush=True)\n"
        "time.sleep(60)"
    )
    environment = {"PATH": os.environ["PATH"], "MARK": "given"}
    supervisor.start(Service("one", (sys.executable, "-c", script), tmp_path, environment))
    tend_until(supervisor, lambda: "\n" in supervisor.said("one"))
    assert json.loads(supervisor.said("one")) == [True, "", "given", str(tmp_path.resolve())]
