"""The settings that `stoker up` writes down: whole, of that service alone, and nobody else's to read."""

from __future__ import annotations

from pathlib import Path

import pytest

from stoker.service_settings import write_down, written_down
from stoker.settings import Settings, load


@pytest.fixture
def service(tmp_path: Path) -> Settings:
    """Return the settings of a service, with a folder to write them down in."""
    (tmp_path / "run").mkdir()
    return load(data=tmp_path, port=8123, redis_url="redis://:secret@127.0.0.1:20001/0", engine="fake", lease=20)


def test_they_are_the_services_whatever_this_shell_says(service: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is set here counts for nothing, neither where the service has a value nor where it has none."""
    write_down(service)
    monkeypatch.setenv("STOKER_PORT", "9")
    monkeypatch.setenv("STOKER_WEBHOOK_ALLOW_CIDRS", "10.0.0.0/8")
    assert written_down(service.data) == service


def test_others_cannot_read_them(service: Settings) -> None:
    """Passwords are in it; writing again replaces it."""
    write_down(service)
    write_down(service.model_copy(update={"port": 8124}))
    assert (service.data / "run/settings.json").stat().st_mode & 0o077 == 0
    found = written_down(service.data)
    assert found is not None
    assert found.port == 8124


@pytest.mark.parametrize("text", [None, "", "[]", "null", '{"lease": "soon"}', '{"colour": "blue", "port": 7}'])
def test_what_cannot_be_read_is_none(text: str | None, tmp_path: Path) -> None:
    """No file, a broken one, one of another version: nothing is known, nothing is raised; unknown names pass by."""
    (tmp_path / "run").mkdir()
    if text is not None:
        (tmp_path / "run/settings.json").write_text(text)
    found = written_down(tmp_path)
    assert (found and found.port) == (7 if text and "colour" in text else None)
