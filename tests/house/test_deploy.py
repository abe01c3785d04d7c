"""Procfile, docker-compose.yml and `stoker up` run the same processes: no Docker engine is needed to see that."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from stoker.health import PARTS
from stoker.services import commands
from stoker.settings import Settings, load

ROOT = Path(__file__).parents[2]
OURS = ("web", "collector", "worker", "bulk", "engine", "beat")


@pytest.fixture(scope="module")
def procfile() -> dict[str, list[str]]:
    """Return the Procfile's commands, with the defaults of their variables."""
    lines = (ROOT / "Procfile").read_text().splitlines()
    found = dict(line.split(": ", 1) for line in lines if line)
    return {name: shlex.split(re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)) for name, text in found.items()}


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    """Return the services of docker-compose.yml."""
    found: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    return found


def test_the_procfile_runs_what_up_runs(procfile: dict[str, list[str]]) -> None:
    """Same processes, same commands; and the release is the migration."""
    assert procfile["release"] == ["stoker", "db", "upgrade"]
    assert {name: tuple(command) for name, command in procfile.items() if name != "release"} == commands(load())


def test_compose_runs_what_the_procfile_runs(procfile: dict[str, list[str]], compose: dict[str, Any]) -> None:
    """Same processes, same commands, and the three that a Procfile leaves to others."""
    assert set(compose) == {*OURS, "migrate", "postgres", "redis"}
    assert {name: compose[name]["command"] for name in OURS} == {name: procfile[name] for name in OURS}
    assert compose["migrate"]["command"] == procfile["release"]


@pytest.mark.parametrize("name", [*OURS, "postgres", "redis"])
def test_every_container_has_a_healthcheck(name: str, compose: dict[str, Any]) -> None:
    """Ours ask `stoker health` for the part that they are."""
    asked = compose[name]["healthcheck"]["test"]
    assert asked[0] == "CMD"
    if name in OURS:
        assert asked[1:] == ["stoker", "health", name]
        assert name in PARTS


@pytest.mark.parametrize("name", OURS)
def test_nothing_starts_before_the_tables_and_redis(name: str, compose: dict[str, Any]) -> None:
    """Each of ours waits for the migration to be done and Redis to answer; the migration for PostgreSQL."""
    waits = compose[name]["depends_on"]
    assert waits["migrate"]["condition"] == "service_completed_successfully"
    assert waits["redis"]["condition"] == "service_healthy"
    assert compose["migrate"]["depends_on"]["postgres"]["condition"] == "service_healthy"


def test_the_engine_gets_a_gpu_and_time_to_drain(compose: dict[str, Any]) -> None:
    """One NVIDIA GPU is reserved, and a stop waits longer than the drain takes."""
    (device,) = compose["engine"]["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    grace = int(compose["engine"]["stop_grace_period"].removesuffix("s"))
    assert grace > load().drain_timeout


@pytest.mark.parametrize("name", OURS)
def test_the_settings_of_compose_are_settings(name: str, compose: dict[str, Any]) -> None:
    """Each STOKER_ variable is one that there is; database and broker are the ones beside it; defaults are valid."""
    given = compose[name]["environment"]
    ours = {key.removeprefix("STOKER_").lower(): value for key, value in given.items() if key.startswith("STOKER_")}
    assert ours.keys() <= Settings.model_fields.keys()
    plain = {key: re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", value) for key, value in ours.items()}
    settings = load(**{key: value for key, value in plain.items() if value})
    assert settings.database.startswith("postgresql+psycopg://stoker:stoker@postgres:5432/")
    assert settings.redis_url.startswith("redis://redis:6379/")


@pytest.mark.parametrize("name", OURS)
def test_all_containers_have_the_key_of_secrets(name: str, compose: dict[str, Any]) -> None:
    """What the web server seals, the workers open: each gets the key from the one variable, and none stands here."""
    assert compose[name]["environment"]["STOKER_SECRET_KEY"] == "${STOKER_SECRET_KEY:-}"


def test_data_survives_the_containers(compose: dict[str, Any]) -> None:
    """PostgreSQL, Redis and the downloaded models lie on volumes that are declared."""
    declared = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["volumes"].keys()
    used = {compose[name]["volumes"][0].partition(":")[0] for name in ("postgres", "redis", "engine")}
    assert used == declared


@pytest.mark.parametrize("name", ["migrate", *OURS])
def test_what_is_built_is_there(name: str, compose: dict[str, Any]) -> None:
    """Every Dockerfile that is named exists and copies only what exists and what .dockerignore lets through."""
    dockerfile = (ROOT / compose[name]["build"]["dockerfile"]).read_text()
    copied = [
        word for line in re.findall(r"^COPY (?!--from)(.*) \S+$", dockerfile, re.MULTILINE) for word in line.split()
    ]
    let_through = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied
    assert set(copied) <= let_through
    assert all((ROOT / path).exists() for path in copied)


def test_the_images_run_the_same_commands(procfile: dict[str, list[str]]) -> None:
    """The default command of an image is the Procfile's."""
    web = re.findall(r"^CMD (.*)$", (ROOT / "deploy/Dockerfile").read_text(), re.MULTILINE)[-1]
    engine = re.findall(r"^CMD (.*)$", (ROOT / "deploy/Dockerfile.engine").read_text(), re.MULTILINE)[-1]
    assert yaml.safe_load(web) == procfile["web"]
    text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", yaml.safe_load(engine)[-1].removeprefix("exec "))
    assert shlex.split(text) == procfile["engine"]
