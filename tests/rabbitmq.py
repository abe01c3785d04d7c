"""A RabbitMQ for tests and benchmarks, with an Erlang port mapper of its own: nothing of it outlives the run."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from tests import servers
from tests.debian import programs

_CONFIG = """\
listeners.tcp.default = {address}:{port}
loopback_users = none
log.console = true
log.console.level = warning
log.file = false
vm_memory_high_watermark.relative = 0.4
disk_free_limit.absolute = 1MB
"""
# In the foreground of this process group: RabbitMQ would start one that stays, and listens on every address.
_RUN = 'epmd -address 127.0.0.1 -port "$ERL_EPMD_PORT" & exec rabbitmq-server'


class RabbitMQ(servers.Server):
    """A broker on a port, virtual host /, user guest. Its processes are one group."""

    guard = 'read -r _; kill -s KILL -- "-$1" 2>/dev/null; rm -rf "$3"'
    address = "127.0.0.1"

    @property
    def url(self) -> str:
        """Return the URL, as STOKER_BROKER_URL takes it."""
        return f"amqp://guest:guest@{self.address}:{self.port}//"

    def answers(self) -> bool:
        """Tell whether the server speaks AMQP."""
        with suppress(OSError), socket.create_connection((self.address, self.port), timeout=5) as connection:
            connection.sendall(b"AMQP\x00\x00\x09\x01")
            return connection.recv(1) == b"\x01"
        return False

    def start(self) -> None:
        """Start the processes and wait until they answer. Raises ServerError."""
        (self.folder / "rabbitmq.conf").write_text(_CONFIG.format(address=self.address, port=self.port))
        super().start()

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """End every process of it and wait until they are gone; SIGKILL is a crash."""
        if self.process is None:
            return
        group = self.process.pid
        with suppress(ProcessLookupError):
            os.killpg(group, how)
            os.killpg(group, signal.SIGCONT)
        super().stop(how)
        deadline = time.monotonic() + 30
        while _lives(group):
            if time.monotonic() > deadline:
                with suppress(ProcessLookupError):
                    os.killpg(group, signal.SIGKILL)
            time.sleep(0.02)


def _lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@contextmanager
def rabbitmq(address: str = "127.0.0.1") -> Iterator[RabbitMQ]:
    """Run a RabbitMQ. Raises ServerError when there is none and none can be fetched."""
    found = programs("rabbitmq")
    with servers.own_folder("rabbitmq") as folder:
        (folder / "plugins").write_text("[].\n")
        environment = {
            "HOME": str(folder),
            "PATH": f"{found}:{found.parent / 'usr/lib/erlang/bin'}:{os.environ.get('PATH', os.defpath)}",
            "ERL_EPMD_PORT": str(servers.free_port()),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": "stoker@localhost",
            "RABBITMQ_DIST_PORT": str(servers.free_port()),
            "RABBITMQ_MNESIA_BASE": str(folder / "data"),
            "RABBITMQ_LOG_BASE": str(folder),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "plugins"),
            # The other schedulers would only spin: the machine is the service's.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1 +sbwt none -kernel inet_dist_use_interface {127,0,0,1}",
        }
        server = RabbitMQ(lambda _: ["sh", "-c", _RUN], folder, environment=environment)
        server.address = address
        with servers.running(server):
            yield server
