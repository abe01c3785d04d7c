"""The systemd units run what `stoker up` runs, with few rights: systemd's own program reads them."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from stoker.running import CANNOT_START
from stoker.services import commands
from stoker.settings import Settings, load
from tests.house.deploying import ROOT, run

UNITS = ROOT / "deploy/systemd"
PARTS = ("web", "collector", "worker", "bulk", "beat")
SERVICES = [*(f"stoker-{part}.service" for part in PARTS), "stoker-migrate.service", "stoker-engine@.service"]


def lines(unit: str, key: str) -> list[str]:
    """Return the values of a key of a unit, in their order."""
    return re.findall(rf"^{key}=(.*)$", (UNITS / unit).read_text(), flags=re.MULTILINE)


def test_every_unit_is_known() -> None:
    """One a process, one for the tables, and a target for all."""
    assert sorted(path.name for path in UNITS.iterdir() if path.suffix in {".service", ".target"}) == sorted(
        [*SERVICES, "stoker.target"]
    )


def test_the_units_run_what_up_runs() -> None:
    """Same processes, same commands; the engine's with the instance's name."""
    for part, command in commands(load()).items():
        (told,) = lines(f"stoker-{part}.service" if part in PARTS else "stoker-engine@.service", "ExecStart")
        plain = told.replace("%%", "%").replace("${STOKER_ENGINE_THREADS}", "64").replace("engine.%i", "engine.engine")
        assert shlex.split(plain) == ["/opt/stoker/bin/" + command[0], *command[1:]]
    assert lines("stoker-migrate.service", "ExecStart") == ["/opt/stoker/bin/stoker db upgrade"]
    # A long step is not ended in the middle, and its URL may be another one than the service's.
    assert lines("stoker-migrate.service", "TimeoutStartSec") == ["infinity"]
    assert lines("stoker-migrate.service", "EnvironmentFile")[-1] == "-/etc/stoker/migrate.env"


def test_what_the_units_set_are_settings() -> None:
    """In the units and in the examples of the environment's files."""
    texts = [(UNITS / name).read_text() for name in [*SERVICES, "stoker.env.example", "engine.env.example"]]
    named = set(re.findall(r"\bSTOKER_(\w+)=", "\n".join(texts)))
    assert {"DATABASE_URL", "REDIS_URL", "SECRET_KEY", "ENGINE_NAME", "METRICS_PORT"} <= named
    assert {name.lower() for name in named} <= Settings.model_fields.keys()
    ports = [port for name in SERVICES for port in re.findall(r"STOKER_METRICS_PORT=(\d+)", (UNITS / name).read_text())]
    assert len(set(ports)) == len(ports) == 3


def test_an_engine_gets_time_to_drain_and_stays_down_where_a_start_mends_nothing() -> None:
    """Longer than STOKER_DRAIN_TIMEOUT; only its own process is asked, and what it leaves is killed."""
    (stop,) = lines("stoker-engine@.service", "TimeoutStopSec")
    assert int(stop) > load().drain_timeout + 15
    assert lines("stoker-engine@.service", "RestartPreventExitStatus") == [str(CANNOT_START)]
    assert lines("stoker-engine@.service", "KillMode") == ["mixed"]


@pytest.mark.parametrize("part", PARTS)
def test_a_database_that_is_away_stops_nobody_for_good(part: str) -> None:
    """Processes are started again for ever, and wait for the tables without depending on them."""
    unit = f"stoker-{part}.service"
    assert lines(unit, "Restart") == ["always"]
    assert lines(unit, "StartLimitIntervalSec") == ["0"]
    assert lines(unit, "Requires") == []
    assert "stoker-migrate.service" in lines(unit, "After")[0]


def test_the_target_starts_and_stops_all() -> None:
    """It wants each, and each is part of it; engines join as they are enabled."""
    wanted = set(lines("stoker.target", "Wants")[0].split())
    assert wanted == set(SERVICES) - {"stoker-engine@.service"}
    assert all(lines(unit, "PartOf") == ["stoker.target"] for unit in SERVICES)
    assert lines("stoker-engine@.service", "WantedBy") == ["stoker.target"]


@pytest.fixture(scope="module")
def analyze(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the units as they would be installed, their programs those of this environment."""
    assert shutil.which("systemd-analyze"), (
        "systemd-analyze, which reads the units, is not here: apt-get install systemd"
    )
    folder = tmp_path_factory.mktemp("units")
    for path in UNITS.iterdir():
        text = path.read_text().replace("/opt/stoker/bin/", f"{Path(sys.executable).parent}/")
        (folder / path.name).write_text(text)
    return folder


def test_systemd_understands_every_line(analyze: Path) -> None:
    """`systemd-analyze verify`: no unknown key, no value that it would ignore, no program that is not there."""
    ran = run("systemd-analyze", "verify", "--man=no", *(analyze / name for name in [*SERVICES, "stoker.target"]))
    ours = [line for line in ran.stderr.splitlines() if "stoker" in line]
    assert (ran.returncode, ours) == (0, [])


@pytest.mark.parametrize("unit", SERVICES)
def test_systemd_counts_few_rights(unit: str, analyze: Path) -> None:
    """`systemd-analyze security`, of 10 (all rights): at most 2; an engine, which needs its devices, 3."""
    most = 30 if "@" in unit else 20
    ran = run("systemd-analyze", "security", "--no-pager", "--offline=true", f"--threshold={most}", analyze / unit)
    assert ran.returncode == 0, ran.stdout[-200:] + ran.stderr
