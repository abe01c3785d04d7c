"""Procfile, docker-compose.yml, images and `stoker up` run the same processes: no Docker engine is needed to see that.

Docker Compose's own program reads the file, and hadolint the Dockerfiles. Nothing is built or started.
"""

from __future__ import annotations

import json
import platform
import re
import runpy
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from stoker.health import PARTS
from stoker.services import commands
from stoker.settings import Settings, load
from tests.house.deploying import ROOT, done, run, tools

pytestmark = pytest.mark.timeout(600)  # the first one downloads what checks

COMMON = ("web", "collector", "worker", "bulk", "beat")
ENGINES = {"gpu": "engine", "cpu": "engine-cpu", "upstream": "engine-upstream"}
"""The engine of each profile."""
OURS = (*COMMON, *ENGINES.values())
IMAGES = ("Dockerfile", "Dockerfile.engine", "Dockerfile.engine-cpu")


def procfile(engine: str = "engine") -> dict[str, list[str]]:
    """Return the Procfile's commands, with the defaults of their variables, for an engine of a name."""
    lines = (ROOT / "Procfile").read_text().replace("${STOKER_ENGINE_NAME:-engine}", engine).splitlines()
    found = dict(line.split(": ", 1) for line in lines if line)
    return {name: shlex.split(re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)) for name, text in found.items()}


@pytest.fixture(scope="module")
def env_file(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return an .env for each profile, as deploy/compose-env.sh makes it."""
    folder = tmp_path_factory.mktemp("env")
    for profile in ENGINES:
        done("sh", ROOT / "deploy/compose-env.sh", profile, folder / profile)
    return {profile: folder / profile for profile in ENGINES}


def composed(env_file: Path) -> dict[str, Any]:
    """Return what Docker Compose makes of the file: variables filled in, anchors resolved, one profile's services."""
    told = done(
        tools() / "docker-compose", "-f", ROOT / "docker-compose.yml", "--env-file", env_file, "config", "--format=json"
    )
    found: dict[str, Any] = json.loads(told)
    return found


@pytest.fixture(scope="module")
def profiles(env_file: dict[str, Path]) -> dict[str, dict[str, Any]]:
    """Return what Docker Compose makes of each profile."""
    return {profile: composed(path) for profile, path in env_file.items()}


@pytest.fixture(scope="module")
def compose(profiles: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the services of all profiles."""
    return {name: service for made in profiles.values() for name, service in made["services"].items()}


def test_elsewhere_than_on_x86_64_it_is_said_what_cannot_be_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line and a status, before anything is downloaded: nothing is skipped in silence."""
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    with pytest.raises(SystemExit, match="for Linux on x86_64 alone; what checks deploy/ cannot run on linux aarch64"):
        runpy.run_path(str(ROOT / "requirements/deploy_tools.py"), run_name="__main__")


def test_the_procfile_runs_what_up_runs() -> None:
    """Same processes, same commands; and the release is the migration."""
    ran = procfile()
    assert ran["release"] == ["stoker", "db", "upgrade"]
    assert {name: tuple(command) for name, command in ran.items() if name != "release"} == commands(load())


@pytest.mark.parametrize("profile", ENGINES)
def test_compose_runs_what_the_procfile_runs(profile: str, profiles: dict[str, dict[str, Any]]) -> None:
    """Same processes, same commands, the engine of the profile, and the three that a Procfile leaves to others."""
    services, engine = profiles[profile]["services"], ENGINES[profile]
    assert set(services) == {*COMMON, engine, "migrate", "postgres", "redis"}
    ran = procfile(engine)
    assert {name: services[name]["command"] for name in COMMON} == {name: ran[name] for name in COMMON}
    assert services[engine]["command"] == ran["engine"]
    assert services[engine]["environment"]["STOKER_ENGINE_NAME"] == engine
    assert services["migrate"]["command"] == ran["release"]


@pytest.mark.parametrize("name", [*OURS, "postgres", "redis"], ids="container-{}".format)
def test_every_container_has_a_healthcheck(name: str, compose: dict[str, Any]) -> None:
    """Ours ask `stoker health` for the part that they are."""
    asked = compose[name]["healthcheck"]["test"]
    assert asked[0] == "CMD"
    if name in OURS:
        assert asked[1:] == ["stoker", "health", name.partition("-")[0]]
        assert asked[-1] in PARTS


@pytest.mark.parametrize("name", OURS)
def test_nothing_starts_before_the_tables_and_redis(name: str, compose: dict[str, Any]) -> None:
    """Each of ours waits for the migration to be done and Redis to answer; the migration for PostgreSQL."""
    waits = compose[name]["depends_on"]
    assert waits["migrate"]["condition"] == "service_completed_successfully"
    assert waits["redis"]["condition"] == "service_healthy"
    assert compose["migrate"]["depends_on"]["postgres"]["condition"] == "service_healthy"


@pytest.mark.parametrize("name", ENGINES.values())
def test_an_engine_gets_its_gpu_and_time_to_drain(name: str, compose: dict[str, Any]) -> None:
    """One NVIDIA GPU where it is for one, and a stop waits longer than the drain takes."""
    reserved = compose[name].get("deploy", {}).get("resources", {}).get("reservations", {}).get("devices", [])
    gpu = [{"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}]
    assert reserved == (gpu if name == "engine" else [])
    assert float(compose[name]["stop_grace_period"].removesuffix("s")) > load().drain_timeout
    assert compose[name]["hostname"] == name


@pytest.mark.parametrize("name", ["migrate", *OURS])
def test_the_settings_of_compose_are_settings(name: str, compose: dict[str, Any]) -> None:
    """Each STOKER_ variable is one that there is, new secrets are valid, database and broker are those beside it."""
    given = compose[name]["environment"]
    ours = {key.removeprefix("STOKER_").lower(): value for key, value in given.items() if key.startswith("STOKER_")}
    assert ours.keys() <= Settings.model_fields.keys()
    settings = load(**{key: value for key, value in ours.items() if value})
    assert re.match(r"postgresql\+psycopg://stoker:\w{30,}@postgres:5432/stoker$", settings.database)
    assert settings.redis_url.startswith("redis://redis:6379/")
    assert settings.secret_key
    assert settings.webhook_secret


def test_each_env_file_has_secrets_of_its_own(env_file: dict[str, Path], compose: dict[str, Any]) -> None:
    """None twice, none in the compose file; all containers get the same key, so that what one seals another opens."""
    made = [path.read_text() for path in env_file.values()]
    for name in ("POSTGRES_PASSWORD", "STOKER_SECRET_KEY", "STOKER_WEBHOOK_SECRET"):
        values = {re.findall(rf"^{name}=(.+)$", text, flags=re.MULTILINE)[0] for text in made}
        assert len(values) == len(made)
        assert not any(value in (ROOT / "docker-compose.yml").read_text() for value in values)
    assert len({compose[name]["environment"]["STOKER_SECRET_KEY"] for name in COMMON}) == 1


def test_without_an_env_file_nothing_is_started(tmp_path: Path) -> None:
    """No password that everybody knows: Compose says which command makes one."""
    (tmp_path / "empty").touch()
    ran = run(
        tools() / "docker-compose", "-f", ROOT / "docker-compose.yml", "--env-file", tmp_path / "empty", "config", "-q"
    )
    assert ran.returncode != 0
    assert "deploy/compose-env.sh" in ran.stderr
    assert run("sh", ROOT / "deploy/compose-env.sh").returncode == 2


def test_an_env_file_is_written_once_and_for_its_owner_alone(env_file: dict[str, Path]) -> None:
    """A second call, for another profile, say, would lose the key that secrets are sealed with: it is refused."""
    before = env_file["gpu"].read_text()
    ran = run("sh", ROOT / "deploy/compose-env.sh", "cpu", env_file["gpu"])
    assert ran.returncode == 1
    assert "COMPOSE_PROFILES=cpu" in ran.stderr
    assert env_file["gpu"].read_text() == before
    assert env_file["gpu"].stat().st_mode & 0o777 == 0o600


def test_data_survives_the_containers(profiles: dict[str, dict[str, Any]]) -> None:
    """PostgreSQL, Redis, files and the downloaded models lie on volumes that are declared."""
    made = profiles["gpu"]
    used = {volume["source"] for service in made["services"].values() for volume in service.get("volumes", ())}
    declared = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["volumes"].keys()
    assert used == {"postgres", "redis", "files", "models"} == declared


def test_web_and_bulk_see_the_same_files(compose: dict[str, Any]) -> None:
    """What is uploaded to one is read by the other: one volume, at STOKER_DATA of the image."""
    mounts = [[(one["source"], one["target"]) for one in compose[name]["volumes"]] for name in ("web", "bulk")]
    assert mounts == [[("files", "/data")]] * 2
    assert "STOKER_DATA=/data" in (ROOT / "deploy/Dockerfile").read_text()


@pytest.mark.parametrize("name", ["migrate", *OURS])
def test_containers_have_few_rights(name: str, compose: dict[str, Any]) -> None:
    """No capability; a read-only root but for vLLM, with room in /tmp and /data; one port, on loopback."""
    service = compose[name]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    if name not in {"engine", "engine-cpu"}:
        assert service["read_only"] is True
        room = {*service["tmpfs"], *(volume["target"] for volume in service.get("volumes", ()))}
        assert room == {"/tmp", "/data"}  # noqa: S108
    ports = [(port["host_ip"], port["target"]) for port in service.get("ports", ())]
    assert ports == ([("127.0.0.1", 8000)] if name == "web" else [])


@pytest.mark.parametrize("name", ["migrate", *OURS])
def test_what_is_built_is_there(name: str, compose: dict[str, Any]) -> None:
    """Every Dockerfile that is named exists and copies only what exists and what .dockerignore lets through."""
    dockerfile = (ROOT / compose[name].get("build", {}).get("dockerfile", "deploy/Dockerfile")).read_text()
    copied = [
        word for line in re.findall(r"^COPY (?!--from)(.*) \S+$", dockerfile, re.MULTILINE) for word in line.split()
    ]
    let_through = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied
    assert set(copied) <= let_through
    assert all((ROOT / path).exists() for path in copied)


def test_the_images_run_the_same_commands() -> None:
    """The default command of an image is the Procfile's."""
    commands_of = {
        name: yaml.safe_load(re.findall(r"^CMD (.*)$", (ROOT / "deploy" / name).read_text(), re.MULTILINE)[-1])
        for name in IMAGES
    }
    assert commands_of.pop("Dockerfile") == procfile()["web"]
    for command in commands_of.values():
        text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", command[-1].removeprefix("exec "))
        assert shlex.split(text) == procfile()["engine"]


@pytest.mark.parametrize("name", IMAGES)
def test_hadolint_finds_nothing(name: str) -> None:
    """Not at any level."""
    done(tools() / "hadolint", "--failure-threshold", "style", ROOT / "deploy" / name)


@pytest.mark.parametrize("name", IMAGES)
def test_images_do_not_run_as_root(name: str) -> None:
    """The user is a number, which Kubernetes can check, and the image says how its health is asked."""
    text = (ROOT / "deploy" / name).read_text()
    last = text[text.rindex("\nFROM ") :] if "\nFROM " in text else text
    assert re.findall(r"^USER (.*)$", last, re.MULTILINE) == ["10001:10001"]
    part = "web" if name == "Dockerfile" else "engine"
    assert f'CMD ["stoker", "health", "{part}"]' in last
    # What builds stays behind.
    assert not re.search(r"\b(gcc|g\+\+|build-essential|git|uv pip)\b", last)


def test_the_images_get_the_versions_that_are_tested() -> None:
    """What sed makes of the lock is what pip takes as constraints: no hash, no extra, every package of the lock."""
    lock = (ROOT / "requirements/cpu.txt").read_text()
    for name in ("Dockerfile", "Dockerfile.engine-cpu"):
        (script,) = re.findall(
            r"sed -E '([^']+)' requirements/cpu.txt > pins.txt", (ROOT / "deploy" / name).read_text()
        )
        made = subprocess.run(["sed", "-E", script], input=lock, capture_output=True, text=True, check=True).stdout
        lines = [line for line in made.splitlines() if line]
        assert [line for line in lines if not re.fullmatch(r"[a-z0-9.-]+==[^ ;\[]+( ; .+)?", line)] == []
        assert len(lines) == len(re.findall(r"^[a-z0-9]", lock, re.MULTILINE))
