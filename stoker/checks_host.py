"""What `stoker doctor` looks at on this machine: the data folder, the disk, and the processes of `stoker up`."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy.engine import make_url

from stoker.broker import bundled_redis
from stoker.finding import Finding, ok, problem, warning
from stoker.processes import Ledger, Recorded, is_locked
from stoker.services import commands
from stoker.settings import Settings
from tasks.proc import PROC

GIGABYTE = 1e9
_LITTLE = 0.05
"""Of a disk free: little, whatever its size."""


def host(settings: Settings, min_free: float) -> Iterator[Finding]:
    """Look at this machine; `min_free` in gigabytes."""
    yield from _data(settings.data)
    yield from _disks(settings, min_free)
    yield from _processes(settings)


def _data(data: Path) -> Iterator[Finding]:
    try:
        found = data.stat()
    except FileNotFoundError:
        yield warning(
            "data", f"there is no folder {data}", "name the service's folder with --data; `stoker up` makes one"
        )
        return
    except OSError as error:
        yield problem("data", f"{data}: {error.strerror}", "run this as the user that the service runs as")
        return
    if not stat.S_ISDIR(found.st_mode) or not os.access(data, os.R_OK | os.W_OK | os.X_OK):
        yield problem(
            "data",
            f"{data} cannot be read and written",
            f"give it to the user that the service runs as: chown -R USER {data}",
        )
    elif found.st_mode & 0o022:
        yield problem("data", f"others may write to {data}, where secrets and the database lie", f"chmod 700 {data}")
    elif found.st_mode & 0o055:
        yield warning("data", f"others may look into {data}, where secrets and the database lie", f"chmod 700 {data}")
    else:
        yield ok("data", f"{data} can be read and written, by its owner alone")


def _disks(settings: Settings, min_free: float) -> Iterator[Finding]:
    places = [settings.data, Path(settings.storage)] if "://" not in settings.storage else [settings.data]
    url = make_url(settings.database)
    if url.get_backend_name() == "sqlite" and url.database:
        places.append(Path(url.database))
    seen: set[int] = set()
    for place in map(_existing, places):
        device = place.stat().st_dev
        if device not in seen:
            seen.add(device)
            yield _disk(place, min_free)


def _existing(place: Path) -> Path:
    return next(path for path in (place.absolute(), *place.absolute().parents) if path.exists())


def _disk(place: Path, min_free: float) -> Finding:
    total, _, free = shutil.disk_usage(place)
    files = os.statvfs(place)
    says = f"{free / GIGABYTE:.1f} GB free of {total / GIGABYTE:.0f} where {place} is"
    do = "make room, or shorten STOKER_RETENTION_DAYS and STOKER_FILE_DAYS: POSTs are refused when the disk is full"
    if free < min_free * GIGABYTE:
        return problem("disk", f"only {says}", do)
    if files.f_files and files.f_favail < files.f_files / 100:
        return problem("disk", f"only {files.f_favail} more files fit where {place} is", do)
    if free < total * _LITTLE:
        return warning("disk", f"only {says}", do)
    return ok("disk", says)


def _processes(settings: Settings) -> Iterator[Finding]:
    """Look at the processes of the `stoker up`, and of every `stoker engine`, of this data folder."""
    recorded = Ledger(settings.data / "run/processes.json").read()
    names = [*commands(settings)]
    if bundled_redis(settings.data) == settings.redis_url:
        names.insert(0, "redis")
    yield _supervised("stoker up", settings.data / "run/lock", recorded, names, settings.data / "logs")
    for folder in sorted(settings.data.glob("engines/*/")):
        found = Ledger(folder / "processes.json").read()
        yield _supervised(f"stoker engine {folder.name}", folder / "lock", found, ["engine"], folder)


def _supervised(command: str, lock: Path, recorded: list[Recorded], names: list[str], logs: Path) -> Finding:
    """Look at the processes of one supervisor."""
    left = {process.name: process for process in recorded if process.left}
    if not is_locked(lock):
        if left:
            named = ", ".join(f"{name} ({process.pid})" for name, process in left.items())
            do = f"start `{command}` again: it ends them first"
            return problem("processes", f"`{command}` is gone and left processes that nobody looks after: {named}", do)
        return ok("processes", f"no `{command}` runs on this folder")
    frozen = [process for process in left.values() if _is_stopped(process.pid)]
    if frozen:
        pids = " ".join(str(process.pid) for process in frozen)
        named = ", ".join(process.name for process in frozen)
        return problem(
            "processes", f"stopped by a signal or a debugger: {named}", f"kill -CONT {pids}; or kill -9 {pids}"
        )
    down = [name for name in names if not (name in left and left[name].alive)]
    if down:
        return problem(
            "processes", f"down, and being started again: {', '.join(down)}", f"read why in {logs}/{down[0]}.log"
        )
    return ok("processes", f"`{command}` runs: {', '.join(names)}")


def _is_stopped(pid: int) -> bool:
    try:
        text = (PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return False
    return text.rpartition(")")[2].split()[0] in {"T", "t"}
