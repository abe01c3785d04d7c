"""What `stoker up` looks at before it starts anything: each failure is one line that says what to do."""

from __future__ import annotations

import os
import signal
import socket
import threading
from contextlib import closing
from pathlib import Path

import pytest

from stoker import local
from stoker.local import UpError
from stoker.settings import SettingsError, load


def refused(**given: object) -> str:
    """Return what `stoker up` says when it does not start."""
    with pytest.raises(UpError) as caught:
        local.up(given, print)
    text = str(caught.value)
    assert "\n" not in text
    return text


def free_again(data: Path) -> None:
    """Fail unless nobody holds the data folder."""
    with local._alone(data):
        assert data.is_dir()


def test_a_busy_port_is_named(tmp_path: Path) -> None:
    """A port that something else listens on: which port, and the two ways out."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        said = refused(data=tmp_path, engine="fake", port=port)
    assert str(port) in said
    assert "--port" in said


def test_an_address_that_is_not_ours_is_named(tmp_path: Path) -> None:
    """A host that this machine does not have."""
    assert "192.0.2.1" in refused(data=tmp_path, engine="fake", host="192.0.2.1")


def test_a_missing_model_folder_is_named(tmp_path: Path) -> None:
    """A folder that is not there fails before anything is started."""
    assert refused(data=tmp_path, model="./not/there", port=0) == "STOKER_MODEL: there is no folder ./not/there"


def test_a_data_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    """The data folder lies below a file."""
    (tmp_path / "file").write_text("")
    assert refused(data=tmp_path / "file/var", engine="fake").startswith(f"STOKER_DATA: {tmp_path}/file/var")


def test_a_database_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    """A PostgreSQL that does not answer: the variable, the reason, no password."""
    url = "postgresql://someone:secret@127.0.0.1:1/none"
    said = refused(data=tmp_path, engine="fake", port=0, database_url=url)
    assert said.startswith("STOKER_DATABASE_URL: ")
    assert "secret" not in said


@pytest.mark.parametrize("by", ["option", "variable"])
def test_a_relative_database_is_the_one_of_this_folder(
    by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The processes run in the data folder: they are told the whole path of the file that was made ready here."""
    monkeypatch.chdir(tmp_path)
    given: dict[str, object] = {"data": tmp_path / "var", "engine": "fake", "port": 0, "redis_url": "redis://x"}
    if by == "option":
        given["database_url"] = "sqlite:///jobs.db"
    else:
        monkeypatch.setenv("STOKER_DATABASE_URL", "sqlite:///jobs.db")
    asked = load(**given)
    with local._alone(tmp_path / "var"), closing(local._listen(asked)) as listener:
        settings, _ = local._prepare(given, asked, tmp_path / "var", listener, print)
    assert settings.database_url == f"sqlite:///{tmp_path}/jobs.db"
    assert (tmp_path / "jobs.db").exists()


def test_a_bad_setting_is_named(tmp_path: Path) -> None:
    """A value that is not allowed: the variable and what is."""
    with pytest.raises(SettingsError, match=r"STOKER_ENGINE: .*'vllm', 'upstream' or 'fake'"):
        local.up({"data": tmp_path, "engine": "magic"}, print)


def test_two_at_once_on_one_data_folder_are_refused(tmp_path: Path) -> None:
    """Whoever comes second is told, and told how to have two."""
    with local._alone(tmp_path):
        said = refused(data=tmp_path, engine="fake", port=0)
    assert str(tmp_path) in said
    assert "--data" in said
    free_again(tmp_path)


def test_the_webhook_secret_is_made_once(tmp_path: Path) -> None:
    """The secret is the same at every start, and only its owner can read it."""
    first = local.webhook_secret(tmp_path / "new")
    assert first == local.webhook_secret(tmp_path / "new")
    assert load(webhook_secret=first).webhook_secret == first
    assert (tmp_path / "new/webhook-secret").stat().st_mode & 0o077 == 0


def test_a_model_folder_gives_the_name(tmp_path: Path) -> None:
    """What is loaded is the whole path; what clients ask for is the folder's own name, or the one that is set."""
    (tmp_path / "llama").mkdir()
    found = {"model": str(tmp_path / "llama"), "model_name": "llama"}
    assert local._model(load(model=str(tmp_path / "llama")), print) == found
    assert local._model(load(model=str(tmp_path / "llama"), model_name="mine"), print)["model_name"] == "mine"
    assert local._model(load(model="some/model"), print) == {"model_name": "some/model"}
    assert local._model(load(engine="fake"), print) == {}


def test_a_signal_while_nothing_runs_yet_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C during a long preparation is obeyed at once and leaves the folder free."""

    def long(_settings: object, _say: object) -> None:
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
        threading.Event().wait(30)

    monkeypatch.setattr(local, "_migrate", long)
    assert local.up({"data": tmp_path, "engine": "fake", "port": 0}, print) == local.INTERRUPTED
    free_again(tmp_path)
