"""The processes that make up the service: their commands and what their environment says.

The one place for them: `stoker up` starts what stands here, and a test holds the Procfile and docker-compose.yml to it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import stoker
from stoker.settings import Settings

_WORKER = ("celery", "-A", "tasks.app", "worker", "--without-gossip", "--without-mingle", "-P", "threads")


@dataclass(frozen=True, slots=True)
class Service:
    """One process to keep running. `inherit` are the file descriptors that it gets."""

    name: str
    command: tuple[str, ...]
    folder: Path
    environment: Mapping[str, str] = field(repr=False)
    inherit: tuple[int, ...] = ()


def commands(settings: Settings) -> dict[str, tuple[str, ...]]:
    """Return each process's command as a Procfile has it, in the order in which they are started."""
    engine = f"engine.{settings.engine_name}"
    return {
        "engine": (*_WORKER, "-c", str(settings.engine_threads), "-Q", engine, "-n", f"{engine}@%h"),
        "web": ("gunicorn", "-c", "python:webapi.gunicorn_conf", "webapi.app:create_app()"),
        "collector": (*_WORKER, "-c", "8", "-Q", "collector", "-n", "collector@%h"),
        "worker": (*_WORKER, "-c", "4", "-Q", "default", "-n", "worker@%h"),
        "bulk": (*_WORKER, "-c", "4", "-Q", "bulk", "-n", "bulk@%h"),
        # Without a schedule file: nothing to corrupt, and every period is seconds long.
        "beat": ("celery", "-A", "tasks.app", "beat", "-S", "celery.beat:Scheduler"),
    }


def environment(settings: Settings, inherited: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of every process: what is `inherited`, and each setting explicitly."""
    given = {f"STOKER_{name.upper()}": _text(getattr(settings, name)) for name in type(settings).model_fields}
    made = {**inherited, **given, "PROMETHEUS_MULTIPROC_DIR": str(settings.data / "metrics"), "PYTHONUNBUFFERED": "1"}
    source = Path(stoker.__file__).parent.parent
    if source.name != "site-packages":
        # From a checkout: the processes run this very code, wherever they are started.
        made["PYTHONPATH"] = os.pathsep.join(filter(None, (str(source), inherited.get("PYTHONPATH"))))
    return made


def whole_paths(settings: Settings) -> dict[str, object]:
    """Return the settings that name a file of this folder, so that they mean it in the processes' folders too."""
    files = {name: getattr(settings, name) for name in ("fake_log", "upstreams_file")}
    found: dict[str, object] = {name: file.expanduser().absolute() for name, file in files.items() if file is not None}
    if settings.database_url:
        found["database_url"] = _absolute(settings.database_url)
    return found


def _absolute(url: str) -> str:
    """Return a database URL that means the same in every folder."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        parsed = make_url(url)
    except ArgumentError:
        return url  # what is wrong with it is told when it is opened
    file = parsed.database or ""
    if parsed.get_backend_name() != "sqlite" or file in {"", ":memory:"} or file.startswith("file:"):
        return url
    return parsed.set(database=str(Path(file).absolute())).render_as_string(hide_password=False)


def services(settings: Settings, inherited: Mapping[str, str], listener: int) -> list[Service]:
    """Return the processes of one machine but Redis. `listener` is the bound socket that the web server is to use."""
    base = environment(settings, inherited)
    made = []
    for name, (program, *arguments) in commands(settings).items():
        command = (sys.executable, "-m", program, *arguments)
        if name == "web":
            # Handed over, not bound anew: while the web server is started again, clients wait instead of being refused.
            bound = base | {"GUNICORN_CMD_ARGS": f"--bind fd://{listener}"}
            made.append(Service(name, command, settings.data, bound, (listener,)))
        else:
            made.append(Service(name, command, settings.data, base))
    return made


def _text(value: object) -> str:
    return "" if value is None else str(value)
