"""What vLLM reads from the environment: set once, before there are threads that read it, and never taken away."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stoker.settings import Settings
from tasks import engine_process
from tasks.engines import vllm as module
from tasks.engines.vllm import VllmEngine


@pytest.fixture(autouse=True)
def environ(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Return an environment of the test's own, in place of the process's."""
    found: dict[str, str] = {}
    monkeypatch.setattr(module.os, "environ", found)
    monkeypatch.setattr(module, "_told", {})
    return found


def errors_file(environ: dict[str, str]) -> str:
    """Return where vLLM's processes would write errors to."""
    config = json.loads(Path(environ["VLLM_LOGGING_CONFIG_PATH"]).read_text())
    return str(config["handlers"]["file"]["filename"])


def test_it_is_whole_before_an_engine_is_started(environ: dict[str, str]) -> None:
    """A C library that reads it in one thread dies of another one that changes it."""
    engine = engine_process.make_engine(Settings(model="org/model"))
    before = dict(environ)
    assert before["VLLM_NO_USAGE_STATS"] == "1"
    engine.close()
    assert environ == before


def test_an_engine_hears_of_its_own_errors(environ: dict[str, str]) -> None:
    """One that is made after another in the same process does not look into the other's file."""
    first, second = (VllmEngine(Settings(model="org/model"), "org/model") for _ in range(2))
    assert errors_file(environ) == str(second._errors) != str(first._errors)


def test_what_the_operator_set_stays(environ: dict[str, str]) -> None:
    """Also when it was set after an engine had set it to something else."""
    environ["VLLM_MEDIA_URL_ALLOW_REDIRECTS"] = "1"
    VllmEngine(Settings(model="org/model"), "org/model")
    environ["VLLM_CPU_KVCACHE_SPACE"] = "7000"
    VllmEngine(Settings(model="org/model"), "org/model")
    assert environ["VLLM_MEDIA_URL_ALLOW_REDIRECTS"] == "1"
    assert environ["VLLM_CPU_KVCACHE_SPACE"] == "7000"
