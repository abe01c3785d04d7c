"""`stoker up`: the whole service on one machine.

```
lock the data folder -> end what an earlier run left -> bind the port -> find Redis and the model -> migrate
-> start redis, engine, web, collector, worker, beat -> ready -> start again whatever dies
Ctrl-C -> the engine drains -> the others -> redis -> nothing is left
```
"""

from __future__ import annotations

import errno
import os
import secrets
import socket
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

from stoker import demo_model, engine_rows, service_settings
from stoker.broker import Broker, BrokerError
from stoker.processes import Ledger, locked
from stoker.running import EngineCannotStart, Running, UpError
from stoker.services import whole_paths
from stoker.settings import Settings, load
from stoker.supervisor import Signals, Supervisor

__all__ = ["EngineCannotStart", "UpError", "new_webhook_secret", "secret_key", "up", "webhook_secret"]

INTERRUPTED = 130
_BACKLOG = 1024

Say = Callable[[str], None]


def up(given: Mapping[str, object], say: Say) -> int:
    """Run the service until somebody asks for its end; return the exit status.

    `given` are settings by name, before those of the environment. `say` gets each line of progress, and once the line
    `ready http://...`. Raises UpError, SettingsError.
    """
    with Signals() as signals:
        # Until there are processes to look after, Ctrl-C simply breaks off whatever is going on.
        signals.interrupting = True
        try:
            asked = load(**given)
            data = asked.data.expanduser().absolute()
            with _alone(data):
                ledger = Ledger(data / "run/processes.json")
                _reap(ledger, say)
                with closing(_listen(asked)) as listener:
                    settings, broker = _prepare(given, asked, data, listener, say)
                    service_settings.write_down(settings)
                    signals.interrupting = False
                    opened = partial(engine_rows.has_opened, settings)
                    supervisor = Supervisor(ledger, data / "logs", signals, say, opened)
                    return Running(settings, supervisor, signals, say).run(broker, listener)
        except KeyboardInterrupt:
            say("stopped before anything was started")
            return INTERRUPTED


def new_webhook_secret() -> str:
    """Return a new secret, in the form of Standard Webhooks."""
    return f"whsec_{b64encode(secrets.token_bytes(32)).decode()}"


def webhook_secret(data: Path) -> str:
    """Return the secret that signs this data folder's webhooks; made at the first call, readable by its owner alone."""
    return _kept(data / "webhook-secret", new_webhook_secret)


def secret_key(data: Path) -> str:
    """Return the keys that this data folder's secrets are sealed with, newest first; one is made at the first call."""
    from models.sealing import FILE, new_key

    return " ".join(_kept(data / FILE, new_key).split())


def _kept(file: Path, make: Callable[[], str]) -> str:
    """Return what a file holds that its owner alone can read; what it is to hold is made when it is not there."""
    from models.storage import fsync

    if not file.exists() or not file.stat().st_size:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        new = file.with_suffix(".new")
        new.unlink(missing_ok=True)
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
            out.write(f"{make()}\n")
        # On the disk before anything is sealed with it: what is stored would outlive it.
        fsync(new)
        new.rename(file)
        fsync(file.parent)
    return file.read_text(encoding="ascii").strip()


@contextmanager
def _alone(data: Path) -> Iterator[None]:
    """Hold the data folder; the lock ends with this process, however it ends."""
    try:
        for folder in (data, data / "run", data / "logs", data / "metrics"):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UpError(f"STOKER_DATA: {data} cannot be used: {error.strerror}") from None
    with locked(data / "run/lock") as ours:
        if not ours:
            raise UpError(f"another `stoker up` uses {data}: stop it, or choose another folder with --data")
        yield


def _reap(ledger: Ledger, say: Say) -> None:
    left = ledger.reap()
    if left:
        say(f"ended what an earlier run left: {', '.join(process.name for process in left)}")


def _listen(settings: Settings) -> socket.socket:
    """Return the socket that the web server will listen on, bound here so that the port stays ours."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except OSError as error:
        raise UpError(f"STOKER_HOST: {settings.host} is no address: {error.strerror}") from None
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise UpError(
                f"port {settings.port} is taken: stop what uses it, or choose another with --port (0: a free one)"
            ) from None
        raise UpError(f"cannot listen on {settings.host} port {settings.port}: {error.strerror}") from None
    return listener


def _prepare(
    given: Mapping[str, object], asked: Settings, data: Path, listener: socket.socket, say: Say
) -> tuple[Settings, Broker | None]:
    """Find or make whatever the processes need; return the settings they get, and the Redis to run, if any."""
    found: dict[str, object] = {
        "data": data,
        "port": listener.getsockname()[1],
        "webhook_secret": asked.webhook_secret or webhook_secret(data),
        "secret_key": asked.secret_key or secret_key(data),
        **whole_paths(asked),
    }
    broker = None
    if "redis_url" not in asked.model_fields_set:
        try:
            broker = Broker(data / "redis")
        except BrokerError as error:
            raise UpError(str(error)) from None
        found["redis_url"] = broker.url
    settings = load(**{**given, **found, **_model(asked, say)})
    _migrate(settings, say)
    engine_rows.give_back(settings)
    for old in (data / "metrics").iterdir():
        old.unlink()
    return settings, broker


def _model(settings: Settings, say: Say) -> dict[str, object]:
    """Return what the engine loads and the name that clients know it by."""
    if settings.engine != "vllm":
        return {}
    if not settings.model:
        try:
            folder = demo_model.ensure(demo_model.default_cache(os.environ), say)
        except demo_model.DemoModelError as error:
            raise UpError(str(error)) from None
        return {"model": str(folder), "model_name": settings.served_name}
    folder = Path(settings.model).expanduser()
    if folder.is_dir():
        return {"model": str(folder.absolute()), "model_name": settings.model_name or folder.absolute().name}
    if settings.model.startswith(("/", ".", "~")):
        raise UpError(f"STOKER_MODEL: there is no folder {settings.model}")
    return {"model_name": settings.served_name}


def _migrate(settings: Settings, say: Say) -> None:
    from alembic.util import CommandError
    from sqlalchemy.exc import SQLAlchemyError

    from models import keys, schema
    from models.db import Database
    from models.errors import StokerError

    started = time.monotonic()
    try:
        with closing(Database(settings.database, pool_size=1)) as database:
            schema.upgrade(database)
            with database.reading() as tx:
                if not keys.any_exist(tx):
                    say("NO API KEYS: whoever is on this machine may do everything; `stoker keys create` ends that")
    except ModuleNotFoundError as error:
        msg = f"STOKER_DATABASE_URL: {error.name} is not installed: pip install '.[postgres]' in stoker's folder"
        raise UpError(msg) from None
    except (SQLAlchemyError, StokerError, CommandError) as error:
        reason = str(getattr(error, "orig", None) or error).strip().partition("\n")[0]
        raise UpError(f"STOKER_DATABASE_URL: the database cannot be used: {reason}") from None
    say(f"database: {_where(settings)} is up to date ({time.monotonic() - started:.1f} s)")


def _where(settings: Settings) -> str:
    """Return the database's address without a password."""
    from sqlalchemy.engine import make_url

    return make_url(settings.database).render_as_string(hide_password=True)
