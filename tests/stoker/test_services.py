"""The processes of the service: what they run and what they are told."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from stoker import one_engine, services
from stoker.settings import Settings, load


def test_every_setting_is_told_explicitly(tmp_path: Path) -> None:
    """A process gets each setting as its variable, so that it reads back the very same settings."""
    settings = load(data=tmp_path, engine="fake", port=8123, max_model_len=2048, webhook_allow_cidrs="127.0.0.1/32")
    told = services.environment(settings, {"PATH": "/bin", "STOKER_PORT": "1", "HF_TOKEN": "kept"})
    assert {f"STOKER_{name.upper()}" for name in Settings.model_fields} <= told.keys()
    assert (told["PATH"], told["HF_TOKEN"]) == ("/bin", "kept")
    assert told["PROMETHEUS_MULTIPROC_DIR"] == str(tmp_path / "metrics")
    given = {name.removeprefix("STOKER_").lower(): value for name, value in told.items() if name.startswith("STOKER_")}
    assert load(**{name: value for name, value in given.items() if value}) == settings


def test_the_web_server_alone_gets_the_socket(tmp_path: Path) -> None:
    """The bound socket goes to the web server and to nobody else."""
    made = services.services(load(data=tmp_path), {}, 9)
    assert [(service.name, service.inherit) for service in made if service.inherit] == [("web", (9,))]
    web = next(service for service in made if service.name == "web")
    assert web.environment["GUNICORN_CMD_ARGS"] == "--bind fd://9"
    assert all(service.command[:2] == (sys.executable, "-m") for service in made)


def test_the_engine_takes_its_own_queue(tmp_path: Path) -> None:
    """An engine's name and its number of threads are in its command."""
    command = services.commands(load(data=tmp_path, engine_name="gpu-1", engine_threads=7))["engine"]
    assert command[command.index("-Q") + 1] == "engine.gpu-1"
    assert command[command.index("-n") + 1] == "engine.gpu-1@%h"
    assert command[command.index("-c") + 1] == "7"


@pytest.mark.parametrize("url", ["sqlite:////srv/a.db", "sqlite://", "postgresql://a:b%40c@db/x", "sqlite:a"])
def test_other_databases_are_told_as_they_are(url: str) -> None:
    """A whole path, memory, a server and what is no URL at all stay as they were given."""
    assert services._absolute(url) == url


def test_files_are_those_of_this_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The processes run in folders of their own: each path is told whole, by `stoker up` and by `stoker engine`."""
    monkeypatch.chdir(tmp_path)
    given: dict[str, object] = {"fake_log": "log", "upstreams_file": "up.json", "database_url": "sqlite:///jobs.db"}
    here = {"fake_log": tmp_path / "log", "upstreams_file": tmp_path / "up.json"}
    whole = {**here, "database_url": f"sqlite:///{tmp_path}/jobs.db"}
    assert services.whole_paths(load(**given)) == whole
    assert services.whole_paths(load()) == {}
    joined = one_engine._joined({**given, "redis_url": "redis://x", "data": "var"})
    assert {name: getattr(joined, name) for name in whole} == whole
    assert joined.data == tmp_path / "var"
