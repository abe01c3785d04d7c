"""`stoker engine`: one more engine for a service that runs: another model, another GPU, another machine.

```
find the service's database and Redis -> end what an earlier run left -> run the engine's worker
-> start it again whenever it fails -> Ctrl-C: drain
```
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from stoker import engine_rows
from stoker.broker import bundled_redis
from stoker.processes import Ledger, locked
from stoker.running import CANNOT_START, EngineCannotStart, UpError
from stoker.service_settings import written_down
from stoker.services import Service, commands, environment, whole_paths
from stoker.settings import Settings, load
from stoker.supervisor import Signals, Supervisor

DRAIN_MARGIN = 10.0

Say = Callable[[str], None]


def run(given: Mapping[str, object], say: Say) -> int:
    """Run the engine until somebody asks for its end; return the exit status. Raises UpError and SettingsError."""
    settings = _joined(given)
    if settings.engine == "vllm" and not settings.model:
        raise UpError("which model? --model names a folder or a Hugging Face id")
    name = settings.engine_name
    program, *arguments = commands(settings)["engine"]
    command = (sys.executable, "-m", program, *arguments)
    with Signals() as signals, _alone(settings) as folder:
        ledger = Ledger(folder / "processes.json")
        if ledger.reap():
            say(f"engine {name}: ended what an earlier run left")
        engine_rows.give_back(settings)
        supervisor = Supervisor(ledger, folder, signals, say, partial(engine_rows.has_opened, settings))
        supervisor.start(Service("engine", command, folder, environment(settings, os.environ)))
        say(f"engine {name}: loading; its log: {folder / 'engine.log'}")
        try:
            while not signals.asked:
                for gone in supervisor.tend(2.0):
                    why = _why(gone.said)
                    if gone.status == CANNOT_START:
                        raise EngineCannotStart(why or "the engine cannot start")
                    say(f"engine {name}: died ({gone.how}){why and f': {why}'}; starting again in {gone.delay:.1f} s")
        finally:
            signals.asked = 0
            say(f"stopping: running jobs have {settings.drain_timeout:g} s to finish (again: at once)")
            supervisor.stop(["engine"], settings.drain_timeout + DRAIN_MARGIN)
    return 0


@contextmanager
def _alone(settings: Settings) -> Iterator[Path]:
    """Hold the folder of an engine; the lock ends with this process, however it ends."""
    name, data = settings.engine_name, settings.data
    folder = data / "engines" / name
    try:
        # Beside `stoker up` the second one is there already; on another machine it is not.
        for needed in (folder, data / "metrics"):
            needed.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UpError(f"STOKER_DATA: {data} cannot be used: {error.strerror}") from None
    with locked(folder / "lock") as ours:
        if not ours:
            raise UpError(f"another `stoker engine {name}` uses {data}: stop it, or choose another name")
        yield folder


def _joined(given: Mapping[str, object]) -> Settings:
    """Return the settings of an engine that works for the service of the data folder, or for the one that is given."""
    settings = load(**given)
    data = settings.data.expanduser().absolute()
    found: dict[str, object] = {"data": data, **whole_paths(settings)}
    service = written_down(data)
    if service is not None and "database_url" not in settings.model_fields_set:
        found["database_url"] = service.database_url
    if "redis_url" not in settings.model_fields_set:
        found["redis_url"] = _bundled_redis(data)
    if settings.model and Path(settings.model).expanduser().is_dir():
        found["model"] = str(Path(settings.model).expanduser().absolute())
    return load(**{**given, **found})


def _bundled_redis(data: Path) -> str:
    found = bundled_redis(data)
    if not found:
        raise UpError(f"no service runs in {data}: name its folder with --data, or its database and Redis")
    return found


def _why(said: str) -> str:
    lines = [line for line in said.splitlines() if line.startswith("stoker engine: ")]
    return lines[-1].removeprefix("stoker engine: ") if lines else ""
